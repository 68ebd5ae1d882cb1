"""Reports: what is in them, what stays out of them, and what is said of files that are no results."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.cli import main
from lookalike.errors import ReportError
from lookalike.evaluate import evaluate
from lookalike.metrics import Interval
from lookalike.report import charts, report
from lookalike.report.blocks import Bar, Lines, Measured, Series
from lookalike.report.html import PICTURES
from lookalike.results import evaluation_document

TINY = str(Path(__file__).parent / "data" / "tiny")
HOSTILE = "<img src=x onerror=alert(1)> & \"quotes\" 'single' | *stars*"
MADE = {"command": "lookalike x", "date": "2026-01-01", "machine": "2 CPU cores", "versions": {"lookalike": "0.1.0"}}


def interval(mean: float, width: float = 0.05, count: int = 100) -> dict:
    return {"mean": mean, "low": mean - width, "high": mean + width, "count": count}


@pytest.fixture(scope="module")
def evaluated(tiny, draw_classes, tmp_path_factory) -> tuple[Path, dict]:
    """A folder with a result and its pictures, and the document."""
    home = tmp_path_factory.mktemp("evaluated")
    draw_classes(home / "pictures", classes=6, pictures=4)
    results = evaluate(tiny, home / "pictures", full=True)
    document = evaluation_document(results, "lookalike evaluate pictures")
    document["settings"]["source"] = "pictures"
    (home / "results.json").write_text(json.dumps(document))
    return home, document


def ladder() -> dict:
    row = {"what": "One sentence.", "minutes": 0.5, "steps": None, "failed": None}
    both = {"r_at_1": interval(0.5), "map_at_r": interval(0.3)}
    return {
        "kind": "ladder",
        "title": "The ladder on shoes",
        "made": MADE,
        "fingerprint": "ab" * 32,
        "minutes": 12.5,
        "settings": {"split": "whole classes", "metric": ["r_at_1", "map_at_r"], "seed": 0},
        "pictures": {"train": 10, "test": 5},
        "classes": {"train": 3, "test": 2},
        "rows": [
            {"name": "chance", "measures": both, "over_default": {"r_at_1": interval(-0.2)}, **row},
            {"name": "default", "measures": both, "over_default": None, **row},
            {"name": "triplet", "measures": {}, "over_default": None, **row, "failed": "no negatives", "steps": 5},
        ],
    }


def classifiers() -> dict:
    figures = {"precision": 0.5, "recall": 0.6, "f1-score": 0.55, "support": 4.0}
    row = {
        "name": "alexnet",
        "start": "scratch",
        "training": 0.99,
        "validation": 0.5,
        "test": interval(0.45),
        "macro_f1": 0.41,
        "minutes": 3.0,
        "parameters": 1234567,
        "overfitting": True,
        "report": {"hats": figures, "shoes": figures, "accuracy": 0.45, "macro avg": figures},
        "confusion": [[3, 1], [2, 2]],
        "curve": [
            {"step": 1, "minutes": 0.1, "loss": 2.0, "validation_loss": 2.1, "validation_accuracy": 0.2},
            {"step": 9, "minutes": 0.9, "loss": 1.0, "validation_loss": 1.9, "validation_accuracy": 0.5},
        ],
    }
    svm = row | {"name": "svm-pixels", "start": "features", "parameters": None, "overfitting": False, "curve": []}
    return {
        "kind": "classifiers",
        "title": "Two categories",
        "made": MADE,
        "fingerprint": "cd" * 32,
        "minutes": 6,
        "categories": ["hats", "shoes"],
        "distribution": {
            "train": {"hats": 10, "shoes": 30},
            "validation": {"hats": 2, "shoes": 2},
            "test": {"hats": 4},
        },
        "settings": {"labels": "kind", "seed": 0},
        "rows": [row, svm],
    }


@pytest.fixture
def run_folder(tmp_path) -> Path:
    place = tmp_path / "shoes.run"
    place.mkdir()
    (place / "config.toml").write_text('name = "shoes"\n\n[loss]\nkind = "triplet"\n')
    data = {"fingerprint": "ef" * 32, "pictures": {"train": 10}, "classes": 3, "notes": ["1 class of one picture"]}
    (place / "data.json").write_text(json.dumps(data))
    lines = [
        {"step": 10, "loss": 2.5, "active_triplets": 0.5, "effective_rank": 9.0, "pictures_per_second": 100.0},
        {"step": 10, "validation/map_at_r": 0.2, "validation/one_shot": 0.6},
        {"step": 20, "loss": 1.5, "active_triplets": None, "effective_rank": 8.0, "pictures_per_second": 90.0},
        {"step": 20, "validation/map_at_r": 0.4, "validation/one_shot": 0.8},
    ]
    (place / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 30, "lo')
    verdict = {
        "text": "better than the base",
        "ours": {"map_at_r": interval(0.5)},
        "theirs": {"map_at_r": interval(0.3)},
        "differences": {"map_at_r": interval(0.2)},
    }
    tried = [{"name": "flip averaging", "value": 0.5, "difference": interval(0.1), "kept": True}]
    told = {"steps": 20, "minutes": 1.5, "kept_step": 20, "device": "cpu", "precision": "fp32", "processes": 1}
    (place / "report.json").write_text(json.dumps({**told, "warnings": [], "retrieval": tried, "verdict": verdict}))
    same = {"purpose": "same", "value": 0.7, "rate": 0.01, "rates": {"false_accept": 0.01}, "count": 50}
    bins = [{"predicted": 0.2, "observed": 0.25, "count": 9}, {"predicted": 0.8, "observed": 0.7, "count": 9}]
    curve = {"points": [[0, 0], [1, 1]], "bins": bins, "expected_calibration_error": 0.075}
    calibration = {"pictures": 10, "classes": 3, "same": same, "curve": curve}
    (place / "thresholds.json").write_text(json.dumps({"same": 0.7, "calibration": calibration}))
    return place


class Checked(HTMLParser):
    """Reads a page as a browser would: every tag closed, no address but of data, every name once."""

    VOID = ("meta", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.names, self.addresses, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open
        assert len(self.names) == len(set(self.names))
        assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in self.addresses)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name == "id":
                self.names.append(value)
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.addresses.append(value)
        if tag not in self.VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-5:])
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def write(place: Path, document: dict) -> Path:
    place.write_text(json.dumps(document))
    return place


def test_a_report_of_everything_is_one_page_that_loads_nothing(evaluated, run_folder, tmp_path):
    home, document = evaluated
    places = [
        home / "results.json",
        write(tmp_path / "l.json", ladder()),
        write(tmp_path / "c.json", classifiers()),
        run_folder,
    ]
    text = report(places, title="All of it")
    page = Checked(text)
    told = " ".join(page.text)
    assert "url(" not in re.sub(r"url\(data:image/jpeg;base64,[A-Za-z0-9+/=]+\)", "", text)
    assert "@import" not in text and "fetch(" not in text
    assert page.tags.count("img") == sum(
        1 + len(query["neighbours"]) for kind in ("best", "worst") for query in document["queries"][kind]
    )
    for wanted in (
        "All of it",
        "MAP@R",
        "The ladder on shoes",
        "no negatives",
        "alexnet ⚠ over-fits",
        "Two categories",
    ):
        assert wanted in told
    for wanted in ("Better than the base.", "flip averaging", "expected calibration error 0.075", "one-shot accuracy"):
        assert wanted in told
    for wanted in (document["fingerprint"][:16], "lookalike evaluate pictures", "efefefefefefefef", "12.5 minutes"):
        assert wanted in told
    assert text.count('class="dot') >= document["pictures"]
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text and 'lang="en"' in text


def test_right_and_wrong_differ_in_more_than_colour(evaluated):
    text = report([evaluated[0] / "results.json"])
    assert 'aria-label="right">✓' in text and 'aria-label="wrong">✗' in text
    assert "dashed var(--bad)" in text


def test_names_and_labels_are_text_and_nothing_else(evaluated, tmp_path):
    document = copy.deepcopy(evaluated[1])
    for query in document["queries"]["best"]:
        query["path"] = query["label"] = HOSTILE
        query["neighbours"][0] |= {"path": f"{HOSTILE}\x00\udcff.jpg", "label": HOSTILE}
    document["map"]["pictures"][0] |= {"label": HOSTILE, "path": HOSTILE}
    document["encoder"]["name"] = document["made"]["command"] = document["protocol"] = HOSTILE
    document["classes"][0]["class"] = document["confusion"]["classes"][0] = HOSTILE
    document["confusion"]["pairs"] = [{"true": HOSTILE, "taken_for": HOSTILE, "count": 2}]
    document["notes"] = [HOSTILE, "half a character \ud800"]
    place = write(tmp_path / "results.json", document)
    text = report([place], title=HOSTILE)
    page = Checked(text)
    assert "<img src=x" not in text
    assert HOSTILE in " ".join(page.text)
    assert page.tags.count("script") == 1
    markdown = report([place], title=HOSTILE, form="markdown")
    assert "<img" not in markdown.replace("\\<img", "")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all("\\|" in line or len(re.findall(r"(?<!\\)\|", line)) >= 3 for line in rows)


def test_pictures_that_are_gone_have_a_placeholder(evaluated, tmp_path):
    place = write(tmp_path / "results.json", evaluated[1])
    text = report([place])
    assert "no such file" in text and "<img" not in text
    assert re.search(r"[\d,]+ could not be shown", text)
    assert "<img" in report([place], pictures=evaluated[0] / "pictures")


def test_pictures_are_found_from_beside_the_file_and_from_here(evaluated, tmp_path, monkeypatch):
    home, document = evaluated
    monkeypatch.chdir(tmp_path)
    assert "<img" in report([home / "results.json"])
    monkeypatch.chdir(home)
    assert "<img" in report([write(tmp_path / "elsewhere.json", document)])


def test_there_is_an_end_to_how_many_pictures_a_report_holds(evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr("lookalike.report.html.PICTURES", 10)
    text = report([evaluated[0] / "results.json"])
    assert text.count("<img") == 10 and "not shown" in text
    assert PICTURES == 2000


def test_heat_maps_are_added_where_an_encoder_is_given(evaluated, tiny):
    plain, explained = (report([evaluated[0] / "results.json"], explained_by=who) for who in (None, tiny))
    assert "What made them alike" in explained and "What made them alike" not in plain
    assert explained.count("<img") > plain.count("<img")
    Checked(explained)


def test_what_one_would_rather_see_than_count_is_there(evaluated):
    _, document = evaluated
    assert document["map"]["method"] == "t-SNE" and len(document["map"]["pictures"]) == 24
    text = report([evaluated[0] / "results.json"])
    assert text.count('tabindex="0" style="left:') == 1  # one stop on the map; arrows go on from it
    assert "ArrowRight" in text


def test_markdown_holds_the_same_numbers(evaluated, run_folder, tmp_path):
    home, document = evaluated
    places = [home / "results.json", write(tmp_path / "l.json", ladder()), write(tmp_path / "c.json", classifiers())]
    text = report([*places, run_folder], form="markdown")
    assert "<" not in text.replace("\\<", "") and "base64" not in text
    found = document["measures"]["map_at_r"]
    assert f"| MAP@R | {found['mean']:.4f} [{found['low']:.4f}, {found['high']:.4f}] |" in text
    assert "| chance | 0.5000 [0.4500, 0.5500] | -0.2000 [-0.2500, -0.1500] | 0.5 | – |" in text
    assert "loss: 2.5 at 10, 1.5 at 20; lowest 1.5, highest 2.5." in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_a_run_that_goes_on_is_told_as_far_as_it_is(run_folder):
    for name in ("report.json", "thresholds.json", "data.json"):
        (run_folder / name).unlink()
    text = report([run_folder])
    assert "has not ended" in text and "Training" in text
    (run_folder / "metrics.jsonl").unlink()
    assert "has not ended" in report([run_folder])


def test_a_bundle_tells_its_verdict_and_how_reliable_its_thresholds_are(run_folder, tmp_path):
    manifest = {"name": "shoes", "dim": 8, "data": json.loads((run_folder / "data.json").read_text())}
    manifest["metrics"] = json.loads((run_folder / "report.json").read_text())["verdict"]
    manifest["thresholds"] = json.loads((run_folder / "thresholds.json").read_text())
    (tmp_path / "shoes.bundle").mkdir()
    write(tmp_path / "shoes.bundle" / "manifest.json", manifest)
    text = " ".join(Checked(report([tmp_path / "shoes.bundle"])).text)
    assert "Better than the base." in text and "expected calibration error 0.075" in text and "efefefef" in text
    assert "tiny" in report([TINY])


def test_a_folder_of_results_is_taken_for_what_it_holds(tmp_path):
    write(tmp_path / "classifiers.json", classifiers())
    assert "Two categories" in report([tmp_path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("kind"), r"r\.json is no results file: its key `kind` should be one of evaluation, ladder"),
        (lambda d: d.update(kind="recipe"), "no results file"),
        (lambda d: d["measures"]["map_at_r"].pop("low"), r"r\.json: measures\.map_at_r\.low is missing"),
        (
            lambda d: d["measures"]["map_at_r"].update(mean="high"),
            r"measures\.map_at_r\.mean should be a number, got 'h",
        ),
        (lambda d: d["measures"]["map_at_r"].update(mean=float("nan")), r"should be a number, got nan"),
        (lambda d: d.update(measures=[]), r"measures should be a table of names"),
        (lambda d: d.update(measures={}), r"measures should be at least one measure"),
        (lambda d: d["queries"]["worst"][1].update(path=3), r"queries\.worst\[1\]\.path should be a text, got 3"),
        (lambda d: d["queries"]["best"][0]["neighbours"][0].update(relevant=1), "should be true or false"),
        (lambda d: d["confusion"].update(counts=[[1]]), r"confusion\.counts should be 6 rows of 6 counts"),
        (lambda d: d["confusion"]["counts"][0].__setitem__(0, -1), r"counts\[0\]\[0\] should be a whole number"),
        (lambda d: d["map"].update(pictures=5), r"map\.pictures should be a list"),
        (
            lambda d: d["map"]["pictures"][0].update(path="\ud800"),
            r"map\.pictures\[0\]\.path should be the name of a file",
        ),
        (lambda d: d.update(made="by hand"), r"made should be a table of names"),
    ],
)
def test_what_is_malformed_is_named(change, message, evaluated, tmp_path):
    document = copy.deepcopy(evaluated[1])
    change(document)
    place = write(tmp_path / "r.json", document)
    with pytest.raises(ReportError, match=message):
        report([place])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "is not JSON"),
        ("a.json", b"[" * 100_000, "is not JSON"),
        ("a.json", b"\xff\xfe", "not text in UTF-8"),
        ("a.json", b"[1, 2]", "no results file"),
        ("a.json", b"3", "no results file"),
        (None, b"", "cannot read .*gone"),
    ],
)
def test_what_is_no_result_is_refused(name, content, message, tmp_path):
    place = tmp_path / (name or "gone.json")
    if name:
        place.write_bytes(content)
    with pytest.raises(ReportError, match=message):
        report([place])
    with pytest.raises(ReportError, match="no run folder"):
        report([tmp_path / ".."])


def test_damage_in_a_run_names_file_and_line(run_folder):
    (run_folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\nrubbish\n{"step": 2, "loss": 1}\n')
    with pytest.raises(ReportError, match=r"metrics\.jsonl, line 2 is not JSON"):
        report([run_folder])
    (run_folder / "metrics.jsonl").write_text('{"step": 1, "loss": "low"}\n')
    with pytest.raises(ReportError, match=r"metrics\.jsonl, line 1: loss should be a number"):
        report([run_folder])


def test_the_commands_go_together(draw_classes, tmp_path, monkeypatch, capsys):
    draw_classes(tmp_path / "pictures", classes=4, pictures=4)
    monkeypatch.chdir(tmp_path)
    main(["evaluate", "pictures", "--model", TINY, "--compare", TINY, "--to", "results.json", "--seed", "3"])
    document = json.loads(Path("results.json").read_text())
    assert document["kind"] == "evaluation" and document["minutes"] >= 0
    assert document["made"]["command"] == (
        "lookalike evaluate pictures --model tiny --compare tiny --seed 3 --to results.json"
    )
    assert set(document["compared"]) == {"theirs", "differences"}
    main(["report", "results.json", "--to", "report.html", "--explain", "--model", TINY])
    main(["report", "results.json", "--to", "report.md"])
    capsys.readouterr()
    Checked(Path("report.html").read_text())
    assert Path("report.md").read_text().startswith("# Lookalike report")
    for arguments, status in ((["--to", "report.pdf"], 2), (["--to", "x.html", "--model", TINY], 2)):
        with pytest.raises(SystemExit) as stop:
            main(["report", "results.json", *arguments])
        assert stop.value.code == status
    with pytest.raises(SystemExit) as stop:
        main(["report", "pictures", "--to", "x.html"])
    assert stop.value.code == 1 and "no run folder" in capsys.readouterr().err


# ── drawings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def points_of(path: str) -> np.ndarray:
    return np.array([[float(each) for each in pair.split()] for pair in path.strip("M").split("L")])


def test_curves_are_where_their_numbers_say():
    chart = Lines("loss", "step", "loss", [Series("a", [(0, 1), (5, 0.5), (10, 0)])], box=(0, 10, 0, 1), diagonal=False)
    found = points_of(re.search(r'class="line s0" d="([^"]+)"', charts.lines(chart))[1])
    assert found[0] == pytest.approx([charts.LEFT, charts.TOP])
    assert found[2] == pytest.approx([charts.WIDTH - charts.RIGHT, charts.HEIGHT - charts.BOTTOM])
    assert found[1] == pytest.approx((found[0] + found[2]) / 2)


def test_a_logarithmic_axis_has_its_decades():
    chart = Lines(
        "ROC", "far", "tar", [Series("a", [(0, 0), (0.001, 0.5), (0.1, 0.8), (1, 1)])], (0.001, 1, 0, 1), log=True
    )
    text = charts.lines(chart)
    found = points_of(re.search(r'class="line s0" d="([^"]+)"', text)[1])
    assert len(found) == 3  # there is no logarithm of 0
    assert found[1, 0] - found[0, 0] == pytest.approx(2 * (found[2, 0] - found[1, 0]), abs=0.2)
    assert all(f">{label}<" in text for label in ("0.001", "0.01", "0.1", "1"))


@pytest.mark.parametrize(
    "points", [[], [(1, 1)], [(1, 1), (2, 1)], [(0, 0), (1, float("nan"))], [(n, n) for n in range(5000)]]
)
def test_any_points_can_be_drawn(points):
    text = charts.lines(Lines("title <b>", "x", "y", [Series("a", points)]))
    assert "<b>" not in text and "nan" not in text
    assert len(text) < 20_000


def test_long_curves_keep_their_ends():
    chart = Lines("t", "x", "y", [Series("a", [(n, n) for n in range(5000)])], box=(0, 4999, 0, 4999))
    found = points_of(re.search(r'class="line s0" d="([^"]+)"', charts.lines(chart))[1])
    assert len(found) == charts.POINTS
    assert found[-1] == pytest.approx([charts.WIDTH - charts.RIGHT, charts.TOP])


def test_intervals_and_bars_stay_inside_their_track():
    drawn = charts.interval(Measured(Interval(2.0, -1.0, 5.0, 9), (0.0, 1.0)))
    assert 'cx="116' in drawn and "M4" in drawn
    assert 'width="0"' in charts.bar(Bar(3, 0)) and 'width="120"' in charts.bar(Bar(9, 3))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.12345, "0.123"), (1234567, "1,234,567"), (float("inf"), "inf")]
)
def test_numbers_are_short(value, text):
    assert charts.short(value) == text


def test_a_thumbnail_never_grows_a_picture(tmp_path):
    from lookalike.sheet import thumbnail

    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    assert thumbnail(tmp_path / "a.png", 64).size == (20, 10)


def test_recommendations_are_a_table_with_notes(tmp_path: Path) -> None:
    """What `lookalike recommend --judge … --to` wrote: every measure, also one that is no share, and the note."""
    document = {
        "kind": "recommendation",
        "title": "Recommendations: the same kind",
        "made": MADE,
        "fingerprint": "ab" * 32,
        "minutes": 0.5,
        "settings": {"relevant": "the same kind", "k": 10},
        "encoder": {"name": "shop"},
        "items": 120,
        "questions": 100,
        "measures": {"precision@10": interval(0.7), "novelty, bits": interval(9.5)},
        "notes": [f"2 questions do not count {HOSTILE}"],
    }
    (tmp_path / "r.json").write_text(json.dumps(document))

    page, text = (report([tmp_path / "r.json"], form=form) for form in ("html", "markdown"))

    for told in (page, text):
        assert all(word in told for word in ("shop", "precision@10", "novelty, bits", "0.700", "9.500", "120"))
    assert HOSTILE not in page
