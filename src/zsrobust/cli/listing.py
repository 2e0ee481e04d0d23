"""`zsrobust list models|attacks|objectives|adaptations|recipes|sets`."""

from __future__ import annotations

from typing import Annotated

import typer

from zsrobust.cli.output import print_json

NOUNS = ("models", "attacks", "objectives", "adaptations", "recipes", "sets")


def command(
    what: Annotated[str, typer.Argument(help=" | ".join(NOUNS))],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List what there is."""
    from zsrobust.errors import unknown_name

    if what not in NOUNS:
        raise unknown_name("list", what, NOUNS)
    rows = _rows(what)
    if as_json:
        print_json([{"name": name, "about": about} for name, about in rows])
        return
    width = max((len(name) for name, _ in rows), default=0)
    for name, about in rows:
        typer.echo(f"{name:<{width}}  {about}".rstrip())


def _rows(what: str) -> list[tuple[str, str]]:
    if what == "models":
        from zsrobust.models import model_names

        return [(entry.spec, f"({entry.where}) {entry.about}") for entry in model_names()]
    if what == "attacks":
        from zsrobust.attacks import ATTACKS, ENSEMBLES

        single = [(entry.title(name), entry.about) for name, entry in ATTACKS.items()]
        return single + [(name, ensemble.about) for name, ensemble in ENSEMBLES.items()]
    if what == "objectives":
        from zsrobust.objectives import OBJECTIVES

        return [(name, about) for name, (_, _, about) in OBJECTIVES.items()]
    if what == "adaptations":
        from zsrobust.adaptations import ADAPTATIONS

        return [(name, about) for name, (_, _, about) in ADAPTATIONS.items()]
    if what == "recipes":
        from zsrobust.training.recipe import read_recipe, recipe_names
        from zsrobust.workflows.collection_recipe import collection_names, read_collection
        from zsrobust.workflows.pretrain_recipe import pretrain_recipe_names
        from zsrobust.workflows.study_recipe import read_study, study_names

        # As the mappings that they are: a recipe that is checked brings in its adaptation, and torch.
        hardening = [(name, read_recipe(name)["title"]) for name in recipe_names()]
        made = [(name, read_recipe(name)["title"]) for name in pretrain_recipe_names()]
        studies = [(name, read_study(name, []).title) for name in study_names()]
        several = [
            (name, file.title) for name in collection_names() if (file := read_collection(name))
        ]
        return (
            [(name, f"(pretrain) {title}") for name, title in made]
            + [(name, f"(harden) {title}") for name, title in hardening]
            + [(name, f"(study) {title}") for name, title in studies]
            + [(name, f"(collection) {title}") for name, title in several]
        )
    from zsrobust.data import card_names, load_card, suite_names

    cards = [(name, load_card(name).title) for name in card_names()]
    suites = [(name, "suite") for name in suite_names()]
    return suites + cards
