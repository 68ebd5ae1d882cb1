"""`lookalike serve` as a process: started, asked, stopped with requests on the way, and killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lookalike
from lookalike.cli import main
from lookalike.errors import IndexUnavailable, LookalikeError, ServerError
from lookalike.index import open_index

LINES = {"Content-Type": "application/x-ndjson"}
TINY = str(Path(__file__).parent / "data" / "tiny")


@pytest.fixture
def location(draw_classes: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    folder = draw_classes(tmp_path / "pictures")
    main(["index", str(folder), "--to", str(tmp_path / "the.index"), "--model", TINY])
    capsys.readouterr()
    return str(tmp_path / "the.index")


Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """start(index, options…) runs the command until the test ends; the process and its address, once it is ready."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "lookalike", "serve", *arguments, "--port", "0", "--rate", "0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        running.append(process)
        line = process.stderr.readline()
        address = re.search(r"http://\S+", line)
        assert address, line + process.stderr.read()
        base = address[0].partition("#")[0]
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{base}v1/ready", timeout=5)
                return process, address[0]
            except OSError:
                time.sleep(0.05)
        raise AssertionError("not ready within half a minute")

    yield run
    for process in running:
        process.kill()
        process.wait()
        process.stderr.close()


def refused(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["serve", *arguments])
    return exit_.value.code


def test_it_serves_until_it_is_told_to_stop(start: Start, location: str) -> None:
    """The index belongs to the server meanwhile; SIGINT ends it, and the index is free again."""
    process, address = start(location)
    assert address.startswith("http://127.0.0.1:")
    with lookalike.connect(address) as searcher:
        assert len(searcher) == 72
        key = next(iter(searcher.by_vector([1.0] * 48, 1))).key
        assert searcher.by_key(key, 3)
        with pytest.raises(IndexUnavailable, match=r"in use by process \d+"):
            open_index(location)
        with pytest.raises(ServerError, match="--writable"):
            searcher.remove([key])
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert process.stderr.read().split() == ["interrupted"]
    open_index(location, read_only=True).close()


def test_a_token_is_made_up(start: Start, location: str) -> None:
    """--token new prints it behind the # of the address, which browsers send to nobody."""
    _, address = start(location, "--token", "new")
    base, _, token = address.partition("#token=")
    assert re.fullmatch(r"[0-9a-f]{32}", token)
    with lookalike.connect(base, token) as searcher:
        assert len(searcher) == 72
    with pytest.raises(ServerError):
        lookalike.connect(base, "x" * 32)


def test_what_cannot_be_served(location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, before anything listens."""
    for arguments, says in [
        ((location, "--host", "0.0.0.0"), "--token"),
        ((location, "--token", "short"), "16 characters"),
        ((str(tmp_path / "none"),), "no index at"),
        ((location, "--model", "default"), "was made with bundle"),
        ((location, "--host", "256.1.1.1", "--open"), "cannot listen"),
    ]:
        assert refused(*arguments) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1


def test_requests_on_the_way_are_finished(start: Start, location: str) -> None:
    """SIGTERM in the middle of an import: it is taken to its end, answered and stored; new clients are turned away."""
    process, address = start(location, "--writable")
    host, port = re.search(r"http://([^:]+):(\d+)", address).groups()
    answers: list[object] = []
    sent = threading.Event()
    stopped = threading.Event()

    def body() -> Iterator[bytes]:
        for number in range(300):
            yield json.dumps({"key": f"late/{number}", "vector": [1.0] * 48}).encode() + b"\n"
            if number == 150:
                sent.set()
                assert stopped.wait(20)

    def post() -> None:
        import http.client

        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.request("POST", "/v1/items/import", body(), LINES)
        answers.append(json.loads(connection.getresponse().read()))
        connection.close()

    thread = threading.Thread(target=post)
    thread.start()
    assert sent.wait(20)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(IndexUnavailable):
        lookalike.connect(address)
    stopped.set()
    thread.join(30)
    assert answers == [{"added": 300, "failed": 0, "errors": []}]
    process.wait(30)
    opened = open_index(location, read_only=True)
    assert opened.count() == 72 + 300
    opened.close()


@pytest.mark.slow
def test_what_was_answered_survives_kill(start: Start, location: str) -> None:
    """kill -9 under load from six clients, five times over: every acknowledged item is there, searches are right."""
    acknowledged: set[str] = set()
    for round_ in range(5):
        process, address = start(location, "--writable", "--record")
        dead = threading.Event()

        def work(number: int, address: str = address, round_: int = round_, dead: threading.Event = dead) -> None:
            try:
                with lookalike.connect(address) as client:
                    for turn in range(10_000):
                        if number % 2:
                            client.by_vector([1.0 + turn] * 48, 5)
                            continue
                        key = f"kept/{round_}/{number}/{turn}"
                        line = json.dumps({"key": key, "vector": [number + 1.0, turn + 1.0] * 24})
                        request = urllib.request.Request(f"{address}v1/items/import", line.encode(), LINES)
                        with urllib.request.urlopen(request, timeout=10) as reply:
                            assert json.load(reply)["added"] == 1
                        acknowledged.add(key)
            except (OSError, LookalikeError, ValueError):
                assert dead.wait(10), "a client failed before the server was killed"

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(1.5 + round_ / 3)
        dead.set()
        process.kill()
        process.wait()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        opened = open_index(location)
        kept = {item.key for item in opened.scan()}
        assert acknowledged <= kept
        assert len(opened) == len(kept)
        [item] = opened.get([max(acknowledged)])
        assert opened.search(item.vector[None], 1)[0][0].score == pytest.approx(1, abs=1e-5)
        opened.close()
    assert len(acknowledged) > 5
