"""The Python client: what `Searcher` answers, over HTTP, with the same errors."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

import lookalike
from lookalike.catalogue import rows
from lookalike.client import RemoteSearcher
from lookalike.encoder import Encoder
from lookalike.errors import ImageError, IndexUnavailable, LookalikeError, QueryError, ServerError, ShapeError
from lookalike.images import Region
from lookalike.index import Index, open_index
from lookalike.indexing import update_index
from lookalike.search import Searcher
from lookalike.server.app import create_app
from lookalike.server.settings import Settings


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_classes: Callable[..., Path]) -> Path:
    return draw_classes(tmp_path_factory.mktemp("client") / "pictures")


@pytest.fixture(scope="module")
def index(pictures: Path, tiny: Encoder) -> Index:
    opened = open_index(pictures.parent / "the.index", dim=tiny.dim, meta={"encoder": tiny.describe()})
    update_index(opened, tiny, rows([pictures]))
    return opened


class _Kept:
    """An index that outlives its servers."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def __len__(self) -> int:
        return len(self._index)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def start(index: Index, tiny: Encoder) -> Iterator[Callable[..., str]]:
    """start(settings) serves the index at a real socket and gives the address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(settings: Settings) -> str:
        app = create_app(_Kept(index), tiny, settings)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none", lifespan="on"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started or app.state.service.state == "starting":
            time.sleep(0.01)
        running.append((server, thread))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def remote(start: Callable[..., str]) -> Iterator[RemoteSearcher]:
    with lookalike.connect(start(Settings(rate=0, writable=True))) as connected:
        yield connected


def test_it_has_the_calls_of_a_searcher() -> None:
    """Every public question, with the same parameters in the same order and the same defaults."""
    for name, method in inspect.getmembers(Searcher, inspect.isfunction):
        if name.startswith("by_"):
            mine = inspect.signature(getattr(RemoteSearcher, name))
            assert str(mine) == str(inspect.signature(method)), name


def test_answers_are_those_of_a_searcher(remote: RemoteSearcher, index: Index, tiny: Encoder, pictures: Path) -> None:
    """By path, bytes, opened image, part, key, vector, examples of every kind; with options."""
    local = Searcher(tiny, index)
    path = pictures / "class04" / "3.png"
    image = Image.open(path)
    elsewhere = pictures.parent / "query.png"
    image.resize((50, 40)).save(elsewhere)
    for picture in (
        path,
        str(path),
        path.read_bytes(),
        image,
        Region(path, (0, 0, 0.5, 1)),
        Region(image, (0, 0, 1, 0.4)),
    ):
        assert remote.by_picture(picture, 5) == local.by_picture(picture, 5)
    where = {"category": {"any_of": ["class01", "class02"]}}
    assert remote.by_key(str(path), 4, where=where) == local.by_key(str(path), 4, where=where)
    vector = tiny.images([elsewhere])[0] * 3
    mine = remote.by_vector(vector, 70, min_score=0.5, distinct=False)
    theirs = local.by_vector(vector, 70, min_score=0.5, distinct=False)
    assert [hit.key for hit in mine] == [hit.key for hit in theirs]
    assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in theirs], abs=1e-6)
    liked = [str(path), elsewhere, Region(path, (0, 0, 0.5, 1)), pictures / "class05" / "1.png"]
    disliked = [(pictures / "class07" / "0.png").read_bytes()]
    mine, theirs = remote.by_examples(liked, disliked, 3), local.by_examples(liked, disliked, 3)
    assert [hit.key for hit in mine] == [hit.key for hit in theirs]
    assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in theirs], abs=1e-3)
    assert len(remote) == len(index)
    assert remote.info["encoder"]["fingerprint"] == tiny.fingerprint


def test_more_answers_than_a_page(remote: RemoteSearcher, monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    """Several requests give one list."""
    key = str(pictures / "class04" / "3.png")
    whole = remote.by_key(key, 60)
    monkeypatch.setattr("lookalike.client.PAGE", 7)
    assert remote.by_key(key, 60) == whole


def test_pictures_are_added_and_removed(remote: RemoteSearcher, index: Index) -> None:
    """More than one request takes; their items are found, and gone again."""
    images = [Image.new("RGB", (10, 10), (n, 0, 0)) for n in range(20)]
    before = len(remote)
    items = remote.add(images, [{"n": n} for n in range(20)])
    assert [item.payload["n"] for item in items] == list(range(20))
    assert remote.by_picture(images[7], 1)[0].score == pytest.approx(1, abs=1e-3)
    [item, none] = remote.get([items[3].key, "nothing"])
    assert item is not None
    assert np.allclose(item.vector, index.get([items[3].key])[0].vector)
    assert none is None
    assert remote.remove([item.key for item in items]) == 20
    assert len(remote) == before


def test_errors_are_those_of_a_searcher(remote: RemoteSearcher, pictures: Path, tmp_path: Path) -> None:
    """What the server met is raised here, with its message."""
    key = str(pictures / "class04" / "3.png")
    with pytest.raises(ImageError, match="no such file"):
        remote.by_picture(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="known format"):
        remote.by_picture(b"no picture")
    with pytest.raises(QueryError, match="no item 'nothing'"):
        remote.by_key("nothing")
    with pytest.raises(QueryError, match="at least 1"):
        remote.by_key(key, 0)
    with pytest.raises(QueryError, match="where"):
        remote.by_key(key, where={"a": {"nonsense": 1}})
    with pytest.raises(QueryError, match="words"):
        remote.by_text("red")
    with pytest.raises(QueryError, match="liked"):
        remote.by_examples([])
    with pytest.raises(ShapeError):
        remote.by_vector(np.ones(3))


def test_what_is_no_server(tmp_path: Path) -> None:
    """Nobody there, no address, somebody else."""
    with pytest.raises(IndexUnavailable, match=r"no server at http://127\.0\.0\.1:9"):
        lookalike.connect("http://127.0.0.1:9")
    for address in ("127.0.0.1:8765", "ftp://a", "http://", "http://a:b", "http://a/b", "http://[", ""):
        with pytest.raises(IndexUnavailable, match="give http"):
            lookalike.connect(address)


def test_a_token_is_shown(start: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As an argument or from the environment; without it the server's refusal is raised."""
    address = start(replace(Settings(rate=0), token="0123456789abcdef"))
    with pytest.raises(ServerError, match="token") as caught:
        lookalike.connect(address)
    assert (caught.value.code, caught.value.status) == ("unauthorised", 401)
    assert isinstance(caught.value, LookalikeError)
    with lookalike.connect(address, "0123456789abcdef") as remote:
        assert len(remote)
    monkeypatch.setenv("LOOKALIKE_TOKEN", "0123456789abcdef")
    with lookalike.connect(address) as remote:
        assert len(remote)
        remote.close()
        assert len(remote), "a closed connection is made again"


def test_a_busy_server_is_asked_again(remote: RemoteSearcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with Retry-After is waited for, not for ever."""
    waits: list[float] = []
    monkeypatch.setattr("lookalike.client.time.sleep", waits.append)
    real = remote._exchange
    busy = (503, b'{"error": {"code": "busy", "message": "too many", "hint": "wait"}}', 2.0)
    answers = [busy, busy]
    monkeypatch.setattr(remote, "_exchange", lambda *given: answers.pop() if answers else real(*given))
    assert len(remote)
    assert waits == [2.0, 2.0]
    monkeypatch.setattr(remote, "_exchange", lambda *given: busy)
    with pytest.raises(IndexUnavailable, match="too many"):
        len(remote)


def test_threads_may_share_one(remote: RemoteSearcher, pictures: Path) -> None:
    """Eight threads, each its own answers."""
    from concurrent.futures import ThreadPoolExecutor

    paths = sorted(pictures.rglob("*.png"))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: remote.by_picture(path, 1)[0].key, paths))
    assert found == [str(path) for path in paths]
