"""A configuration is read strictly, and everything that is wrong with it is said at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lookalike.bundle import Bundle, default_path
from lookalike.errors import ConfigError
from lookalike.training.config import TrainConfig, read_config, write_config

GOOD = {"data": {"root": "pictures"}}


def problems(document: dict, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_config(document, overrides)
    return caught.value.problems


def test_the_least_configuration_is_a_root() -> None:
    """Everything else has a default, and the defaults go together."""
    config = read_config(GOOD)

    assert config.data.root == "pictures"
    assert config.problems() == []


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
    ],
)
def test_impossible_combinations_say_what_to_write(tables: dict, word: str) -> None:
    """One problem, with the remedy."""
    found = problems({**GOOD, **tables})

    assert len(found) == 1, found
    assert word in found[0]


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
