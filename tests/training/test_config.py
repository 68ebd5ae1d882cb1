"""A configuration is read strictly, and everything that is wrong with it is said at once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lookalike.bundle import Bundle, default_path
from lookalike.errors import ConfigError
from lookalike.training.config import TrainConfig, read_config, write_config
from lookalike.training.config import checks as module
from lookalike.training.networks import names, sketch

GOOD = {"data": {"root": "pictures"}}


def problems(document: dict, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_config(document, overrides)
    return caught.value.problems


def test_the_least_configuration_is_a_root() -> None:
    """Everything else has a default, and the defaults go together."""
    config = read_config(GOOD)

    assert config.data.root == "pictures"
    assert list(module.impossible(config)) == []


def test_what_is_written_reads_the_same(tmp_path: Path) -> None:
    """The resolved document, every default written out, gives an equal configuration."""
    document = {
        "name": "letters",
        "data": {"root": "a b", "size": [56, 48], "mean": [0.5, 0.5, 0.5], "channels": 1},
        "network": {"name": "small", "freeze": "all", "options": {"widths": [8, 16, 24]}},
        "augment": {"rotate": 10, "scale": [0.9, 1.1], "turns": "batch"},
        "loss": {"kind": "triplet", "margin": 0.3, "distance": "euclidean"},
        "miner": {"kind": "semi_hard", "schedule": [[0.0, "random"], [0.3, "hard"]]},
    }
    config = read_config(document)
    (tmp_path / "config.toml").write_text(write_config(config))

    again = read_config(tmp_path / "config.toml")

    assert again == config
    assert again.data.size == (56, 48) and again.loss.options == {"margin": 0.3, "distance": "euclidean"}


def test_all_problems_are_listed_with_the_nearest_name() -> None:
    """Unknown keys, wrong types and impossible values in several tables: one error with all of them."""
    found = problems(
        {
            "data": {"root": "x", "labls": "folders", "validation": 2},
            "network": {"dim": "many"},
            "augment": {"rotation": 5},
            "lop": {},
        }
    )

    text = "\n".join(found)
    assert len(found) == 5
    assert "unknown key data.labls: did you mean 'labels'?" in text
    assert "data.validation" in text and "got 2" in text
    assert "network.dim" in text and "'many'" in text
    assert "unknown key augment.rotation: did you mean 'rotate'?" in text
    assert "unknown key lop: did you mean 'loop'?" in text


def test_names_types_and_combinations_are_listed_together() -> None:
    """A wrong type does not hide that a miner is missing, that the root is, or what an option or a range is."""
    found = problems(
        {
            "data": {"validation": "much"},
            "loss": {"kind": "triplet", "margn": 1, "margin": -1},
            "network": {"name": "resnet5", "widht": 3},
            "augment": {"rotation": 5, "rotate": 500, "flip": "often"},
            "loop": {"steps": 0, "device": "gpu"},
            "views": 3,
        },
        "seed.x=1",
    )

    words = [
        "--set 'seed.x=1': seed is no table: write seed=value",
        "unknown key augment.rotation: did you mean 'rotate'?",
        "augment.flip: ",
        "augment.rotate must be between",
        "data.validation: ",
        "unknown key network.widht: ",
        "loop.steps: ",
        "views: ",
        "data.root is missing",
        "network.name 'resnet5' is unknown: did you mean 'resnet50'",
        "loop.device 'gpu' is no device",
        "unknown key loss.margn: did you mean 'margin'?",
        "loss.margin must be at least 0, got -1",
        "loss 'triplet' needs mined triplets: add [miner] kind = \"semi_hard\"",
    ]
    for word in words:
        assert len([line for line in found if word in line]) == 1, (word, found)
    assert len(found) == len(words), found


@pytest.mark.parametrize(
    ("tables", "word"),
    [
        # The loss may well be one that mines nothing.
        ({"loss": {"kind": 3}, "miner": {"kind": "hard"}}, "loss.kind"),
        ({"los": {"kind": "triplet"}, "miner": {"kind": "hard"}}, "did you mean 'loss'"),
        ({"loss": {"kindd": "triplet"}, "sampler": {"kind": "triplets"}}, "loss.kindd"),
        # A miner was asked for, and pictures, and skip's head.
        ({"loss": {"kind": "triplet"}, "minr": {"kind": "hard"}}, "did you mean 'miner'"),
        ({"loss": {"kind": "triplet"}, "miner": "hard"}, "miner: "),
        ({"data": {"rot": "x"}}, "did you mean 'root'"),
        ({"data": 3}, "data: "),
        ({"network": {"name": "small", "dim": "x", "skip": True}}, "network.dim"),
        ({"network": {"name": "small", "freeze": 5, "options": 3}}, "network.options"),
        ({"network": {"nam": "resnet50", "freeze": 99}}, "network.nam"),
        ({"validation": {"select": "one_shot", "episodes": "many"}}, "validation.episodes"),
    ],
)
def test_what_stems_from_a_default_that_nobody_asked_for_is_not_said(tables: dict, word: str) -> None:
    """Only what is wrong for certain: the key, whose own value might have gone with the rest."""
    found = problems({**GOOD, **tables})

    assert len(found) == 1, found
    assert word in found[0]


def test_a_value_of_several_types_is_one_problem() -> None:
    """Whole numbers and "all": one line says both."""
    found = problems({**GOOD, "network": {"freeze": "some"}, "data": {"root": "x", "size": [64, "wide"]}})

    assert len(found) == 2, found
    assert "network.freeze: input should be a valid integer, or input should be 'all', got 'some'" in found
    assert any(line.startswith("data.size.1: ") for line in found)


def test_ranges_of_the_augmentation_are_listed_with_the_rest() -> None:
    """What [augment] finds itself does not hide what is wrong elsewhere."""
    found = problems({"data": {"root": "x"}, "augment": {"rotate": 500, "flip": 3}, "network": {"dimm": 3}})

    assert len(found) == 3
    assert any("augment.rotate" in line for line in found) and any("network.dimm" in line for line in found)


@pytest.mark.parametrize(
    ("tables", "word"),
    [
        ({"network": {"name": "resnet5"}}, "did you mean 'resnet50'"),
        ({"network": {"name": "small", "options": {"widht": 3}}}, "network.options.widht"),
        ({"loss": {"kind": "triplets"}}, "did you mean 'triplet'"),
        ({"loss": {"kind": "supervised_contrastive", "temprature": 1.0}}, "did you mean 'temperature'"),
        ({"loss": {"kind": "supervised_contrastive", "temperature": "hot"}}, "loss.temperature"),
        ({"loss": {"kind": "triplet"}}, "add [miner]"),
        ({"miner": {"kind": "hard"}}, "[miner] has nothing to do"),
        ({"miner": {"kind": "hardest"}, "loss": {"kind": "triplet"}}, "did you mean 'hard'"),
        ({"miner": {"schedule": [[0.0, "easy"]]}, "loss": {"kind": "triplet"}}, "miner.schedule names 'easy'"),
        ({"loss": {"kind": "pair_contrastive"}}, 'write sampler.kind = "pairs"'),
        ({"sampler": {"kind": "pairs"}}, 'write sampler.kind = "classes"'),
        ({"sampler": {"kind": "triplets"}}, "needs a loss over triplets"),
        ({"loss": {"kind": "arcface"}, "memory": {"size": 100}}, "[memory] is of no use"),
        ({"loss": {"kind": "n_pairs"}, "memory": {"size": 100}}, "[memory] is of no use"),
        ({"sampler": {"same_makers": True}}, "needs data.maker"),
        ({"data": {"root": "x", "maker": "_(1"}}, "is not a regular expression"),
        ({"network": {"skip": True, "head": "none"}}, "network.skip needs a head"),
        ({"network": {"freeze": "all", "head": "none"}}, "nothing to train"),
        ({"data": {"root": "x", "validation": 0.0}, "loop": {"patience": 2}}, "loop.patience needs held-out"),
        ({"validation": {"select": "one_shot"}}, "validation.episodes"),
        ({"data": {"root": "x", "validation": 0.5, "test": 0.5}}, "less than a tenth"),
        # What a loss, a miner or a schedule refuses itself.
        ({"loss": {"kind": "contrastive", "margin": -1}}, "loss.margin must be at least 0, got -1"),
        ({"loss": {"kind": "all_triplets", "soft": True}}, "loss.soft must be false"),
        ({"loss": {"temperature": 0}}, "loss.temperature must be above 0, got 0"),
        ({"loss": {"kind": "arcface", "margin": 200}}, "loss.margin must lie in"),
        (
            {"loss": {"kind": "triplet"}, "miner": {"kind": "distance_weighted", "cutoff": 1.9}},
            "miner.cutoff must lie between 0 and nonzero_loss_cutoff",
        ),
        ({"loss": {"kind": "triplet"}, "miner": {"kind": "random", "per_pair": 0}}, "miner.per_pair must be at least"),
        ({"loss": {"kind": "triplet"}, "miner": {"schedule": [[0.3, "hard"]]}}, "miner.schedule: stages must start at"),
        (
            {"loss": {"kind": "triplet"}, "miner": {"schedule": [[0, "random"], [0.5, "hard"], [0.2, "semi_hard"]]}},
            "and rise, below 1, got [0.0, 0.5, 0.2]",
        ),
        ({"loss": {"kind": "triplet"}, "miner": {"schedule": [[1.5, "hard"]]}}, "miner.schedule starts 'hard' at 1.5"),
        (
            {"loss": {"kind": "triplet"}, "miner": {"schedule": [[0.0, "semi_hard"]], "margin": 0.3}},
            "miner.margin has no part beside miner.schedule",
        ),
        (
            {
                "loss": {"kind": "triplet"},
                "miner": {"schedule": [[0.0, "random"], [0.5, "distance_weighted"]]},
                "network": {"normalise": False},
            },
            "network.normalise must be true",
        ),
        ({"loss": {"kind": "learned_metric"}, "sampler": {"kind": "pairs"}}, "set network.normalise = false"),
        # What a network cannot do.
        ({"network": {"pool": "gemm"}}, "network.pool must be one of average, max"),
        ({"network": {"freeze": 99}}, "network.freeze must be from 0 to 5, the stages of shufflenet_v2_x1_0"),
        ({"network": {"name": "small", "skip": True, "dim": 193}}, "network.dim must be at most 192"),
        ({"network": {"name": "small", "skip": True, "pool": "grid:2", "dim": 769}}, "network.dim must be at most 768"),
        ({"network": {"name": "small", "options": {"kernel": 2}}}, "kernel and stem_kernel must be odd"),
        ({"network": {"name": "small", "weights": "hub"}}, 'there are no weights "hub" for small'),
        ({"network": {"name": "timm:test_vit", "pool": "gem"}}, "is a network of tokens"),
        ({"network": {"name": "alexnet"}, "data": {"root": "x", "size": [16, 16]}}, "alexnet takes no pictures of 16"),
        (
            {"network": {"name": "alexnet"}, "loop": {"small_scale": 0.1, "small_until": 0.5}},
            "loop.small_scale 0.1 makes pictures of 22 × 22 pixels, which alexnet does not take",
        ),
        (
            {"network": {"name": "timm:vit_tiny_patch16_224"}, "loop": {"small_scale": 0.5, "small_until": 0.5}},
            "loop.small_scale 0.5 makes pictures of 112 × 112 pixels, which timm:vit_tiny_patch16_224 does not take",
        ),
        ({"teacher": {"bundles": ["default"]}, "network": {"head": "none"}}, "in network.dim numbers, which a head"),
        ({"teacher": {"bundles": ["default"], "area": [0.9, 0.1]}}, "teacher.area goes from the smaller"),
        ({"teacher": {"bundles": ["default"], "aspect": [2.0, 0.5]}}, "teacher.aspect goes from the narrower"),
        ({"loop": {"device": "gpu"}}, "loop.device 'gpu' is no device: write \"auto\""),
    ],
)
def test_impossible_combinations_say_what_to_write(tables: dict, word: str) -> None:
    """One problem, with the remedy."""
    found = problems({**GOOD, **tables})

    assert len(found) == 1, found
    assert word in found[0]


@pytest.mark.parametrize(
    "tables",
    [
        {"loss": {"kind": "learned_metric"}, "sampler": {"kind": "pairs"}, "network": {"normalise": False}},
        {"loss": {"kind": "learned_metric", "squash": False}, "sampler": {"kind": "pairs"}},
        {"loss": {"kind": "triplet"}, "miner": {"kind": "distance_weighted", "cutoff": 1.5, "nonzero_loss_cutoff": 2}},
        {"loss": {"kind": "triplet"}, "miner": {"kind": "semi_hard", "schedule": [[0, "random"], [0.2, "hard"]]}},
        {"network": {"name": "small", "skip": True, "dim": 192, "freeze": 4}},
        {"network": {"name": "vgg16", "freeze": 5, "pool": "gem"}, "loop": {"small_scale": 0.5, "small_until": 0.5}},
        {"network": {"name": "timm:vit_tiny_patch16_224"}, "data": {"root": "x", "size": [96, 96]}},
        {"network": {"name": "timm:vit_tiny_patch16_224"}, "loop": {"small_scale": 0.5}},  # for no part of the run
        {"network": {"freeze": 99, "pool": "average"}, "text": {"captions": True}},  # which has no part in it
        {"loop": {"device": "cpu"}},
    ],
)
def test_what_is_possible_is_taken(tables: dict) -> None:
    """At the edge of what is refused."""
    read_config({**GOOD, **tables})


def test_what_is_missing_here_is_said_before_a_run_and_not_after(tmp_path: Path, monkeypatch) -> None:
    """Weights, a base, a teacher and a GPU, all at once; a run that is over can be read without them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 0)
    (tmp_path / "empty").mkdir()
    document = {
        **GOOD,
        "network": {"weights": "lost.pth"},
        "teacher": {"bundles": ["default", "empty"]},
        "loop": {"device": "cuda:7"},
    }

    assert problems(document) == [
        'loop.device \'cuda:7\' is not there: this machine has no GPU that PyTorch can use: write "auto" or "cpu", or '
        "install PyTorch for your GPU",
        "network.weights: no weights at lost.pth: give a .safetensors or .pth file, a URL, or a bundle folder",
        "teacher.bundles: there is no bundle empty",
    ]
    assert problems({**GOOD, "base": {"recipe": "lost.toml"}}) == ["base.recipe: there is no file lost.toml"]
    assert read_config(document, to_run=False).network.weights == "lost.pth"
    read_config({**GOOD, "network": {"weights": "https://example.org/a.pth"}, "teacher": {"bundles": ["default"]}})
    with pytest.raises(ConfigError, match=r"data\.root is missing"):
        read_config({}, to_run=False)


def test_a_gpu_is_there_if_its_number_is(monkeypatch) -> None:
    """Beyond those there are, it says which there are."""
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 2)

    read_config({**GOOD, "loop": {"device": "cuda:1"}})
    assert problems({**GOOD, "loop": {"device": "cuda:7"}}) == [
        "loop.device 'cuda:7' is not there: this machine has cuda:0, cuda:1; name one, or \"auto\""
    ]


def test_a_damaged_bundle_of_weights_is_a_problem(tmp_path: Path) -> None:
    """It is named with the rest, where the size of the pictures depends on it."""
    bundle = shutil.copytree(default_path(), tmp_path / "bundle")
    (bundle / "manifest.json").write_text("{")

    (found,) = problems({**GOOD, "network": {"weights": str(bundle), "freeze": 1}})
    assert found.startswith("network.weights: ") and str(bundle) in found


def test_an_ordinary_configuration_makes_no_network(monkeypatch) -> None:
    """Reading stays a matter of a millisecond: it is drawn up only where something depends on what it is like."""
    monkeypatch.setattr(module, "sketch", lambda *_, **__: pytest.fail("made a network"))

    read_config({**GOOD, "network": {"weights": "default", "freeze": "all", "pool": "average"}})
    read_config({"data": {"root": "x", "size": [96, 128]}, "loop": {"small_scale": 0.7, "small_until": 0.5}})


@pytest.mark.parametrize("name", [name for name in names() if not name.startswith("shufflenet_v2")])
def test_networks_take_pictures_of_any_size_that_are_not_asked_about(name: str) -> None:
    """Of ours and torchvision's: from the size on from which reading does not look."""
    drawn = sketch(name)

    assert drawn is not None
    assert drawn.refusal((module._ANY, module._ANY + 1)) == ""


def test_the_root_is_asked_for() -> None:
    """Without pictures there is nothing to do."""
    assert problems({}) == ["data.root is missing: the folder of pictures, or a CSV file"]


def test_overrides_take_toml_or_plain_text() -> None:
    """Numbers, lists and truth values as TOML; a path with blanks needs no quotes."""
    config = read_config(
        {},
        ["data.root=/my pictures/all", "loop.steps=7", "data.size=[64, 64]", "loop.compile=true", "loss.kind=nt_xent"],
    )

    assert config.data.root == "/my pictures/all"
    assert config.loop.steps == 7 and config.data.size == (64, 64) and config.loop.compile is True
    assert config.loss.kind == "nt_xent"
    triplets = {**GOOD, "loss": {"kind": "supervised_contrastive", "temperature": 0.2}}
    changed = read_config(triplets, ["loss.kind=all_triplets", "loss.margin=0.4"])
    assert changed.loss.options == {"margin": 0.4}
    assert "table.key=value" in problems(GOOD, "loop.steps")[0]
    assert read_config({}, ["data.root=x", "network.name=small", "network.options.widths=[4, 8]"]).network.options


@pytest.mark.parametrize("given", [{}, {"seed": 1, "name": "a", "data": {"root": "x"}}])
@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("seed.x=1", "seed"),
        ("name.y=2", "name"),
        ("data.root.z=3", "data.root"),
        ("miner.schedule.x=1", "miner.schedule"),
        ("network.freeze.a.b=1", "network.freeze"),
    ],
)
def test_overrides_within_a_value_are_refused(given: dict, override: str, path: str) -> None:
    """A value is no table, whether the document has it or not; nothing else is lost."""
    found = problems({**GOOD, **given}, override, "loop.steps=0")

    assert len(found) == 2, found
    assert found[0] == f"--set '{override}': {path} is no table: write {path}=value"
    assert "loop.steps" in found[1]


def test_overrides_within_what_should_be_a_table_are_refused() -> None:
    """Where the document has a value in the place of a table, both are said."""
    found = problems({**GOOD, "network": 3}, "network.dim=4")

    assert found[0] == "--set 'network.dim=4': network is no table in the configuration"
    assert found[1].startswith("network: ") and len(found) == 2


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A missing file and broken TOML give the file and the reason."""
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read"):
        read_config(tmp_path / "missing.toml")
    (tmp_path / "broken.toml").write_text("[data\nroot = 3")
    with pytest.raises(ConfigError, match=r"broken\.toml: is not TOML"):
        read_config(tmp_path / "broken.toml")


def test_every_key_of_every_table_is_documented() -> None:
    """The reference is written from these sentences."""
    for name, field in TrainConfig.model_fields.items():
        table = field.annotation
        for key, inner in getattr(table, "model_fields", {}).items():
            assert inner.description or key == "kind", f"{name}.{key}"


def test_preprocessing_is_the_networks_own_unless_said_otherwise() -> None:
    """A bundle's weights bring the bundle's preprocessing; [data] has the last word."""
    shipped = read_config({"data": {"root": "x"}, "network": {"weights": "default"}}).preprocessing()
    other = read_config({"data": {"root": "x", "size": [64, 64]}, "network": {"weights": "default"}}).preprocessing()
    grey = read_config({"data": {"root": "x", "channels": 1}, "network": {"name": "resnet50"}}).preprocessing()

    own = Bundle.load(default_path()).preprocessing
    assert shipped == own
    assert other == replace(own, size=(64, 64))
    assert len(set(grey.mean)) == 1 and len(set(grey.std)) == 1
