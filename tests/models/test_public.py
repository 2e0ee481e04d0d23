"""The table of public weights is whole, and agrees with open_clip's own."""

from zsrobust.models.public import public_file, public_hub, public_weights


def test_every_base_exists_and_has_the_activation_of_the_table() -> None:
    import open_clip

    seen = 0
    for row in public_weights():
        config = open_clip.get_model_config(row.backbone)
        assert config is not None, row.name
        if row.quick_gelu is None:
            assert row.refused
            continue
        assert bool(config.get("quick_gelu", False)) == row.quick_gelu, row.name
        cfg = open_clip.get_pretrained_cfg(row.backbone, row.start)
        assert cfg, row.base
        assert bool(cfg.get("quick_gelu", False)) == row.quick_gelu, row.name
        seen += 1
    assert seen >= 30


def test_names_are_unique_and_forms_known() -> None:
    names = [row.name for row in public_weights()]
    assert len(set(names)) == len(names)
    assert {row.form for row in public_weights()} == {
        "hub",
        "visual",
        "authors",
        "transformers",
        "fork",
    }
    for row in public_weights():
        assert bool(row.refused) == (row.form in ("transformers", "fork")), row.name


def test_rows_are_found_by_repository_and_by_file() -> None:
    fare = public_hub("chs20/fare2-clip")
    assert fare is not None
    assert (fare.method, fare.eps, fare.quick_gelu) == ("FARE", "2/255", True)
    assert fare.spec == "hf-hub:chs20/fare2-clip"
    authors = public_file("TeCoAmodel_best.pth.tar")
    assert authors is not None
    assert authors.spec == "TeCoAmodel_best.pth.tar@ViT-B-32-quickgelu:openai"
    laion = public_hub("chs20/FARE4-ViT-B-32-laion2B-s34B-b79K")
    assert laion is not None
    assert laion.quick_gelu is False
    assert public_hub("someone/else") is None
    assert public_file("mine.pt") is None
