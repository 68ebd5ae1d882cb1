"""Recording from the command line, and what may be done with it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from lookalike.catalogue import rows
from lookalike.cli import main
from lookalike.encoder import Encoder
from lookalike.feedback import Feedback, feedback_path
from lookalike.index import open_index
from lookalike.indexing import update_index


@pytest.fixture
def place(tiny: Encoder, make_pictures, tmp_path: Path) -> Path:
    folder = make_pictures(*(f"all/{n}.png" for n in range(6)))
    made = tmp_path / "shop.index"
    with closing(open_index(made, dim=tiny.dim, meta={"encoder": tiny.describe()})) as index:
        update_index(index, tiny, rows([folder]))
    return made


def run(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_a_search_is_recorded_only_when_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --record there is no file; with it, question, answers and person are there."""
    query = place.parent / "pictures" / "all" / "0.png"
    assert run("search", place, query, "-k", 3) == 0
    assert not feedback_path(place).exists()

    assert run("search", place, query, "-k", 3, "--record", "--person", "anna") == 0

    assert "recorded as search 1" in capsys.readouterr().err
    with Feedback(feedback_path(place)) as store:
        [search] = store.searches()
    assert (search.person, search.query.key, len(search.shown)) == ("anna", str(query), 3)


def test_answers_are_judged_exported_and_forgotten(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the number of the search and the picture's path; what is deleted is gone."""
    pictures = sorted((place.parent / "pictures" / "all").iterdir())
    run("search", place, "--like", pictures[0], "--like", pictures[1], "-k", 3, "--record")
    run("search", place, pictures[2], "-k", 3, "--record", "--person", "bert")
    with Feedback(feedback_path(place)) as store:
        first, second = store.searches()
    assert first.query.liked == (str(pictures[0]), str(pictures[1]))

    assert run("feedback", "judge", place, 1, first.shown[0]) == 0
    assert run("feedback", "judge", place, 1, first.shown[1], "--alike") == 0
    assert run("feedback", "judge", place, 2, second.shown[1], "--unlike") == 0
    assert run("feedback", "judge", place, 2, "nowhere.png") == 1
    capsys.readouterr()
    assert run("feedback", "export", place) == 0
    one, two = map(json.loads, capsys.readouterr().out.splitlines())
    assert (one["clicked"], one["alike"], two["unlike"]) == ([first.shown[0]], [first.shown[1]], [second.shown[1]])
    assert run("feedback", "show", place, "--json") == 0
    assert json.loads(capsys.readouterr().out)["people"] == {"": 1, "bert": 1}

    assert run("feedback", "forget", place, "--person", "bert") == 0
    assert run("feedback", "forget", place, "--item", pictures[0]) == 0
    with Feedback(feedback_path(place)) as store:
        assert len(store) == 0


def test_without_a_record_the_message_says_how_to_make_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As does training from it."""
    assert run("feedback", "show", place) == 1
    assert "--record" in capsys.readouterr().err
    assert run("train", "--feedback", place, "--to", place.parent / "new.bundle") == 1
    assert "--record" in capsys.readouterr().err
