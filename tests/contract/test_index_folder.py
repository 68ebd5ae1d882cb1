"""An index in a folder: reopening, locking, interrupted work, damage."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import IndexUnavailable, ShapeError
from lookalike.index import open_index
from lookalike.index.exact import ExactIndex
from lookalike.vectors import unit

embedded = pytest.importorskip("lookalike.index.embedded")

DIM = 16


def rows_of(n: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, dim)))


@pytest.fixture
def folder(quick_folder: Path) -> Path:
    return quick_folder / "deep" / "my index ü"


@pytest.fixture
def filled(folder: Path) -> Path:
    index = open_index(folder, dim=DIM, meta={"bundle": "b1"}, fields={"word": "keyword"})
    index.add([f"k{i}" for i in range(20)], rows_of(20), [{"word": "ab"[i % 2], "i": i} for i in range(20)])
    index.close()
    return folder


def test_everything_is_there_after_reopening(filled):
    for settings in ({}, {"dim": DIM}, {"read_only": True}, {"dim": DIM, "meta": {"bundle": "other"}}):
        index = open_index(filled, **settings)
        assert (len(index), index.dim, index.meta) == (20, DIM, {"bundle": "b1"})
        assert index.location == str(filled)
        assert index.count({"word": "a"}) == 10
        (item,) = index.get(["k7"])
        assert item.payload == {"word": "b", "i": 7}
        np.testing.assert_allclose(item.vector, rows_of(20)[7], atol=1e-6)
        assert index.search(rows_of(20)[3], k=1)[0][0].key == "k3"
        index.close()


def test_a_location_is_text_or_a_path(folder):
    open_index(str(folder), dim=DIM).close()
    open_index(folder).close()


def test_another_dim_is_refused_and_both_are_named(filled):
    with pytest.raises(ShapeError, match=r"16 numbers, not 32"):
        open_index(filled, dim=32)
    open_index(filled).close()  # the failed attempt left no lock behind


def test_nothing_there(folder):
    for settings in ({}, {"read_only": True}, {"read_only": True, "dim": DIM}):
        with pytest.raises(IndexUnavailable, match=r"no index at .* make one with `lookalike index"):
            open_index(folder, **settings)
        assert not folder.exists()


def test_an_empty_folder_is_made_an_index_only_if_dim_is_given(folder):
    folder.mkdir(parents=True)
    with pytest.raises(IndexUnavailable, match="no index at"):
        open_index(folder)
    assert list(folder.iterdir()) == []
    open_index(folder, dim=DIM).close()
    open_index(folder).close()


def test_a_folder_of_something_else_is_left_alone(folder):
    folder.mkdir(parents=True)
    (folder / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(IndexUnavailable, match=r"holiday\.jpg.*empty or new"):
        open_index(folder, dim=DIM)
    with pytest.raises(IndexUnavailable, match="no index at"):
        open_index(folder)
    assert [path.name for path in folder.iterdir()] == ["holiday.jpg"]


def test_a_file_is_not_an_index(folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("x")
    with pytest.raises(IndexUnavailable, match="is a file"):
        open_index(folder, dim=DIM)


@pytest.mark.parametrize("location", ["x" * 300, "zero\0byte", "/proc/nowhere/index"])
def test_impossible_places(location):
    with pytest.raises(IndexUnavailable, match="no index can be at"):
        open_index(location, dim=DIM)


def test_unknown_quantization(folder):
    with pytest.raises(IndexUnavailable, match="'int8' or left out"):
        open_index(folder, dim=DIM, quantization="int4")


def test_read_only_refuses_changes(filled):
    index = open_index(filled, read_only=True, fields={"i": "integer"})
    for change in (lambda: index.add(["x"], rows_of(1)), lambda: index.remove(["k1"]), index.optimize):
        with pytest.raises(IndexUnavailable, match="read-only"):
            change()
    assert index.count({"i": 3}) == 1
    index.close()
    assert "i" not in json.loads((filled / "lookalike.json").read_text())["fields"]


def test_a_second_opener_in_this_process_is_told(filled):
    index = open_index(filled)
    for settings in ({}, {"read_only": True}):
        with pytest.raises(IndexUnavailable, match=rf"in use by this process \({os.getpid()}\) already: close it"):
            open_index(filled, **settings)
    index.add(["still works"], rows_of(1))
    index.close()
    open_index(filled).close()


CHILD = """
    import sys, numpy as np
    from lookalike.index import open_index, embedded
"""


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    program = textwrap.dedent(CHILD) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_readers_take_turns(filled):
    """A reader waits a moment for another process to finish; a writer is told at once."""
    holder = child(
        "import time; index = open_index(sys.argv[1]); print('open', flush=True); time.sleep(0.5); index.close()",
        filled,
    )
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(IndexUnavailable, match="in use by process"):
        open_index(filled)
    index = open_index(filled, read_only=True)
    assert len(index) == 20
    index.close()
    assert holder.wait() == 0
    holder.communicate()


def test_a_second_opener_in_another_process_is_told_who_has_it(filled, monkeypatch):
    monkeypatch.setattr("lookalike.index.embedded.PATIENCE", 0.1)
    holder = child("import time; index = open_index(sys.argv[1]); print('open', flush=True); time.sleep(60)", filled)
    try:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(IndexUnavailable, match=rf"in use by process {holder.pid} "):
            open_index(filled, read_only=True)
    finally:
        holder.kill()
        holder.communicate()
    index = open_index(filled)  # the lock died with its process
    assert len(index) == 20
    index.close()


def test_a_reader_waits_its_turn(filled):
    holder = child("index = open_index(sys.argv[1]); print('open', flush=True); sys.stdin.read()", filled)
    assert holder.stdout.readline() == "open\n"
    timer = threading.Timer(0.3, holder.kill)
    timer.start()
    with pytest.raises(IndexUnavailable, match="in use"):
        open_index(filled)  # a writer does not wait
    index = open_index(filled, read_only=True)
    assert len(index) == 20
    index.close()
    holder.communicate()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_process_that_kept_the_engine_is_named(filled):
    code = """
        import os, signal
        index = open_index(sys.argv[1])
        child = os.fork()
        if child == 0:
            signal.pause()
        index.close()
        try:
            open_index(sys.argv[1])
        except Exception as error:
            print(type(error).__name__, error)
        os.kill(child, 9)
    """
    out, _ = child(code, filled).communicate()
    assert out.startswith("IndexUnavailable")
    assert "forked from this" in out


WRITER = """
    embedded.GRAPH_FROM = 200
    folder, start = sys.argv[1], int(sys.argv[2])
    index = open_index(folder, dim=16, fields={"batch": "integer"})
    for batch in range(start, 10_000):
        rng = np.random.default_rng(batch)
        keys = [f"{batch}-{i}" for i in range(40)]
        index.add(keys, rng.normal(size=(40, 16)), [{"batch": batch, "i": i} for i in range(40)])
        if batch % 3 == 0:
            index.add([f"shared-{i}" for i in range(10)], rng.normal(size=(10, 16)), [{"batch": batch}] * 10)
        if batch % 7 == 6:
            index.remove([f"{batch - 3}-{i}" for i in range(20)])
            print("removed", batch - 3, flush=True)
        print("added", batch, flush=True)
        if batch % 5 == 4:
            index.optimize()
"""


def check_acknowledged(folder: Path, acknowledged: set[int], removed: set[int]) -> None:
    index = open_index(folder)
    last_seen = -1
    for batch in acknowledged:
        kept = range(20, 40) if batch in removed or (batch + 3 in acknowledged and batch % 7 == 3) else range(40)
        items = index.get([f"{batch}-{i}" for i in kept])
        expected = unit(np.random.default_rng(batch).normal(size=(40, DIM)))
        for i, item in zip(kept, items, strict=True):
            if item is None and batch % 7 == 3 and i < 20:
                continue  # its removal may have happened without having been acknowledged
            assert item is not None, f"{batch}-{i} was acknowledged and is gone"
            assert item.payload == {"batch": batch, "i": i}
            np.testing.assert_allclose(item.vector, expected[i], atol=1e-6)
        last_seen = max(last_seen, batch)
    for batch in removed:
        assert index.get([f"{batch}-{i}" for i in range(20)]) == [None] * 20
    probes = sorted(acknowledged)[-5:]
    for batch in probes:  # search agrees with what get says
        query = unit(np.random.default_rng(batch).normal(size=(40, DIM)))[30]
        assert index.search(query, k=1)[0][0].key == f"{batch}-30"
        assert index.search(query, k=1, where={"batch": batch})[0][0].key == f"{batch}-30"
    assert len(index) == sum(1 for _ in index.scan()) == index.count()
    index.close()


def kill_rounds(folder: Path, rounds: int, seed: int) -> int:
    rng = random.Random(seed)
    acknowledged: set[int] = set()
    removed: set[int] = set()
    start = 0
    for _ in range(rounds):
        writer = child(WRITER, folder, start)
        first = writer.stdout.readline()
        assert first, writer.stderr.read()
        time.sleep(rng.uniform(0.01, 0.35))
        writer.kill()  # SIGKILL: no handler, no flush
        out, _ = writer.communicate()
        for line in (first + out).splitlines():
            word, _, number = line.partition(" ")
            if number.isdigit() and word in ("added", "removed"):
                (acknowledged if word == "added" else removed).add(int(number))
        check_acknowledged(folder, acknowledged, removed)
        start = max(acknowledged, default=start) + 2
    return len(acknowledged)


def test_a_killed_writer_loses_nothing_it_acknowledged(folder):
    assert kill_rounds(folder, 4, seed=1) > 8


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_in_many_rounds(tmp_path):
    assert kill_rounds(tmp_path / "index", 40, seed=2) > 80


def test_a_writer_killed_while_making_the_index(folder):
    maker = """
        import os
        real = embedded.{module}
        count = 0
        def dies(*arguments, **settings):
            global count
            count += 1
            if count == {call}:
                os.kill(os.getpid(), 9)
            return real(*arguments, **settings)
        embedded.{module} = dies
        open_index(sys.argv[1], dim=16, fields={{"word": "keyword"}})
    """
    stages = [("_config", 1), ("sync_folder", 1), ("sync_folder", 2), ("json_path", 1), ("check_fields", 1)]
    for module, call in stages:
        shutil.rmtree(folder, ignore_errors=True)
        process = child(maker.format(module=module, call=call), folder)
        process.communicate()
        assert process.returncode == -9, (module, call)
        if module not in ("check_fields",) and call == 1:
            with pytest.raises(IndexUnavailable, match="no index at"):
                open_index(folder)
        index = open_index(folder, dim=DIM, fields={"word": "keyword"})
        index.add(["a"], rows_of(1), [{"word": "x"}])
        assert index.count({"word": "x"}) == 1
        index.close()


def test_a_complete_shard_whose_settings_still_say_unfinished_is_made_again(folder):
    open_index(folder, dim=DIM).close()
    document = json.loads((folder / "lookalike.json").read_text())
    (folder / "lookalike.json").write_text(json.dumps({**document, "ready": False}))
    index = open_index(folder, dim=8)
    assert (index.dim, len(index)) == (8, 0)
    index.close()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "dim": "x", "late": []}', "\0"])
def test_damaged_settings_are_named(filled, text):
    (filled / "lookalike.json").write_text(text)
    for settings in ({}, {"dim": DIM}):
        with pytest.raises(IndexUnavailable, match=r"damaged: lookalike\.json"):
            open_index(filled, **settings)
    assert (filled / "shard").is_dir()


def test_lost_settings_do_not_cost_the_data(filled):
    (filled / "lookalike.json").unlink()
    for settings in ({}, {"dim": DIM}):
        with pytest.raises(IndexUnavailable, match=r"damaged: lookalike\.json is missing"):
            open_index(filled, **settings)
    assert (filled / "shard").is_dir()


def test_a_newer_format_says_update(filled):
    document = json.loads((filled / "lookalike.json").read_text())
    (filled / "lookalike.json").write_text(json.dumps({**document, "format": 99, "unknown": "later"}))
    with pytest.raises(IndexUnavailable, match=r"format 99.*update Lookalike"):
        open_index(filled)


def test_a_missing_shard_is_named(filled):
    shutil.rmtree(filled / "shard")
    with pytest.raises(IndexUnavailable, match="damaged: shard/ is missing"):
        open_index(filled, dim=DIM)


@pytest.mark.parametrize("damage", ["segment.json", "edge_config.json", "mutable_id_tracker.mappings", "config.json"])
def test_damaged_shards_fail_clearly_or_not_at_all(filled, damage, capfd):
    for path in sorted((filled / "shard").rglob(damage)):
        path.write_bytes(b"\xff\x00 not what it was")
    try:
        index = open_index(filled)
        index.search(rows_of(1), k=5)
        list(index.scan(vectors=True))
        index.close()
    except IndexUnavailable as error:
        assert str(filled) in str(error)
        assert "make the index again" in str(error)
    capfd.readouterr()  # a panic of the engine prints where it happened


def test_points_of_other_tools_are_reported(filled):
    import qdrant_edge as edge

    shard = edge.EdgeShard.load(str(filled / "shard"))
    shard.update(edge.UpdateOperation.upsert_points([edge.Point(7, rows_of(1)[0].tolist(), {"made": "by hand"})]))
    shard.close()
    index = open_index(filled)
    with pytest.raises(IndexUnavailable, match="something else writes"):
        list(index.scan())
    index.close()


def test_anyone_with_qdrants_tools_sees_natural_points(filled):
    import qdrant_edge as edge

    shard = edge.EdgeShard.load(str(filled / "shard"))
    records, _ = shard.scroll(edge.ScrollRequest(limit=100, with_payload=True))
    shard.close()
    assert {"_key": "k3", "word": "b", "i": 3} in [record.payload for record in records]


def test_quantization_stays_as_it_was_made(folder):
    open_index(folder, dim=DIM, quantization="int8").close()
    open_index(folder).close()
    open_index(folder, quantization="int8").close()
    plain = folder.parent / "plain"
    open_index(plain, dim=DIM).close()
    with pytest.raises(IndexUnavailable, match="quantization None, not int8"):
        open_index(plain, dim=DIM, quantization="int8")


def test_fields_can_be_declared_later_and_change_their_type(folder, monkeypatch):
    monkeypatch.setattr(embedded, "GRAPH_FROM", 300)
    monkeypatch.setattr(embedded, "SCAN_UP_TO", 100)
    rows, queries = rows_of(2000), rows_of(50, seed=1)
    keys = [f"k{i}" for i in range(2000)]
    payloads = [{"tenth": i % 10, "word": "ab"[i % 2]} for i in range(2000)]
    index = open_index(folder, dim=DIM, fields={"word": "bool"})
    index.add(keys, rows, payloads)
    index.optimize()
    index.close()
    oracle = ExactIndex(DIM)
    oracle.add(keys, rows, payloads)
    for _ in range(2):
        index = open_index(folder, fields={"tenth": "integer", "word": "keyword"})
        for where in ({"tenth": 3}, {"word": "a"}, {"tenth": {"range": {"lt": 5}}, "word": "b"}):
            found = [[hit.key for hit in hits] for hits in index.search(queries, where=where)]
            assert found == [[hit.key for hit in hits] for hits in oracle.search(queries, where=where)]
        index.close()
    document = json.loads((folder / "lookalike.json").read_text())
    assert document["fields"] == {"word": "keyword", "tenth": "integer"}
    assert document["late"] == ["tenth", "word"]


def test_filters_on_fields_without_an_index_are_exact(folder, monkeypatch):
    monkeypatch.setattr(embedded, "GRAPH_FROM", 300)
    monkeypatch.setattr(embedded, "SCAN_UP_TO", 50)
    rows, queries = rows_of(4000), rows_of(50, seed=1)
    keys = [f"k{i}" for i in range(4000)]
    payloads = [{"tenth": i % 10, "texts": str(i % 10)} for i in range(4000)]
    index, oracle = open_index(folder, dim=DIM, fields={"tenth": "keyword", "texts": "integer"}), ExactIndex(DIM)
    for target in (index, oracle):
        target.add(keys, rows, payloads)
        target.optimize()
    for where in ({"tenth": 3}, {"texts": "3"}, {"texts": {"any_of": ["3", 7]}}):  # indexed, but as another type
        found = [[hit.key for hit in hits] for hits in index.search(queries, where=where)]
        assert found == [[hit.key for hit in hits] for hits in oracle.search(queries, where=where)]
    index.close()


def test_large_adds_build_the_graph_by_themselves(folder, monkeypatch):
    monkeypatch.setattr(embedded, "GRAPH_FROM", 100)
    monkeypatch.setattr(embedded, "BUILD_FROM", 500)
    index = open_index(folder, dim=DIM)
    sizes = []
    for start in range(0, 3000, 100):
        index.add([f"k{i}" for i in range(start, start + 100)], rows_of(100, seed=start))
        sizes.append(index._shard.info().indexed_vectors_count)
    assert sizes[3] == 0
    assert sorted(set(sizes)) == [0, 500, 1000, 2000]  # each build doubles the graph
    index.close()


def test_failures_of_the_engine_are_index_unavailable(filled, monkeypatch):
    index = open_index(filled)

    class Broken:
        def __getattr__(self, name):
            def fail(*arguments, **settings):
                raise Exception("Service runtime error: No space left on device")

            return fail

        def info(self):
            return real.info()

    real, index._shard = index._shard, Broken()
    for ask in (
        lambda: index.add(["x"], rows_of(1)),
        lambda: index.remove(["k1"]),
        lambda: index.search(rows_of(1)),
        lambda: index.get(["k1"]),
        lambda: list(index.scan()),
        index.count,
        index.optimize,
    ):
        with pytest.raises(IndexUnavailable, match="No space left on device"):
            ask()
    index._shard = real
    index.close()


def test_no_engine_is_imported_before_it_is_needed():
    code = "import sys, lookalike.index; print([m for m in sys.modules if m.startswith('qdrant')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_memory_starts_empty():
    for settings in ({}, {"dim": DIM, "read_only": True}):
        with pytest.raises(IndexUnavailable, match="give dim"):
            open_index(":memory:", **settings)


def test_a_build_killed_between_writing_and_dropping_segments_counts_once(filled, monkeypatch):
    # What such a kill leaves is one segment twice under two names.
    segments = [path for path in (filled / "shard" / "segments").iterdir() if path.is_dir()]
    for segment in segments:
        shutil.copytree(segment, segment.with_name("00000000-0000-4000-8000-000000000000"))
    index = open_index(filled)
    assert index._shard.info().points_count == 40  # or the copy did not produce the state
    assert len(index) == index.count() == 20
    assert len(index.search(rows_of(1), k=100)[0]) == 20
    assert index.remove(["k3"]) == 1
    index.add(["k4"], rows_of(1), [{"word": "new"}])
    assert len(index) == len(list(index.scan())) == 19
    assert index.get(["k4"])[0].payload == {"word": "new"}
    index.close()
