"""The command line as a person meets it: data on stdout, complaints on stderr, exit status, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lookalike.cli import main
from lookalike.cli._common import parse_conditions
from lookalike.errors import QueryError

TINY = str(Path(__file__).parent / "data" / "tiny")


@pytest.fixture
def folder(make_pictures) -> Path:
    return make_pictures(*(f"{kind}/{n}.png" for kind in ("shoes", "hats") for n in range(5)))


@pytest.fixture
def index(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    location = str(folder.parent / "the.index")
    main(["index", str(folder), "--to", location, "--model", TINY])
    capsys.readouterr()
    return location


def fails(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    return exit_.value.code


def test_index_says_what_it_did_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stdout with every count; skipped files with their reason on stderr; a second run changes nothing."""
    location = str(folder.parent / "the.index")
    (folder / "broken.jpg").write_text("no picture")

    main(["index", str(folder), "--to", location, "--model", TINY])
    out, err = capsys.readouterr()
    assert out.startswith("added 10, replaced 0, unchanged 0, moved 0, removed 0, skipped 1: 10 pictures in ")
    assert out.count("\n") == 1
    assert err == f"skipped {folder / 'broken.jpg'}: not a picture in a known format\n"

    main(["index", str(folder), "--to", location, "--model", TINY, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert (answer["added"], answer["unchanged"], answer["encoded"], answer["total"]) == (0, 10, 0, 10)
    assert answer["skipped"] == [{"path": str(folder / "broken.jpg"), "reason": "not a picture in a known format"}]


def test_strict_stops_with_the_name_of_the_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--strict turns the first bad picture into exit status 1."""
    (folder / "broken.jpg").write_text("no picture")

    assert fails("index", str(folder), "--to", str(folder.parent / "i"), "--model", TINY, "--strict") == 1
    assert "broken.jpg" in capsys.readouterr().err


def test_prune_and_vanished(folder: Path, index: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Entries without a file are mentioned, and dropped with --prune."""
    shutil.rmtree(folder / "hats")

    main(["index", str(folder), "--to", index, "--model", TINY])
    assert "5 entries have lost their file: --prune drops them" in capsys.readouterr().err
    main(["index", str(folder), "--to", index, "--model", TINY, "--prune"])
    assert "removed 5" in capsys.readouterr().out


def test_search_prints_scores_and_paths(folder: Path, index: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line per answer, best first; the index knows its bundle, so none is named."""
    main(["search", index, str(folder / "shoes" / "3.png"), "-k", "3"])

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f" 1.000  {folder / 'shoes' / '3.png'}"
    scores = [float(line.split()[0]) for line in lines]
    assert len(lines) == 3
    assert scores == sorted(scores, reverse=True)


def test_search_prints_json_lines(folder: Path, index: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One object per answer with query, key, score, path and payload."""
    main(["search", index, str(folder / "hats" / "1.png"), str(folder / "hats" / "2.png"), "-k", "2", "--json"])

    hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [hit["query"] for hit in hits] == [str(folder / "hats" / f"{n}.png") for n in (1, 1, 2, 2)]
    assert set(hits[0]) == {"query", "key", "score", "path", "payload"}
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)
    assert hits[0]["payload"]["category"] == "hats"


def test_search_narrows(folder: Path, index: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--where and --min-score do what they say; no answer is said on stderr and is not an error."""
    query = str(folder / "hats" / "1.png")
    main(["search", index, query, "--where", "category=shoes", "--json"])
    assert {json.loads(line)["payload"]["category"] for line in capsys.readouterr().out.splitlines()} == {"shoes"}

    main(["search", index, query, "--where", "category=gloves"])
    assert capsys.readouterr() == ("", "nothing found\n")

    main(["search", index, query, "--min-score", "0.9999"])
    assert capsys.readouterr().out.count("\n") == 1


def test_search_re_ranks_as_the_bundle_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default the order is the bundle's, with --rerank off that of the scores; the scores are the same cosines."""
    bundle, location = Path(shutil.copytree(TINY, folder.parent / "bundle")), str(folder.parent / "the.index")
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "search": {"expansion": 5, "alpha": 0}}))
    main(["index", str(folder), "--to", location, "--model", str(bundle)])
    capsys.readouterr()
    answers = []
    for options in ([], ["--rerank", "auto"], ["--rerank", "off"]):
        main(["search", location, str(folder / "shoes" / "3.png"), *options])
        answers.append(capsys.readouterr().out.splitlines())

    assert answers[0] == answers[1] != answers[2]
    assert sorted(answers[0], reverse=True) == sorted(answers[2], reverse=True)
    assert answers[0][0] == answers[2][0] == f" 1.000  {folder / 'shoes' / '3.png'}"
    scores = [float(line.split()[0]) for line in answers[2]]
    assert scores == sorted(scores, reverse=True)


def test_an_unreadable_query_does_not_cost_the_other_answers(
    folder: Path, index: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The readable questions are answered, each unreadable one is named, and the exit status is 1."""
    good = str(folder / "hats" / "1.png")

    assert fails("search", index, "missing.png", good, "gone.png", "-k", "1", "--json") == 1

    out, err = capsys.readouterr()
    assert [json.loads(line)["query"] for line in out.splitlines()] == [good]
    assert [line.split()[4] for line in err.splitlines()] == ["missing.png:", "gone.png:"]


def test_search_by_examples(folder: Path, index: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--like and --unlike make one question whose examples are not among the answers."""
    liked, disliked = str(folder / "hats" / "1.png"), str(folder / "shoes" / "1.png")

    main(["search", index, "--like", liked, "--unlike", disliked, "--json"])

    paths = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]
    assert len(paths) == 8
    assert not {liked, disliked} & set(paths)


def test_search_writes_a_contact_sheet(folder: Path, index: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The sheet is one file with the pictures inside; names are escaped; pictures that are gone say so."""
    odd = folder / "<b>&.png"
    Image.new("RGB", (50, 50), "navy").save(odd)
    main(["index", str(folder), "--to", index, "--model", TINY])
    (folder / "hats" / "0.png").unlink()

    main(["search", index, str(odd), "-k", "20", "--html", str(folder / "sheet.html")])

    text = (folder / "sheet.html").read_text()
    assert text.count("<figure") == 12
    assert text.count("data:image/jpeg;base64,") == 11
    assert "no such file" in text
    assert "<b>&.png" not in text
    assert "&lt;b&gt;&amp;.png" in text
    assert "http:" not in text and "https:" not in text
    assert "default-src 'none'; img-src data:" in text


def test_duplicates_are_grouped(folder: Path, index: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Groups are separated by an empty line, led by the largest; the calibrated threshold is the default."""
    for name, size in (("1.png", 128), ("2.png", 32)):
        Image.open(folder / "hats" / name).resize((size, size), Image.Resampling.NEAREST).save(folder / f"again-{name}")
    main(["index", str(folder), "--to", index, "--model", TINY])
    capsys.readouterr()

    main(["duplicates", index])
    out, err = capsys.readouterr()
    groups = [[line.split("/")[-1] for line in block.splitlines()] for block in out.split("\n\n")]
    assert groups == [["again-1.png", "1.png"], ["2.png", "again-2.png"]]
    assert err == "2 groups, 2 pictures more than needed, cosine ≥ 0.995\n"

    main(["duplicates", index, "--json", "--threshold", "0.999", "--html", str(folder / "twins.html")])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(group["items"]) for group in found] == [2, 2]
    assert (folder / "twins.html").read_text().count("<section>") == 2


def test_info_describes_indexes_and_bundles(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What it is, how large, and which encoder made it."""
    main(["info", index])
    assert "tiny 1" in capsys.readouterr().out
    main(["info", index, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert (answer["kind"], answer["pictures"], answer["dim"]) == ("index", 10, 48)
    for bundle in (TINY, "default"):
        main(["info", bundle, "--json"])
        assert json.loads(capsys.readouterr().out)["kind"] == "bundle"


def test_the_wrong_bundle_is_named(folder: Path, index: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Searching or adding with another bundle names both and exits with 1."""
    query = str(folder / "hats" / "1.png")

    assert fails("search", index, query, "--model", "default") == 1
    assert "tiny 1" in (err := capsys.readouterr().err)
    assert "lookalike-default" in err
    assert fails("index", str(folder), "--to", index) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["search", "INDEX"], 2, "QUERY pictures and --text, or --like"),
        (["search", "INDEX", "a.png", "--like", "b.png"], 2, "QUERY pictures and --text, or --like"),
        (["search", "INDEX", "missing.png"], 1, "missing.png: no such file"),
        (["search", "INDEX", "--unlike", "missing.png"], 1, "at least one liked"),
        (["search", "nowhere.index", "a.png"], 1, "nowhere.index"),
        (["search", "INDEX", "a.png", "--where", "category"], 1, "field=value"),
        (["search", "INDEX", "a.png", "-k", "0"], 2, "k"),
        (["search", "INDEX", "a.png", "--min-score", "2"], 2, "min-score"),
        (["index", "missing-folder", "--to", "INDEX"], 1, "no such file or folder: missing-folder"),
        (["index", "missing-folder"], 2, "--to"),
        (["index", "x", "--to", "INDEX", "--model", "nothing.zip"], 1, "no bundle at nothing.zip"),
        (["info", "nowhere"], 1, "nowhere"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_mistakes_are_one_line_and_a_status(
    arguments: list[str], status: int, message: str, index: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 for wrong usage, 1 for everything that went wrong; the last line says what; never a traceback."""
    assert fails(*(index if word == "INDEX" else word for word in arguments)) == status

    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("conditions", "where"),
    [
        ([], None),
        (["category=shoes"], {"category": {"any_of": ["shoes"]}}),
        (["colour=red", "colour=blue"], {"colour": {"any_of": ["red", "blue"]}}),
        (["year=2012"], {"year": {"any_of": ["2012", 2012]}}),
        (["new=true"], {"new": {"any_of": ["true", True]}}),
        (["price>=10", "price<50.5"], {"price": {"range": {"gte": 10.0, "lt": 50.5}}}),
        (["name=a=b"], {"name": {"any_of": ["a=b"]}}),
    ],
)
def test_conditions_are_read(conditions: list[str], where: object) -> None:
    """What one types becomes the filter language."""
    assert parse_conditions(conditions) == where


@pytest.mark.parametrize("conditions", [["x"], ["=x"], ["x="], ["price<cheap"], ["x=1", "x<2"]])
def test_unreadable_conditions_are_refused(conditions: list[str]) -> None:
    """What cannot be read says how to write it."""
    with pytest.raises(QueryError):
        parse_conditions(conditions)


DRIVER = """
import os, signal, sys
from contextlib import contextmanager
import lookalike.cli.find

@contextmanager
def progress(total):
    def advance(summary, seen):
        if summary.encoded == int(sys.argv[1]):
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    yield advance

lookalike.cli.find.progress_bar = progress
lookalike.cli.main(sys.argv[3:])
"""


@pytest.mark.parametrize(("name", "status", "kept"), [("SIGKILL", -signal.SIGKILL, 512), ("SIGINT", 130, 560)])
def test_a_run_cut_short_goes_on_where_it_was(name: str, status: int, kept: int, make_pictures, tmp_path: Path) -> None:
    """kill -9 loses less than a batch, Ctrl-C nothing; the index opens and the next run encodes only the rest."""
    folder = make_pictures(*(f"{n:03}.png" for n in range(600)))
    arguments = ["index", str(folder), "--to", str(tmp_path / "i"), "--model", TINY, "--json"]

    cut = subprocess.run(
        [sys.executable, "-c", DRIVER, "560", name, *arguments], capture_output=True, text=True, timeout=120
    )
    second, third = (
        json.loads(subprocess.run([sys.executable, "-m", "lookalike", *arguments], capture_output=True).stdout)
        for _ in range(2)
    )

    assert cut.returncode == status
    assert cut.stderr.strip() == ("interrupted" if name == "SIGINT" else "")
    assert (second["unchanged"], second["encoded"], second["total"]) == (kept, 600 - kept, 600)
    assert (third["unchanged"], third["encoded"]) == (600, 0)


def test_a_closed_pipe_is_not_an_error(folder: Path, index: str) -> None:
    """`lookalike search … | head -1` ends quietly."""
    queries = " ".join(f"'{path}'" for path in sorted(folder.rglob("*.png")))
    command = f"'{sys.executable}' -m lookalike search '{index}' {queries} --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_what_the_system_refuses_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk somewhere: the file and the system's words, no traceback unless it is asked for."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")

    monkeypatch.setattr("lookalike.indexing.update_index", full)
    arguments = ["index", str(folder), "--to", str(tmp_path / "an.index"), "--model", TINY]
    assert fails(*arguments) == 1
    assert capsys.readouterr().err.endswith("error: some/file: No space left on device\n")
    with pytest.raises(OSError, match="No space"):
        main(["--debug", *arguments])


def test_help_is_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command explains itself with an example."""
    from lookalike.cli import cli

    for name in cli.commands:
        main([name, "--help"])
        assert "lookalike " + name in capsys.readouterr().out
