"""Feedback: what was recorded comes back, survives a kill, and is gone when it is to be gone."""

from __future__ import annotations

import io
import json
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lookalike.errors import FeedbackError
from lookalike.feedback import Feedback, Query, feedback_path
from lookalike.index import Hit

HITS = [Hit("/a", 0.9), Hit("/b", 0.8), Hit("/c", 0.7)]


@pytest.fixture
def store(tmp_path: Path):
    with Feedback(tmp_path / "the.feedback") as opened:
        yield opened


def test_a_search_comes_back_as_it_was(store: Feedback) -> None:
    """Query, answers in order, clicks in order of the first, judgements by the last word."""
    query = Query(text="red shoes 👟", key="/q.jpg", picture=b"\xff\xd8", liked=("/l",), disliked=("/d", "/e"))
    number = store.record(query, HITS, person="ann", at=12.5)
    store.click(number, "/c")
    store.click(number, "/a")
    store.click(number, "/c")
    store.judge(number, "/a", True)
    store.judge(number, "/b", True)
    store.judge(number, "/b", False)
    store.judge(number, "/c", True)
    store.judge(number, "/c", None)

    [found] = store.searches()
    assert found.query == query
    assert (found.id, found.at, found.person) == (number, 12.5, "ann")
    assert found.shown == ("/a", "/b", "/c")
    assert found.scores == (0.9, 0.8, 0.7)
    assert (found.clicked, found.alike, found.unlike) == (("/c", "/a"), ("/a",), ("/b",))


def test_searches_are_read_in_order_and_in_pages(store: Feedback, monkeypatch: pytest.MonkeyPatch) -> None:
    """More searches than a page, by person, after a number, at most so many."""
    monkeypatch.setattr("lookalike.feedback._PAGE", 3)
    numbers = [store.record(Query(text=str(n)), HITS[: n % 3], person="ab"[n % 2]) for n in range(10)]

    assert [found.id for found in store.searches()] == numbers
    assert [found.query.text for found in store.searches(person="b")] == ["1", "3", "5", "7", "9"]
    assert [found.id for found in store.searches(after=numbers[3], limit=4)] == numbers[4:8]
    assert list(store.searches(limit=0)) == []
    assert len(store) == 10


def test_export_is_json_lines(store: Feedback) -> None:
    """One object per search; an uploaded picture in base64."""
    store.record(Query(picture=b"jpeg"), HITS, person="ann")
    store.record(Query(text="x"), [])
    file = io.StringIO()

    assert store.export(file) == 2
    first, second = map(json.loads, file.getvalue().splitlines())
    assert first["query"] == {"picture": "anBlZw=="}
    assert first["shown"] == ["/a", "/b", "/c"]
    assert second["query"] == {"text": "x"}


def test_a_person_is_forgotten_for_good(store: Feedback) -> None:
    """Their searches are gone, those of others stay, and no byte of them is left in the files."""
    store.record(Query(text="a secret wish"), [Hit("/hidden-place", 0.5)], person="ann")
    store.record(Query(text="shoes"), HITS, person="bob")

    assert store.forget(person="ann") == 1
    assert [found.person for found in store.searches()] == ["bob"]
    kept = b"".join(path.read_bytes() for path in store.path.parent.iterdir())
    assert b"secret" not in kept
    assert b"hidden-place" not in kept
    assert b"shoes" in kept


def test_an_item_is_forgotten_wherever_it_was(store: Feedback) -> None:
    """As a query, as an example, as an answer; an item whose name only begins alike stays."""
    store.record(Query(key="/a"), HITS)
    store.record(Query(liked=("/a", "/b")), HITS)
    store.record(Query(liked=("/b",), disliked=("/a",)), HITS)
    store.record(Query(text="x"), HITS)
    store.record(Query(key="/ab"), [Hit("/ab", 1.0)])

    assert store.forget(item="/a") == 4
    assert [(found.query, found.shown) for found in store.searches()] == [
        (Query(text="x"), ("/b", "/c")),
        (Query(key="/ab"), ("/ab",)),
    ]


def test_numbers_are_never_used_again(store: Feedback) -> None:
    """A late click cannot land on somebody else's search."""
    first = store.record(Query(text="x"), HITS, person="ann")
    store.forget(person="ann")
    assert store.record(Query(text="y"), HITS) > first


@pytest.mark.parametrize("call", ["click", "judge"])
def test_reactions_need_a_search_that_showed_the_item(store: Feedback, call: str) -> None:
    """An unknown search and an item that was not shown are refused."""
    number = store.record(Query(text="x"), HITS)
    more = (True,) if call == "judge" else ()
    with pytest.raises(FeedbackError, match="did not show '/z'"):
        getattr(store, call)(number, "/z", *more)
    with pytest.raises(FeedbackError, match="search 77 is not recorded"):
        getattr(store, call)(77, "/a", *more)


def test_bad_calls_and_files_say_so(tmp_path: Path, store: Feedback) -> None:
    """Empty query, both or neither to forget, closed, foreign, newer, missing, no place beside the index."""
    with pytest.raises(FeedbackError, match="needs words"):
        Query()
    for arguments in ({}, {"person": "a", "item": "b"}):
        with pytest.raises(FeedbackError, match="one of the two"):
            store.forget(**arguments)
    store.close()
    store.close()
    with pytest.raises(FeedbackError, match="closed"):
        len(store)

    (tmp_path / "text").write_text("not a database, but a text that is long enough to be one" * 20)
    with pytest.raises(FeedbackError, match="not a database"):
        Feedback(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE thing (a)")
    other.close()
    with pytest.raises(FeedbackError, match="something else"):
        Feedback(tmp_path / "other")
    with sqlite3.connect(store.path) as newer:
        newer.execute("PRAGMA user_version = 9")
    newer.close()
    with pytest.raises(FeedbackError, match="format 9"):
        Feedback(store.path)
    with pytest.raises(FeedbackError, match="no feedback at"):
        Feedback(tmp_path / "none", make=False)
    with pytest.raises(FeedbackError, match="cannot open"):
        Feedback(tmp_path / "no" / "folder")
    with pytest.raises(FeedbackError, match="name a file"):
        feedback_path("http://localhost:6333/pictures")
    assert feedback_path("shop/pictures.index/") == Path.cwd() / "shop" / "pictures.index.feedback"


def test_only_the_owner_may_read_it(store: Feedback) -> None:
    """What people look for is nobody else's business."""
    assert store.path.stat().st_mode & 0o077 == 0


def test_threads_share_a_store_and_processes_a_file(store: Feedback) -> None:
    """Four threads and a second opener write at once; nothing is lost and no number is given twice."""
    numbers: list[int] = []

    def write(target: Feedback, name: str) -> None:
        for _ in range(25):
            number = target.record(Query(text="x"), HITS, person=name)
            target.judge(number, "/b", True)
            numbers.append(number)

    with Feedback(store.path) as other:
        threads = [threading.Thread(target=write, args=(store if n % 2 else other, str(n))) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(numbers)) == 100 == len(store)
    assert all(found.alike == ("/b",) for found in store.searches())


def test_what_was_recorded_survives_kill(tmp_path: Path) -> None:
    """kill -9 in the middle of writing: every number that was answered is there, and the file opens."""
    code = (
        "import sys; from lookalike.feedback import *; from lookalike.index import Hit\n"
        "store = Feedback(sys.argv[1])\n"
        "while True: print(store.record(Query(text='x'), [Hit('/a', 1.0)] * 50), flush=True)"
    )
    place = str(tmp_path / "the.feedback")
    with subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE, text=True) as writer:
        answered = [int(writer.stdout.readline()) for _ in range(40)]
        writer.send_signal(signal.SIGKILL)
        answered += [int(line) for line in writer.stdout.read().split("\n")[:-1]]

    with Feedback(place) as store:
        found = list(store.searches())
    assert {search.id for search in found} >= set(answered)
    assert all(len(search.shown) == 50 for search in found)
