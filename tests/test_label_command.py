"""`lookalike label` as a person meets it: what is told, what is refused, what is copied."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lookalike import fewshot
from lookalike.bundle import Bundle, write_bundle
from lookalike.cli import main, name

TINY = str(Path(__file__).parent / "data" / "tiny")


@pytest.fixture
def shapes(tmp_path: Path, draw_classes: Callable[..., Path]) -> tuple[Path, Path]:
    """Four pictures of each of five classes known, and two others of each in one folder, named after their class."""
    known = draw_classes(tmp_path / "known", classes=5)
    asked = tmp_path / "asked"
    asked.mkdir()
    for picture in sorted(known.glob("*/[45].png")):
        picture.rename(asked / f"{picture.parent.name}-{picture.name}")
    return known, asked


def run(*arguments: object) -> None:
    main(["label", *map(str, arguments), "--model", TINY])


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(["label", *map(str, arguments), "--model", TINY])
    return exit_.value.code, capsys.readouterr().err


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_query_gets_its_ranking(shapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """As text: the picture and its class, then classes with probability, similarity, distance, and what decided."""
    known, asked = shapes
    run(known, asked / "class01-4.png", asked / "class03-5.png", "--top", 2)
    out, err = capsys.readouterr()

    first, best, second, *_ = out.splitlines()
    assert first == f"{asked / 'class01-4.png'}: class01"
    numbers = r"\s+[\d.]+%  similarity \d\.\d{3}  distance \d\.\d{3}  "
    assert re.fullmatch(rf"  class01{numbers}{known}/class01/\d\.png", best)
    assert re.fullmatch(rf"  class0[^1]{numbers}{known}/class0[^1]/\d\.png", second)
    assert len(out.splitlines()) == 6
    assert re.fullmatch(
        r"5 classes, 20 pictures, ridge; unknown below similarity 0\.\d{3}, found on the support\n", err
    )


def test_json_holds_all_of_it(shapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A line per query; the numbers fit one another, and every picture of the folder has its class."""
    run(*shapes, "--json", "--top", 9)
    found = lines(capsys)

    assert [Path(line["query"]).name.partition("-")[0] for line in found] == [line["label"] for line in found]
    assert len(found) == 10
    for line in found:
        assert sum(one["probability"] for one in line["ranking"]) == pytest.approx(1, abs=1e-5)
        assert len(line["ranking"]) == 5
        for one in line["ranking"]:
            assert one["distance"] == pytest.approx((2 - 2 * one["similarity"]) ** 0.5, abs=1e-4)
            assert Path(one["support"]).parent.name == one["label"]
        assert line["ranking"][0]["similarity"] >= line["threshold"]


def test_pairs_tables_and_shots(shapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """label=picture and label=folder, a CSV file with its column, and the first --shots of each."""
    known, asked = shapes
    query = asked / "class02-4.png"
    run(f"one={known}/class01/0.png", f"two={known}/class02", query, "--json", "--unknown", "off")
    assert lines(capsys)[0]["label"] == "two"

    table = known.parent / "known.csv"
    rows = [f"{path.relative_to(known.parent)},{path.parent.name}" for path in sorted(known.glob("*/*.png"))]
    table.write_text("\n".join(["image,kind", *rows]))
    run(table, query, "--labels", "kind", "--shots", 2, "--json")
    out, err = capsys.readouterr()
    assert json.loads(out)["label"] == "class02"
    assert err.startswith("5 classes, 10 pictures")


def test_the_unknown(shapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A class that was not given is unknown with auto, is named with off, and everything is unknown above a high X."""
    known, asked = shapes
    shutil.rmtree(known / "class04")
    for option, label in (("auto", None), ("off", "class0"), ("1", None)):
        run(known, asked / "class04-4.png", "--unknown", option, "--json")
        found = lines(capsys)[0]["label"]
        assert found == label or (label and found.startswith(label))
    run(known, asked / "class04-4.png")
    assert capsys.readouterr().out.splitlines()[0].endswith(": unknown")


def test_where_the_threshold_comes_from(shapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The support where it can tell; else the bundle's, where it has one; else a guess that says so."""
    known, asked = shapes
    bundle = Bundle.load(TINY)
    manifest = {**bundle.manifest, "thresholds": {"unknown": 0.625}}
    manifest.pop("files")
    files = {entry: Path(TINY, entry).read_bytes() for entry in bundle.manifest["files"]}
    write_bundle(known.parent / "own.bundle", manifest, files)

    def told(*options: str) -> str:
        main(["label", str(known), str(asked), *options])
        return capsys.readouterr().err

    own = ("--model", str(known.parent / "own.bundle"))
    assert "found on the support" in told(*own)
    assert "unknown below similarity 0.625, the bundle's" in told(*own, "--shots", "1")
    err = told("--model", TINY, "--shots", "1")
    assert "one picture per class: where unknown begins is a guess, from" in err
    assert "found on the support" in err
    assert "unknown below similarity 0.500, as given" in told("--model", TINY, "--unknown", "0.5")


def test_sorting_copies_by_class(shapes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into a folder per class, unknown ones into unknown/; the pictures stay; a second run copies nothing."""
    known, asked = shapes
    shutil.rmtree(known / "class04")
    before = sorted(asked.iterdir())
    run(known, asked, "--sort-into", tmp_path / "sorted", "--json")
    out, err = capsys.readouterr()

    assert sorted(asked.iterdir()) == before
    for line in map(json.loads, out.splitlines()):
        copy = tmp_path / "sorted" / (line["label"] or "unknown") / Path(line["query"]).name
        assert line["copy"] == str(copy)
        assert copy.read_bytes() == Path(line["query"]).read_bytes()
    assert {"class00", "unknown"} <= {path.name for path in (tmp_path / "sorted").iterdir()}
    assert f"copied 10 pictures to {tmp_path / 'sorted'}, 0 there already" in err
    run(known, asked, "--sort-into", tmp_path / "sorted")
    assert "copied 0 pictures" in capsys.readouterr().err

    for inside in (asked / "sorted", known / "more"):
        code, err = fails(capsys, known, asked, "--sort-into", inside)
        assert code == 1
        assert "choose a folder outside it" in err
        assert not inside.exists()


def test_labels_cannot_lead_out_of_the_folder(
    shapes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """../x and names with slashes stay below --sort-into."""
    known, asked = shapes
    pairs = [f"../../x{n}={known}/class0{n}" for n in range(5)]
    run(*pairs, asked, "--sort-into", tmp_path / "deep" / "sorted", "--unknown", "off")
    copies = list((tmp_path / "deep").rglob("*.png"))
    assert len(copies) == 10
    assert all(path.is_relative_to(tmp_path / "deep" / "sorted" / "_" / "_") for path in copies)
    assert not list(tmp_path.glob("x*"))


def test_the_contact_sheet(shapes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Query with its class left, what decided with similarity, probability and class right; text is escaped."""
    known, asked = shapes
    (known / "class01").rename(known / "<b>1")
    run(known, asked / "class01-4.png", asked / "class02-4.png", "--html", tmp_path / "sheet.html", "--top", 2)
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6
    assert "<b>&lt;b&gt;1</b> class01-4.png" in page
    assert re.search(r"<b>\d\.\d{3}</b> \d+% &lt;b&gt;1<", page)


def test_usage(shapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to name, half a pair, and an --unknown that is nothing are wrong usage."""
    known, asked = shapes
    for arguments, message in (
        ([known], "nothing to name"),
        ([f"cat={known}/class00", f"dog={known}/class01"], "nothing to name"),
        (["cat=", asked], "write label=picture, with both"),
        ([known, asked, "--unknown", "often"], "--unknown is auto, off or a cosine from -1 to 1, got often"),
        ([known, asked, "--unknown", "1.5"], "--unknown is auto, off or a cosine from -1 to 1, got 1.5"),
    ):
        code, err = fails(capsys, *arguments)
        assert code == 2
        assert message in err


def test_a_picture_with_an_equals_sign_is_a_picture(
    shapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """What exists under the whole name is no pair."""
    known, asked = shapes
    query = shutil.copy(asked / "class00-4.png", asked / "a=b.png")
    run(known, query, "--json")
    assert lines(capsys)[0]["query"] == str(query)


def test_what_cannot_be_done_says_why(
    shapes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One class, an empty folder, too many shots, a missing query, a support without class folders."""
    known, asked = shapes
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([f"cat={known}/class00", asked], "with a single class nothing shows what a stranger looks like"),
        ([known, tmp_path / "empty"], "no pictures in"),
        ([tmp_path / "empty", asked], "holds no labelled picture: it is empty"),
        ([known, asked, "--shots", 5], "5 shots are more than there are: class00 has 4"),
        ([known, asked / "gone.png"], "no such file or folder"),
        ([asked, asked], "no folder per class"),
    ):
        code, err = fails(capsys, *arguments)
        assert code == 1
        assert message in err

    run(f"cat={known}/class00", asked, "--unknown", "off")
    assert "nothing is unknown: the only class, so every picture gets it" in capsys.readouterr().err


def test_unreadable_pictures(shapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder they are passed over and told; one named itself, or nothing readable, ends with an error."""
    known, asked = shapes
    broken = asked / "broken.png"
    broken.write_bytes(b"no picture")
    (known / "class00" / "0.png").write_bytes(b"no picture")
    run(known, asked, "--json")
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 10
    assert f"skipped: cannot read picture {known / 'class00' / '0.png'}" in err
    assert f"skipped: cannot read picture {broken}: not a picture" in err

    code, err = fails(capsys, known, broken, asked / "class00-4.png")
    assert (code, "1 of 2 pictures could not be read" in err) == (1, True)
    for picture in asked.glob("class*"):
        picture.unlink()
    code, err = fails(capsys, known, asked)
    assert (code, "1 of 1 pictures could not be read" in err) == (1, True)


def test_one_picture_under_two_labels(shapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """It is left out of both, and told; where it was the only one of a class, that is the error."""
    known, asked = shapes
    shutil.copy(known / "class00" / "0.png", known / "class01" / "copy.png")
    run(known, asked)
    err = capsys.readouterr().err
    assert "are one picture with the labels class00, class01; it can teach neither" in err
    assert "5 classes, 19 pictures" in err
    code, err = fails(capsys, f"a={known}/class00/0.png", f"b={known}/class01/copy.png", asked)
    assert code == 1
    assert "class a, b has no picture left" in err


def test_one_query_of_another_format(shapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Any picture will do: grey, with transparency, one pixel."""
    known, asked = shapes
    for mode in ("L", "RGBA"):
        Image.new(mode, (1, 1)).save(asked / f"{mode}.png")
        run(known, asked / f"{mode}.png", "--json")
        assert len(lines(capsys)) == 1


def test_methods_of_the_command_are_those_of_the_module() -> None:
    """The list is kept twice, so that help does not load NumPy."""
    assert name.METHODS == fewshot.METHODS
