"""`lookalike calibrate`, and the commands that use what it has chosen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.bundle import Bundle, write_bundle
from lookalike.cli import main
from lookalike.encoder import Encoder
from lookalike.thresholds import Curve

TINY = Path(__file__).parent / "data" / "tiny"


@pytest.fixture
def shapes(tmp_path: Path, draw_classes: Callable[..., Path]) -> Path:
    return draw_classes(tmp_path / "shapes", classes=8, pictures=5)


def run(*arguments: object) -> int:
    try:
        main([str(part) for part in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_a_copy_carries_thresholds_and_gives_the_same_vectors(
    shapes: Path, tmp_path: Path, tiny: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Manifest, card and output agree; the fingerprint is the old one; measured rates keep to what was asked."""
    assert run("calibrate", TINY, shapes, "--far", "0.05", "--to", tmp_path / "b", "--json") == 0
    told = json.loads(capsys.readouterr().out)["thresholds"]
    bundle = Bundle.load(tmp_path / "b")

    assert bundle.manifest["thresholds"] == told and bundle.fingerprint == tiny.fingerprint
    details = told["calibration"]
    assert details["same"]["rate"] == 0.05 and details["same"]["rates"]["false_accept"] <= 0.05
    assert (details["part"], details["pictures"], details["classes"]) == ("shapes", 40, 8)
    assert 0 < Curve.from_document(details["curve"]).probability(0.5) < 1
    assert str(told["same"]) in (tmp_path / "b" / "README.md").read_text()

    assert run("calibrate", tmp_path / "b", shapes, "--to", tmp_path / "b") == 0  # in place, and once more
    again = Bundle.load(tmp_path / "b").manifest["thresholds"]
    card = (tmp_path / "b" / "README.md").read_text()
    assert again["same"] != told["same"] and card.count("## Thresholds") == 1 and str(told["same"]) not in card
    assert "| same |" in capsys.readouterr().out


def test_the_rest_of_a_card_stays(shapes: Path, tmp_path: Path) -> None:
    """What stood before and after the old thresholds stands there still."""
    manifest = {k: v for k, v in Bundle.load(TINY).manifest.items() if k not in ("schema", "files")}
    files: dict[str, bytes | Path] = {name: TINY / name for name in Bundle.load(TINY).manifest["files"]}
    card = b"# Mine\n\nBefore.\n\n## Thresholds\n\nstale\n\n## Licence\n\nFree.\n"
    write_bundle(tmp_path / "a", manifest, {**files, "README.md": card})
    run("calibrate", tmp_path / "a", shapes, "--to", tmp_path / "b")

    text = (tmp_path / "b" / "README.md").read_text()
    assert text.startswith("# Mine\n\nBefore.\n\n## Thresholds\n\n| purpose") and "stale" not in text
    assert text.endswith("\n\n## Licence\n\nFree.\n")


def test_near_duplicates_and_groups_are_no_false_alarms(shapes: Path, tmp_path: Path) -> None:
    """A picture saved twice does not move the threshold of duplicates to 1; a column may say the same."""
    for number in range(8):
        own = shapes / f"class{number:02}"
        Image.open(own / "0.png").save(own / "again.bmp")
    run("calibrate", TINY, shapes, "--to", tmp_path / "b")
    found = Bundle.load(tmp_path / "b").manifest["thresholds"]
    lines = [f"{path},{path.parent.name},{path.stem[:1].replace('a', '0')}" for path in sorted(shapes.rglob("*.*"))]
    table = tmp_path / "shapes.csv"
    table.write_text("\n".join(["image,kind,product", *(f"{line} {line.split(',')[1]}" for line in lines)]) + "\n")
    run("calibrate", TINY, table, "--labels", "kind", "--group", "product", "--to", tmp_path / "c")

    assert found["duplicate"] < 1
    assert Bundle.load(tmp_path / "c").manifest["thresholds"]["duplicate"] == found["duplicate"]


def test_search_and_duplicates_take_thresholds_by_name(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--min-score same is the number in the bundle; without one, what to do is said."""
    run("calibrate", TINY, shapes, "--to", tmp_path / "b")
    same = Bundle.load(tmp_path / "b").manifest["thresholds"]["same"]
    index, query = tmp_path / "i", shapes / "class00" / "0.png"
    run("index", shapes, "--to", index, "--model", TINY)
    capsys.readouterr()

    ask = ["search", index, query, "-k", "40", "--json"]
    assert run(*ask, "--min-score", "same", "--model", tmp_path / "b") == 0
    named = capsys.readouterr().out
    assert run(*ask, "--min-score", same) == 0
    assert named == capsys.readouterr().out
    scores = [json.loads(line)["score"] for line in named.splitlines()]
    vectors = Encoder.load(TINY).images(sorted(shapes.rglob("*.png")))
    assert len(scores) == (vectors @ vectors[0] >= same).sum() < 40

    assert run(*ask, "--min-score", "same") == 1
    said = capsys.readouterr().err
    assert "no calibrated threshold for 'same'" in said and "lookalike calibrate" in said
    assert run(*ask, "--min-score", "alike") == 2
    assert "neither a number nor one of same, duplicate" in capsys.readouterr().err


def test_a_zip_an_unreadable_picture_and_too_few(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A zipped bundle is calibrated into a folder; a broken picture is skipped; one class is not enough."""
    packed = shutil.make_archive(str(tmp_path / "tiny"), "zip", TINY)
    (shapes / "class00" / "broken.png").write_bytes(b"no picture")
    assert run("calibrate", packed, shapes, "--to", tmp_path / "b") == 0
    assert "skipped: cannot read picture" in capsys.readouterr().err
    [path] = (shapes / "class00").glob("0.png")
    assert np.allclose(Encoder.load(tmp_path / "b").images([path]), Encoder.load(TINY).images([path]))

    for number in range(1, 8):
        shutil.rmtree(shapes / f"class{number:02}")
    assert run("calibrate", TINY, shapes, "--to", tmp_path / "c") == 1
    assert "at least two" in capsys.readouterr().err and not (tmp_path / "c").exists()
