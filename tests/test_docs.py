"""The documents: their blocks run, their links, tables and citations hold.

A block of README.md runs as it stands unless a comment `docs-test: parse` stands before it; so does one of
docs/own-images.md, in a folder of its own. In the rest of docs/ only those run that a comment `docs-test: run`
asks for. What does not run is parsed all the same: commands by the command line itself, Python by the compiler,
recipes by their schema. `my-clip`, `my-photos`, `my-unlabelled-photos` and `other-photos` are the tiny fixtures
in an empty folder; blocks of docs/ run in a copy of what the README left.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
import yaml

from zsrobust.cli import app, main
from zsrobust.models import load_clip
from zsrobust.models.public import public_weights
from zsrobust.threat import format_eps, parse_eps
from zsrobust.training.recipe import (
    Recipe,
    is_pretraining,
    load_recipe,
    parse_recipe,
    recipe_names,
)
from zsrobust.workflows.collection_recipe import collection_names
from zsrobust.workflows.pretrain_recipe import (
    PretrainRecipe,
    load_pretrain_recipe,
    parse_pretrain_recipe,
    pretrain_recipe_names,
)
from zsrobust.workflows.study_recipe import (
    Axis,
    Choose,
    FigurePart,
    Study,
    combinations,
    parse_study,
    study_names,
)

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CODE = [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py")]


@dataclass(frozen=True)
class Block:
    """A fenced block, with the mode that the comment before it asks for."""

    page: str
    line: int
    language: str
    mode: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, comments left out."""
        lines = self.text.splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text("utf-8").splitlines()
    mode, fence, found = "", -1, []
    for number, line in enumerate(lines):
        if fence >= 0 and line == "```":
            name = page.relative_to(ROOT).as_posix()
            yield Block(name, fence + 1, lines[fence][3:], mode, "\n".join(found) + "\n")
            mode, fence, found = "", -1, []
        elif fence >= 0:
            found.append(line)
        elif line.startswith("```"):
            fence = number
        elif marker := re.fullmatch(r"<!-- docs-test: (run|parse) -->", line):
            mode = marker[1]
    assert fence < 0, f"{page}: the block at line {fence + 1} is never closed"


ALL = [block for page in PAGES for block in blocks(page)]


def name(block: Block) -> str:
    return f"{block.page}:{block.line}"


def zsrobust_arguments(words: list[str]) -> list[str] | None:
    """What follows `zsrobust` or `-m zsrobust`; None for another program's command."""
    if words[0] in ("zsrobust", ".venv/bin/zsrobust"):
        return words[1:]
    for at in range(len(words) - 1):
        if words[at : at + 2] == ["-m", "zsrobust"]:
            return words[at + 2 :]
    return None


def parse_command(arguments: list[str]) -> dict[str, Any]:
    """Let the command line take the arguments apart, and call nothing; return them by name."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert arguments[0] in command.commands, f"no command {arguments[0]!r}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    return dict(command.make_context("zsrobust", list(arguments)).params)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class ReadThrough:
    """What is left when the README was followed from top to bottom."""

    folder: Path
    variables: dict[str, Any]


@pytest.fixture(scope="module")
def read_through(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_clip_folder: Path,
    tiny_set_folder: Path,
    other_set_folder: Path,
) -> ReadThrough:
    """Follow the README where my-clip, my-photos and other-photos lie; to be read only."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(tiny_clip_folder, folder / "my-clip")
    shutil.copytree(tiny_set_folder, folder / "my-photos")
    shutil.copytree(other_set_folder, folder / "other-photos")
    variables: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        bare(patch, folder)
        for block in ALL:
            if block.page == "README.md" and block.mode != "parse":
                run_block(block, variables)
    return ReadThrough(folder, variables)


def bare(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make `folder` the current one, with no settings of the person who runs the tests."""
    patch.chdir(folder)
    patch.setenv("ZSROBUST_DEBUG", "")
    patch.delenv("ZSROBUST_DATA", raising=False)
    patch.delenv("ZSROBUST_MODELS", raising=False)


def run_block(block: Block, variables: dict[str, Any]) -> None:
    """Run a block in the current folder: a recipe is saved, a command is called, Python is executed."""
    if block.language == "yaml":
        saved = re.match(r"# (\S+\.yaml)\n", block.text)
        assert saved, f"{name(block)}: the first line names the file"
        Path(saved[1]).write_text(block.text)
    elif block.language == "sh":
        for words in block.commands:
            assert words[0] == "zsrobust", f"{name(block)}: {words[0]} cannot be run in a test"
            with pytest.raises(SystemExit) as stopped:
                main(words[1:])
            assert not stopped.value.code, f"{name(block)}: {shlex.join(words)}"
    else:
        exec(compile(block.text, name(block), "exec"), variables)  # noqa: S102 - our own README


@pytest.mark.usefixtures("_one_thread")
def test_the_readme_runs_from_top_to_bottom(read_through):
    """Recipe, commands and Python, in their order, in one folder; the result loads in plain open_clip."""
    import open_clip

    ran = [b.language for b in ALL if b.page == "README.md" and b.mode != "parse"]
    assert ran == ["python", "python", "python", "yaml", "sh", "python"]
    table = read_through.variables["table"].to_json()
    assert [m["model"] for m in table["means"]] == [
        "local-dir:my-clip",
        "run:runs/my-recipe-seed-1",
    ]
    assert read_through.variables["run"].recipe.seed == 1
    hardened = f"local-dir:{read_through.folder}/my-hardened-clip"
    before, _, _ = open_clip.create_model_and_transforms(f"local-dir:{read_through.folder}/my-clip")
    after, _, _ = open_clip.create_model_and_transforms(hardened)
    assert torch.equal(before.text_projection, after.text_projection)
    assert not torch.equal(before.visual.proj, after.visual.proj)


@pytest.mark.usefixtures("_one_thread")
def test_the_page_on_own_images_runs_from_top_to_bottom(
    tiny_clip_folder, tiny_set_folder, other_set_folder, tmp_path, monkeypatch
):
    """Every recipe and command, in their order; the last block loads what FARE made in plain open_clip."""
    shutil.copytree(tiny_clip_folder, tmp_path / "my-clip")
    shutil.copytree(tiny_set_folder, tmp_path / "my-photos")
    shutil.copytree(other_set_folder, tmp_path / "other-photos")
    bare_images = tmp_path / "my-unlabelled-photos" / "train"
    bare_images.mkdir(parents=True)
    for image in (tiny_set_folder / "train").rglob("*.png"):
        shutil.copy(image, bare_images / f"{image.parent.name}-{image.name}")
    bare(monkeypatch, tmp_path)
    page = [b for b in ALL if b.page == "docs/own-images.md" and b.language]
    variables: dict[str, Any] = {}
    for block in page:
        run_block(block, variables)
    assert [b.language for b in page].count("yaml") == 3
    before = load_clip("local-dir:my-clip").model.state_dict()
    after = variables["model"].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("visual.") for name in moved)
    assert (tmp_path / "report.html").is_file()


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("block", [b for b in ALL if b.mode == "run"], ids=name)
def test_a_marked_block_runs(block, read_through, tmp_path, monkeypatch):
    """Each on its own, after the README."""
    shutil.copytree(read_through.folder, tmp_path, dirs_exist_ok=True)
    bare(monkeypatch, tmp_path)
    run_block(block, {})


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "sh"], ids=name)
def test_every_command_is_one_that_the_command_line_takes(block):
    """Commands, options and names of recipes, attacks and sets; other programs are known ones."""
    from zsrobust.attacks import plan
    from zsrobust.data import load_suite
    from zsrobust.threat import Threat

    for words in block.commands:
        arguments = zsrobust_arguments(words)
        if arguments is None:
            assert words[0] in ("export", "make", "pip"), shlex.join(words)
            continue
        given = parse_command(arguments)
        if "recipe" in given:
            pretrains = arguments[0] == "pretrain"
            names = pretrain_recipe_names() if pretrains else recipe_names()
            file = "my-pretraining.yaml" if pretrains else "my-recipe.yaml"
            shown = [b.text for b in ALL if b.page == block.page and b.language == "yaml"]
            files = [saved[1] for text in shown if (saved := re.match(r"# (\S+\.yaml)\n", text))]
            assert given["recipe"] in [*names, file, *files]
        if "study" in given:
            assert given["study"] in [*study_names(), *collection_names()]
        if given.get("attacks"):  # a report may choose none
            names = [text for text in given["attacks"].split(",") if text != "clean"]
            assert all(plan(text, Threat("linf", 1 / 255)).name == text for text in names)
            assert load_suite(given["sets"]).sets
            assert all(parse_eps(text) > 0 for text in given["eps"].split(","))


@pytest.mark.parametrize("block", [b for b in ALL if b.language in ("python", "yaml")], ids=name)
def test_python_compiles_and_recipes_fit_the_schema(block, tmp_path):
    """Also where they are not run."""
    if block.language == "python":
        compile(block.text, name(block), "exec")
    else:
        content = yaml.safe_load(block.text)
        if "axes" in content:
            assert combinations(parse_study(content, name(block)), [])
            return
        (tmp_path / "block.yaml").write_text(block.text)
        load = load_pretrain_recipe if is_pretraining(content) else load_recipe
        assert load(str(tmp_path / "block.yaml")).name


def test_the_table_of_study_keys_is_the_schema():
    """Every key of a study and only those, in order; the studies that come with the package likewise."""
    text = (ROOT / "docs" / "studies.md").read_text("utf-8").partition("## What it writes")[0]
    rows = [
        row.replace("`", "").split(", ") for row in re.findall(r"^\| (`[\w.`, ]+) \|", text, re.M)
    ]
    keys = [key for row in rows for key in row if key.partition(".")[0] in Study.model_fields]
    wanted: list[str] = []
    for key in Study.model_fields:
        if key == "axes":
            wanted += ["axes", *(f"axes.N.{name}" for name in Axis.model_fields)]
        elif key in ("choose", "figure"):
            part = {"choose": Choose, "figure": FigurePart}[key]
            wanted += [f"{key}.{name}" for name in part.model_fields]
        else:
            wanted.append(key)
    assert keys == wanted
    told = [re.findall(r"`([^`]+)`", row) for row in re.findall(r"^\| (`\w+/.*?) \|", text, re.M)]
    assert {name for names in told for name in names} == set(study_names())
    whole = (ROOT / "docs" / "studies.md").read_text("utf-8")
    assert all(f"`{name}`" in whole for name in collection_names())


def test_the_tables_of_recipes_are_what_the_recipes_say():
    """Every hardening recipe once, with its objective, radius, rate, epochs and batch."""
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    rows = [
        [cell.strip().strip("`") for cell in row.split("|")[1:-1]]
        for row in re.findall(r"^\| `\w+/.*\|$", text, re.M)
    ]
    assert sorted(row[0] for row in rows) == recipe_names()
    for name, objective, _, eps, _, optimiser, passes in rows:
        recipe = load_recipe(name)
        assert objective == recipe.objective.name
        attacked = recipe.chosen_by == "robust"
        assert eps == (format_eps(recipe.threat.eps) if attacked else "none")
        assert float(optimiser.split()[1]) == recipe.optimiser.lr
        assert passes == f"{recipe.epochs:g} x {recipe.batch}"


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_opens_with_its_command_needs_and_time(recipe):
    """And those at full size with the published numbers, or that there are none."""
    path = resources.files("zsrobust") / "recipes" / f"{recipe}.yaml"
    head = "".join(
        f"{line}\n" for line in path.read_text("utf-8").splitlines() if line.startswith("#")
    )
    assert f"zsrobust harden {recipe}\n" in head
    assert "Needs" in head
    if recipe.startswith("paper/"):
        assert "Expected: about" in head
        assert "Published" in head or recipe.endswith("-strict")


@pytest.mark.needs_data
def test_what_the_mini_commands_name_is_there():
    """Model, source and targets of the commands on photographs; nothing is measured on a target."""
    from zsrobust.data import load_card, load_suite
    from zsrobust.models import parse_spec
    from zsrobust.training.loop import open_source

    (block,) = [b for b in ALL if b.page == "docs/hardening.md" and "harden mini/tecoa" in b.text]
    harden, evaluate = (
        parse_command(words[1:]) for words in block.commands if words[0] != "export"
    )
    recipe = load_recipe(harden["recipe"])
    assert parse_spec(recipe.model).folder is not None
    assert len(open_source(recipe).indices) == recipe.source.limit
    assert [*evaluate["models"]] == [recipe.model, f"run:runs/{recipe.name}"]
    assert recipe.evaluate is not None
    asked = {"sets": evaluate["sets"], "attacks": evaluate["attacks"].split(",")}
    asked |= {"eps": [parse_eps(evaluate["eps"])], "limit": evaluate["limit"]}
    # The second command finds what the first one measured.
    assert asked == {key: getattr(recipe.evaluate, key) for key in asked}
    assert all(load_card(target).classes for target in load_suite(evaluate["sets"]).sets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_paths_are_of_no_machine(page):
    """Every relative link exists; no line holds an absolute path."""
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    relative = [link.partition("#")[0] for link in links if "://" not in link]
    missing = [link for link in relative if link and not (page.parent / link).exists()]
    assert not missing
    absolute = re.compile(r"(?:^|[\s\"'`(=:])(?:/[A-Za-z_.][\w.-]*|~/|[A-Z]:\\)")
    # A command or a place in a repository never starts with a slash, 1/255 and [in /255] never with a letter.
    assert [line for line in text.splitlines() if absolute.search(line)] == []


def test_the_index_names_every_page():
    text = (ROOT / "docs" / "index.md").read_text("utf-8")
    assert [page.name for page in PAGES if page.name not in text and page.name != "index.md"] == []


def recipe_keys(model: Any = Recipe, before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of all values, with their fields."""
    for key, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        parts = [kind for kind in kinds if hasattr(kind, "model_fields")]
        if parts:
            yield from recipe_keys(parts[0], f"{before}{key}.")
        else:
            yield before + key, field


def test_the_table_of_recipe_keys_is_the_schema():
    """Every key of a recipe and only those, in order, with its default, and whether it moves weights."""
    text = (ROOT / "docs" / "hardening.md").read_text("utf-8").partition("## The step")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| .+ \| ([^|]+) \|$", text, re.MULTILINE)
    fields = dict(recipe_keys())
    assert [key for key, _, _ in rows] == list(fields)
    least = {"name": "a", "model": "b", "source": {"set": "c"}, "optimiser": {"lr": 1.0}}
    moving = parse_recipe(least).determining()
    for key, default, moves in rows:
        if fields[key].is_required():
            assert default == "required"
        else:
            stated = yaml.safe_load(default.strip("`"))
            stated = parse_eps(stated) if stated == "1/255" else stated
            wanted = fields[key].default
            assert stated == (list(wanted) if isinstance(wanted, tuple) else wanted), key
        part = key.partition(".")[0]
        wanted = (
            "with `select: best`" if part == "validation" else "yes" if part in moving else "no"
        )
        assert moves == wanted, key


def test_the_table_of_pretraining_keys_is_the_schema():
    """Every key and only those, in order, with its default, and whether it moves weights."""
    text = _page("pretraining.md").partition("## The step")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| .+ \| (yes|no) \|$", text, re.MULTILINE)
    fields = dict(recipe_keys(PretrainRecipe))
    assert [key for key, _, _ in rows] == list(fields)
    least = {"name": "a", "source": {"set": "c"}, "optimiser": {"lr": 1.0}}
    least["architecture"] = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}
    moving = parse_pretrain_recipe(least).determining()
    for key, default, moves in rows:
        if fields[key].is_required():
            assert default == "required", key
        else:
            wanted = fields[key].get_default(call_default_factory=True)
            wanted = list(wanted) if isinstance(wanted, tuple) else wanted
            assert yaml.safe_load(default.strip("`")) == wanted, key
        assert (moves == "yes") == (key.partition(".")[0] in moving), key


def test_the_table_of_public_weights_is_the_loaders():
    text = (ROOT / "docs" / "models.md").read_text("utf-8")
    activation = {True: "QuickGELU", False: "GELU", None: "not verified"}
    for row in public_weights():
        wanted = f"| `{row.spec}` | {row.method} | {row.eps or 'not stated'} |"
        wanted += (
            f" {activation[row.quick_gelu]} | {row.source} | {'refused' if row.refused else ''} |"
        )
        assert wanted in text
    assert len(re.findall(r"\| (?:QuickGELU|GELU|not verified) \|", text)) == len(public_weights())


def test_citations_in_the_code_resolve():
    """`facts 3.6` is a section of method.md, `traps 47` a rule of traps.md."""
    sections = set(re.findall(r"^#+ ([\d.]*\d)\.? ", _page("method.md"), re.MULTILINE))
    rules = [int(number) for number in re.findall(r"^(\d+)\. ", _page("traps.md"), re.MULTILINE)]
    assert rules == list(range(1, 61))
    for path in CODE:
        code = path.read_text("utf-8")
        cited = set(re.findall(r"\bfacts (\d+(?:\.\d+)?)", code))
        assert cited <= sections, path
        numbers = re.findall(r"\btraps (\d+(?:, \d+)*)", code)
        assert {int(n) for found in numbers for n in found.split(", ")} <= set(rules), path


def _page(of: str) -> str:
    return (ROOT / "docs" / of).read_text("utf-8")
