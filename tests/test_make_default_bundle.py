"""The pure parts of scripts/make_default_bundle.py: who is held out, the threshold of duplicates, the card."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_default_bundle.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module; dataclasses look for it among those imported."""
    spec = importlib.util.spec_from_file_location("make_default_bundle", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["make_default_bundle"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_near_duplicates_and_equal_names_make_one_group(script: ModuleType) -> None:
    """Pictures hang together by either, over several steps; case and spaces of a name do not count."""
    names = ["Red shirt", "blue  Shirt", "Hat", "red Shirt", "Blue shirt", "Shoe"]
    near = [0, 1, 2, 3, 2, 5]

    assert script.joined(near, names) == [0, 1, 1, 0, 1, 5]


def test_no_group_lies_on_two_sides(script: ModuleType) -> None:
    """The shares are of the groups; a group is on one side, and the same one each time."""
    groups = np.random.default_rng(0).integers(0, 200, 3000).tolist()

    sides = script.sides(groups)

    by_group: dict[int, set[str]] = {}
    for group, side in zip(groups, sides, strict=True):
        by_group.setdefault(group, set()).add(side)
    assert {len(found) for found in by_group.values()} == {1}
    counts = [sum(found == {side} for found in by_group.values()) for side in ("test", "validation", "train")]
    assert counts == [40, 20, 140]
    assert sides == script.sides(groups)
    assert sides != script.sides(groups, seed=1)


def _document() -> dict[str, Any]:
    value = {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 9}
    own = dict.fromkeys(("P@1", "P@10", "MAP@R"), value)
    recall = {"JPEG quality 80": 0.9}
    kind = {"threshold": 0.98, "false_alarms": 0.004, "queries": 9, "gallery": 90, "recall": recall}
    stage = {
        "data": {"size": [112, 112]},
        "network": {"name": "small", "dim": 64, "weights": "/home/some one/work/student.bundle"},
        "teacher": {"bundles": ["/tmp/x/a.bundle", "/tmp/x/b.bundle"], "views": 4},
        "sampler": {"classes": 8, "pictures": 1},
        "loss": {"kind": "proxy_anchor"},
        "steps": 1000,
        "minutes": 3.0,
        "machine": "2 CPU cores",
    }
    return {
        "dim": 64,
        "image": {"size": [128, 96], "fit": "crop", "crop_ratio": 0.875},
        "recipe": {"stages": [stage, stage]},
        "data": {
            "notes": [
                "2 on two sides, same file: /srv/pictures/a.jpg is /srv/pictures/b.jpg, and 3/4 of https://a.b/c"
            ],
            "sources": {"one": {"title": "One", "licence": "free", "pictures": 1234}},
        },
        "metrics": {
            "protocol": "Asked once.",
            "pictures": 10,
            "encoders": {"lookalike-default 3": own, "pixels": own},
            "differences": {"pixels": own},
        },
        "thresholds": {"duplicate": 0.98, "calibration": {"products": kind}},
    }


def test_neither_card_nor_manifest_tells_of_folders(script: ModuleType) -> None:
    """Absolute paths keep their last part; fractions and addresses stay as they are."""
    document = script.without_places(_document())

    told = json.dumps(document) + script.card(document)
    assert not [folder for folder in ("/home", "some one", "/tmp", "/srv", str(Path.home())) if folder in told]
    assert document["recipe"]["stages"][0]["network"]["weights"] == "student.bundle"
    assert document["recipe"]["stages"][0]["teacher"]["bundles"] == ["a.bundle", "b.bundle"]
    assert document["data"]["notes"] == ["2 on two sides, same file: a.jpg is b.jpg, and 3/4 of https://a.b/c"]


def test_the_card_tells_data_with_licences_figures_and_the_stages(script: ModuleType) -> None:
    """What a reader looks for is there: width before height, every table, both stages."""
    text = script.card(_document())

    assert "input 96 × 128 pixels, the middle 88 % of the short side" in text
    assert "of 8 pictures at 112 px" in text
    assert "| One | 1,234 | free |" in text
    assert "| pixels | 50.0 [40.0, 60.0] | 50.0 [40.0, 60.0] | 50.0 [40.0, 60.0] |" in text
    assert "| products: 9 among 90 | 0.98 | 0.40 % | 90.0 % |" in text
    assert "The same went on at 112 px: 1,000 steps, 3 minutes." in text
    assert "The same went on" not in script.card(
        {**_document(), "recipe": {"stages": _document()["recipe"]["stages"][:1]}}
    )
