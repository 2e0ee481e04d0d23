"""Specs are taken apart as section 2 of the design says; what is wrong is said in one line."""

from pathlib import Path

import pytest

from zsrobust.errors import UserError
from zsrobust.models.spec import named_folders, parse_spec


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_spec(text)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_architecture_and_tag() -> None:
    spec = parse_spec("ViT-B-32-quickgelu:openai")
    assert (spec.kind, spec.arch, spec.tag) == ("builtin", "ViT-B-32-quickgelu", "openai")
    assert parse_spec("ViT-B/32:laion2b_s34b_b79k").arch == "ViT-B-32"


def test_hub_folder_and_run(tmp_path: Path) -> None:
    assert parse_spec("hf-hub:chs20/fare2-clip").repo == "chs20/fare2-clip"
    local = parse_spec(f"local-dir:{tmp_path}")
    assert (local.kind, local.folder, local.name) == ("local_dir", tmp_path, tmp_path.name)
    assert parse_spec(f"run:{tmp_path}").kind == "run"


def test_foreign_is_split_at_the_last_at_sign_with_a_file_on_its_left(tmp_path: Path) -> None:
    plain = tmp_path / "tower.pt"
    odd = tmp_path / "tower@2.pt"
    for file in (plain, odd):
        file.write_bytes(b"x")
    folder = tmp_path / "base@home"
    folder.mkdir()

    spec = parse_spec(f"{odd}@local-dir:{folder}")
    assert spec.kind == "foreign"
    assert spec.file == odd
    assert spec.base is not None
    assert spec.base.folder == folder

    nested = parse_spec(f"{odd}@{plain}@ViT-B-32-quickgelu:openai")
    assert nested.file == odd
    assert nested.base is not None
    assert nested.base.file == plain
    assert nested.base.base is not None
    assert nested.base.base.arch == "ViT-B-32-quickgelu"


def test_folder_with_an_at_sign_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a@b"
    folder.mkdir()
    assert parse_spec(f"local-dir:{folder}").folder == folder


def test_named_model_is_a_folder_under_the_variable(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZSROBUST_MODELS", str(folders["vit"].parent))
    spec = parse_spec("vit")
    assert (spec.kind, spec.folder) == ("named", folders["vit"])
    assert set(folders) <= set(named_folders())


@pytest.mark.parametrize(
    ("arch", "right"),
    [("ViT-B-32", "ViT-B-32-quickgelu:openai"), ("RN50", "RN50-quickgelu:openai")],
)
def test_activation_that_does_not_fit_the_tag_names_the_right_one(arch: str, right: str) -> None:
    assert f"use {right}." in refused(f"{arch}:openai")


def test_every_listed_tag_is_taken_or_sent_to_an_architecture_that_is() -> None:
    """No public tag is lost to the activation check: the advice it gives parses."""
    import open_clip

    sent = 0
    for arch, tag in open_clip.list_pretrained():
        try:
            parse_spec(f"{arch}:{tag}")
        except UserError as error:
            advice = str(error).rpartition("use ")[2].rstrip(".")
            assert parse_spec(advice).tag == tag
            sent += 1
    assert sent > 20


def test_architecture_without_a_tag_lists_tags() -> None:
    message = refused("ViT-B-32")
    assert "needs a tag" in message
    assert "laion2b_s34b_b79k" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ViT-B-23:openai", "did you mean"),
        ("ViT-B-32:opena", "'openai'"),
        ("ViT-B-32-quickgelu:laion2b_s34b_b79k", "ViT-B-32:laion2b_s34b_b79k"),
        ("ViT-B-32-openai", "did you mean"),
        ("hf-hub:only-a-name", "ORG/NAME"),
        ("local-dir:", "nothing stands after"),
        ("local-dir:/no/such/folder", "not a folder"),
        ("missing.pt@ViT-B-32-quickgelu:openai", "'missing.pt'"),
        ("", "empty"),
        ("tiny", "embedded model"),
    ],
)
def test_wrong_specs_say_what_is_wrong(
    text: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The embedded model may be there or not: here it is not.
    monkeypatch.setattr("zsrobust.models.spec.__file__", str(tmp_path / "spec.py"))
    assert words in refused(text)


def test_bare_paths_are_told_their_prefix(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["vit"]
    assert f"write local-dir:{folder}" in refused(str(folder))
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(folder)
    assert f"write run:{run}" in refused(str(run))
    assert "@BASE" in refused(str(folder / "open_clip_model.safetensors"))
