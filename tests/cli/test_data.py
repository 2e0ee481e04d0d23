"""`zsrobust data`: show, pack, check and overlap on a folder of pictures."""

from __future__ import annotations

import json

import yaml

from zsrobust import data


def test_a_folder_is_packed_checked_and_measured(zs, pets, model, tmp_path):
    """Packed as tars it is the same set: its texts, counts, pictures and clean accuracy."""
    found = zs("data", "pack", pets, "--out", "packed")
    assert found.code == 0
    assert found.out == f"30 images: wds:{tmp_path}/packed\n"
    found = zs("data", "check", f"wds:{tmp_path}/packed")
    assert (found.code, found.out) == (0, f"wds:{tmp_path}/packed: ok\n")
    loose, packed = data.open_set(pets), data.open_set("wds:packed")
    assert packed.classnames == loose.classnames
    assert packed.labels == loose.labels
    assert [packed.stored(i) for i in range(30)] == [loose.stored(i) for i in range(30)]
    numbers = []
    for spec in (pets, "wds:packed"):
        found = zs("eval", model, "--sets", spec, "--attacks", "clean", "--json")
        numbers.append(json.loads(found.out)["means"][0]["mean"])
    assert numbers[0] == numbers[1]


def test_a_limit_packs_the_first_of_the_fixed_order(zs, pets):
    """The subset that --limit means everywhere else."""
    assert zs("data", "pack", pets, "--out", "few", "--limit", "7").code == 0
    loose, few = data.open_set(pets), data.open_set("wds:few")
    chosen = loose.order()[:7]
    assert [few.stored(i) for i in range(7)] == [loose.stored(i) for i in chosen]
    assert "not empty" in zs("data", "pack", pets, "--out", "few").mistake()


def test_a_set_is_shown(zs, pets, tiny_set_folder):
    """Name, split, count and texts, in YAML and as JSON."""
    shown = yaml.safe_load(zs("data", "show", pets).out)
    assert shown["images"] == 30
    assert shown["classnames"] == ["blue star", "green box", "grey cat", "red ball", "white dog"]
    assert json.loads(zs("data", "show", pets, "--json").out) == shown
    train = f"folder:{tiny_set_folder}"
    assert yaml.safe_load(zs("data", "show", train, "--split", "train").out)["images"] == 60
    assert "did you mean 'train'" in zs("data", "show", train, "--split", "trian").mistake()


def test_a_card_is_shown_without_its_images(zs):
    """Where it comes from, its splits and how to bring it."""
    card = json.loads(zs("data", "show", "mini/cifar10", "--json").out)
    assert card["name"] == "mini/cifar10"
    assert card["classes"] == 10
    assert yaml.safe_load(zs("data", "show", "mini/cifar10").out) == card


def test_check_names_what_is_wrong_with_a_set(zs, tmp_path, tiny_set_folder):
    """Two labels under one name: exit code 2 where the set was asked for."""
    import shutil

    shutil.copytree(tiny_set_folder / "val", tmp_path / "val")
    (tmp_path / "val" / "classnames.txt").write_text("a\nb\nc\nd\na\n")
    found = zs("data", "check", "folder:val")
    assert found.code == 2
    assert found.out == "folder:val: class name 'a' stands for 2 labels: 0, 4.\n"
    assert found.err == "zsrobust: 1 set(s) have problems, named above.\n"


def test_check_of_all_cards_forgives_images_that_are_elsewhere(zs):
    """Without the images a card itself is checked: exit code 0, a line each."""
    found = zs("data", "check")
    assert (found.code, found.err) == (0, "")
    lines = [line for line in found.out.splitlines() if not line.startswith("  ")]
    assert [line.split(":")[0] for line in lines] == data.card_names()
    elsewhere = [line for line in lines if not line.startswith("demo/")]  # which the package draws
    assert all("card ok; images not here" in line for line in elsewhere)
    assert all("images not here" not in line for line in lines if line not in elsewhere)


def test_check_of_all_cards_names_a_set_that_is_here_and_damaged(zs, tmp_path, monkeypatch):
    """It is no set that is elsewhere: exit code 2."""
    (tmp_path / "sets" / "cifar10" / "cifar-10-batches-py").mkdir(parents=True)
    monkeypatch.setenv("ZSROBUST_DATA", str(tmp_path / "sets"))
    found = zs("data", "check")
    assert found.code == 2
    (line,) = [line for line in found.out.splitlines() if line.startswith("cifar10:")]
    assert "not the published batches" in line
    assert "not here" not in line
    assert found.err == "zsrobust: 1 set(s) have problems, named above.\n"


def test_check_tells_equal_class_texts_of_a_card(zs):
    """They are no mistake; no image is needed to know them. A set that is asked for must be here."""
    lines = zs("data", "check").out.splitlines()
    note = lines[1 + next(k for k, line in enumerate(lines) if line.startswith("imagenet:"))]
    assert note == "  2 equal class texts: 'missile' (657, 744), 'sunglasses' (836, 837)"
    asked = zs("data", "check", "imagenet")
    assert asked.code == 2
    assert "imagenet, split 'val', is not on this machine" in asked.err


def test_the_table_of_sets_is_printed_as_markdown(zs):
    """A row a whole set, none of the small and drawn ones."""
    rows = zs("data", "list", "--markdown").out.splitlines()
    assert rows[0].startswith("| card | set | split: images | classes |")
    assert any(row.startswith("| `stl10` | STL-10 | test: 8,000 | 10 | 96 | 96 |") for row in rows)
    assert "mini/" not in "".join(rows)


def test_overlap_lists_near_duplicates(zs, pets, tmp_path, tiny_set_folder):
    """Between a source and a target; as lines with their number, or as JSON."""
    import shutil

    shutil.copytree(tiny_set_folder / "val" / "grey_cat", tmp_path / "target" / "tabby_cats")
    shutil.copytree(tiny_set_folder / "val" / "grey_cat", tmp_path / "target" / "sofa")
    found = zs("data", "overlap", pets, "folder:target")
    assert found.out.split() == [
        "target",
        "tabby",
        "cats",
        "grey",
        "cat",
        "same",
        "head",
        "noun",
        "'cat'",
    ]
    assert found.err == "1 near-duplicate pairs of class names\n"
    assert json.loads(zs("data", "overlap", pets, "folder:target", "--json").out) == [
        {
            "set": "target",
            "target": "tabby cats",
            "source": "grey cat",
            "why": "same head noun 'cat'",
        }
    ]
