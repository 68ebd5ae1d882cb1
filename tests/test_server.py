"""The server: the same answers as the package, one shape of errors, and nobody gets more than they may have."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from starlette.testclient import TestClient

from lookalike.catalogue import rows
from lookalike.encoder import Encoder
from lookalike.errors import LookalikeError
from lookalike.feedback import Feedback
from lookalike.images import Region
from lookalike.index import Index, open_index
from lookalike.indexing import update_index
from lookalike.search import Searcher, near_duplicates
from lookalike.server.app import create_app
from lookalike.server.batching import Batcher
from lookalike.server.gauges import Registry
from lookalike.server.operations import OPERATIONS
from lookalike.server.replies import Refused
from lookalike.server.security import RateLimit
from lookalike.server.settings import Settings
from lookalike.server.studies import facets, plane

BASE = "http://127.0.0.1:8765"
LOOSE = Settings(rate=0)
LINES = {"Content-Type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, draw_classes: Callable[..., Path]) -> Path:
    """Twelve classes of six drawings, one of them twice, a photograph from a phone, and a picture outside."""
    top = tmp_path_factory.mktemp("served")
    draw_classes(top / "pictures")
    shutil.copy(top / "pictures" / "class00" / "0.png", top / "pictures" / "class00" / "copy.png")
    exif = Image.Exif()
    exif[0x010F] = "a camera that knows where"
    photograph = Image.new("RGB", (900, 600), "teal")
    ImageDraw.Draw(photograph).ellipse((100, 100, 500, 500), "orange")
    photograph.save(top / "pictures" / "class01" / "photo.jpg", exif=exif)
    (top / "elsewhere").mkdir()
    Image.new("RGB", (40, 40), "red").save(top / "elsewhere" / "secret.png")
    return top


@pytest.fixture(scope="module")
def index(place: Path, tiny: Encoder) -> Iterator[Index]:
    opened = open_index(place / "the.index", dim=tiny.dim, meta={"encoder": tiny.describe()})
    found = [replace(row, payload={**row.payload, "price": 10 * n}) for n, row in enumerate(rows([place / "pictures"]))]
    update_index(opened, tiny, found)
    yield opened
    opened.close()


class _Kept:
    """An index that outlives the servers of a test module."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def __len__(self) -> int:
        return len(self._index)

    def close(self) -> None:
        pass


Serve = Callable[..., TestClient]


@pytest.fixture(scope="module")
def serve_all(index: Index, tiny: Encoder) -> Iterator[Serve]:
    """As `serve`, for the whole module."""
    yield from _serving(index, tiny)


@pytest.fixture
def serve(index: Index, tiny: Encoder) -> Iterator[Serve]:
    """serve(settings) starts a server and waits until it is ready."""
    yield from _serving(index, tiny)


def _serving(index: Index, tiny: Encoder) -> Iterator[Serve]:
    running: list[TestClient] = []

    def start(settings: Settings = LOOSE, encoder: Any = tiny, over: Index | None = None) -> TestClient:
        app = create_app(over if over is not None else _Kept(index), encoder, settings)
        client = TestClient(app, base_url=BASE, raise_server_exceptions=False)
        client.__enter__()
        running.append(client)
        while client.get("/v1/ready").json().get("status") == "starting":
            time.sleep(0.01)
        return client

    yield start
    for client in running:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def client(serve_all: Serve) -> TestClient:
    """A server with nothing special about it."""
    return serve_all()


@pytest.fixture
def own(tmp_path: Path, place: Path, tiny: Encoder) -> Index:
    """An index that may be changed."""
    folder = Path(shutil.copytree(place / "pictures", tmp_path / "pictures"))
    opened = open_index(tmp_path / "own.index", dim=tiny.dim, meta={"encoder": tiny.describe()})
    update_index(opened, tiny, rows([folder]))
    return opened


@pytest.fixture
def key(place: Path) -> str:
    return str(place / "pictures" / "class03" / "2.png")


def ask(client: TestClient, path: str = "/v1/search", **document: Any) -> Any:
    reply = client.post(path, json=document)
    assert reply.status_code == 200, reply.text
    return reply.json()


def send(client: TestClient, files: Any, path: str = "/v1/search", **options: Any) -> Any:
    """Pictures as a form."""
    parts = [(name, ("picture", data, "application/octet-stream")) for name, data in files]
    return client.post(path, files=[*parts, ("options", (None, json.dumps(options), "application/json"))])


def told(hits: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(hit["key"], pytest.approx(hit["score"], abs=1e-6), hit["payload"], tuple(hit["copies"])) for hit in hits]


def as_told(hits: Any) -> list[tuple[Any, ...]]:
    return [(hit.key, hit.score, hit.payload, hit.copies) for hit in hits]


def refusal(reply: Any, status: int, code: str) -> str:
    """The message of a refusal, which has the one shape."""
    assert reply.status_code == status, reply.text
    document = reply.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"code", "message", "hint"}
    assert document["error"]["code"] == code
    assert all(isinstance(text, str) and text for text in document["error"].values())
    return document["error"]["message"]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


# ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_search_answers_as_the_searcher(client: TestClient, index: Index, tiny: Encoder, key: str) -> None:
    """By picture, part of it, key, vector and examples, with every option."""
    searcher, data = Searcher(tiny, index), Path(key).read_bytes()
    other = key.replace("class03", "class04")
    box = (0.1, 0.2, 0.7, 0.9)
    where = {"price": {"range": {"lt": 400}}}
    vector = tiny.images([key])[0]

    assert told(send(client, [("picture", data)], k=5).json()["hits"]) == as_told(searcher.by_picture(data, 5))
    found = send(client, [("picture", data)], k=5, region=box).json()["hits"]
    assert told(found) == as_told(searcher.by_picture(Region(data, box), 5))
    assert told(ask(client, key=key, k=7, where=where)["hits"]) == as_told(searcher.by_key(key, 7, where=where))
    found = ask(client, key=key, region=box, k=3)["hits"]
    assert told(found) == as_told(searcher.by_picture(Region(data, box), 3))
    found = ask(client, vector=vector.tolist(), k=70, min_score=0.9, distinct=False)["hits"]
    assert told(found) == as_told(searcher.by_vector(vector, 70, min_score=0.9, distinct=False))
    found = send(client, [("liked", data)], disliked=[other], k=4).json()["hits"]
    assert told(found) == as_told(searcher.by_examples([data], [other], 4))
    assert ask(client, liked=[key], k=2.0)["hits"][0]["key"] != key


def test_pages_are_one_answer_cut(client: TestClient, key: str) -> None:
    """offset and next walk through the same list, and next is null at its end."""
    whole = ask(client, key=key, k=500)
    assert whole["next"] is None
    pages, offset = [], 0
    while offset is not None:
        page = ask(client, key=key, k=17, offset=offset)
        pages += page["hits"]
        offset = page["next"]
    assert [hit["key"] for hit in pages] == [hit["key"] for hit in whole["hits"]]


def test_words_are_refused_where_the_bundle_knows_none(client: TestClient) -> None:
    """The message says so; the page learns it from /v1/info."""
    assert "words" in refusal(client.post("/v1/search", json={"text": "red"}), 400, "query_error")
    assert client.get("/v1/info").json()["can"]["text"] is False


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "one question, not none"),
        ({"key": "a", "text": "b"}, "one question, not key, text"),
        ({"key": "a", "k": 0}, "k: 0 is less than the minimum of 1"),
        ({"key": "a", "k": 501}, "maximum of 500"),
        ({"key": "a", "k": True}, "not of type 'integer'"),
        ({"key": "a", "nonsense": 1}, "nonsense"),
        ({"key": "a", "min_score": 2}, "maximum of 1"),
        ({"key": "a", "region": [0, 0, 1]}, "region"),
        ({"key": "a", "region": [0.5, 0, 0.5, 1]}, "empty"),
        ({"text": "a", "region": [0, 0, 1, 1]}, "needs a picture"),
        ({"key": "a", "weight": 0.2}, "weight"),
        ({"key": "a", "where": {"x": {"range": {}}}}, "where"),
        ({"disliked": []}, "liked"),
        ([], "not of type 'object'"),
    ],
)
def test_questions_that_are_none(client: TestClient, document: Any, says: str) -> None:
    """The message names what is wrong."""
    reply = client.post("/v1/search", json=document)
    assert reply.status_code == 400
    assert says in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"key": "\\ud800"}', b'{"vector": [NaN]}', b"[" * 100_000, b'{"key": "\xff"}', b"9" * 5_000]
)
def test_bodies_that_are_no_json(client: TestClient, body: bytes) -> None:
    """Whatever comes, it is a refusal and no defect."""
    reply = client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    refusal(reply, 400, "malformed")


def test_bodies_of_other_types_and_broken_forms(client: TestClient) -> None:
    """415 for other types; a form without end, boundary or with foreign parts is malformed."""
    refusal(client.post("/v1/search", content=b"x", headers={"Content-Type": "text/plain"}), 415, "media_type")
    for kind, body in [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\n"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="picture"\r\n\r\nabc'),
    ]:
        refusal(client.post("/v1/search", content=body, headers={"Content-Type": kind}), 400, "malformed")
    assert "'nonsense'" in refusal(send(client, [("nonsense", b"x")]), 400, "malformed")
    assert "more than one picture" in refusal(send(client, [("picture", b"x")] * 2), 400, "malformed")


def test_pictures_that_are_none(client: TestClient) -> None:
    """The reason is told, as the package tells it."""
    assert "known format" in refusal(send(client, [("picture", b"no picture")]), 422, "image_error")
    cut = png(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))[:3000]
    refusal(send(client, [("picture", cut)]), 422, "image_error")
    refusal(send(client, [("liked", b"no picture")]), 422, "image_error")


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v1/search", {"liked": ["SECRET"]}),
        ("/v1/search", {"liked": ["KEY"], "disliked": ["SECRET"]}),
        ("/v1/search", {"key": "SECRET"}),
        ("/v1/search", {"key": "SECRET", "region": [0, 0, 1, 1]}),
        ("/v1/recommend", {"keys": ["SECRET"]}),
        ("/v1/recommend", {"keys": ["KEY"], "unlike": ["SECRET"]}),
        ("/v1/explain", {"key": "SECRET", "query": "KEY"}),
        ("/v1/explain", {"key": "KEY", "query": "SECRET"}),
        ("/v1/label", {"baskets": {"a": ["KEY"], "b": ["SECRET"]}}),
        ("/v1/label", {"baskets": {"a": ["KEY"]}, "keys": ["SECRET"]}),
    ],
)
def test_a_key_is_never_read_as_a_path(
    client: TestClient, place: Path, key: str, path: str, document: dict[str, Any]
) -> None:
    """The package takes an unknown key for a path; over the network that would read any file of the machine."""
    secret = str(place / "elsewhere" / "secret.png")
    filled = json.loads(json.dumps(document).replace("SECRET", secret).replace("KEY", key))
    assert "no item" in refusal(client.post(path, json=filled), 404, "no_item")


def test_urls_are_fetched_only_where_that_is_allowed(serve: Serve, client: TestClient) -> None:
    """Off by default; where it is on, an address inside is refused before anything is sent."""
    refusal(client.post("/v1/search", json={"url": "http://example.org/a.jpg"}), 403, "no_url")
    fetching = serve(replace(LOOSE, fetch=True))
    for url in ("http://127.0.0.1:1/a.jpg", "http://169.254.169.254/latest/", "file:///etc/passwd"):
        refusal(fetching.post("/v1/search", json={"url": url}), 422, "fetch_error")


def test_recommend_label_explain(client: TestClient, index: Index, tiny: Encoder, place: Path, key: str) -> None:
    """The answers are those of the package; a name is one of the baskets or null; heat maps are pictures."""
    from lookalike.recommend import Recommender

    found = ask(client, "/v1/recommend", keys=[key], k=4, across="category")["hits"]
    assert told(found) == as_told(Recommender(index, tiny).beside([key], (), 4, across="category"))

    def of(number: int) -> list[str]:
        return [str(place / "pictures" / f"class{number:02}" / f"{n}.png") for n in range(3)]

    answer = ask(client, "/v1/label", baskets={"three": of(3), "five": of(5)}, limit=1000)
    names = {label["key"]: label["label"] for label in answer["labels"]}
    assert not names.keys() & {*of(3), *of(5)}
    right = {path: f"class{number:02}" for number, path in ((3, "three"), (5, "five"))}
    for name, category in right.items():
        mine = [one["label"] for one in answer["labels"] if one["payload"]["category"] == category]
        assert mine == [name] * 3
    assert sum(answer["counts"].values()) == len(names)
    assert answer["more"] is False
    answer = ask(client, "/v1/label", baskets={"only": of(3)}, where={"category": "class05"}, limit=2)
    assert [label["label"] for label in answer["labels"]] == ["only", "only"]
    assert answer["more"] is True

    for reply in (
        client.post("/v1/explain", json={"key": key, "query": of(3)[0]}),
        send(client, [("picture", Path(of(3)[0]).read_bytes())], "/v1/explain", key=key, region=[0, 0, 1, 0.5]),
    ):
        assert reply.status_code == 200, reply.text
        for side in ("left", "right"):
            data = base64.b64decode(reply.json()[side].removeprefix("data:image/jpeg;base64,"))
            assert Image.open(io.BytesIO(data)).format == "JPEG"


# ── the whole index ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_duplicates_are_those_of_the_package(client: TestClient, index: Index, place: Path) -> None:
    """In pages; with the threshold of the bundle, or without one a word about it."""
    answer = ask(client, "/v1/duplicates", threshold=0.99, limit=3)
    groups = near_duplicates(index, 0.99)
    assert answer["count"] == len(groups) > 3
    assert answer["extra"] == sum(len(group) - 1 for group in groups)
    second = ask(client, "/v1/duplicates", threshold=0.99, limit=3, offset=answer["next"])
    shown = [[hit["key"] for hit in group] for group in answer["groups"] + second["groups"]]
    assert shown == [[hit.key for hit in group] for group in groups[:6]]


def test_facets_count_what_is_there(client: TestClient, place: Path) -> None:
    """Values with their counts, numbers with their range, names of their own as text; filters narrow them."""
    found = {facet["field"]: facet for facet in ask(client, "/v1/facets")["facets"]}
    assert found["category"]["values"][0] == {"value": "class00", "count": 7}
    assert set(found) == {"category", "price"}
    narrow = ask(client, "/v1/facets", where={"category": "class02"})
    assert narrow["count"] == 6
    assert [f["values"] for f in narrow["facets"] if f["field"] == "category"] == [[{"value": "class02", "count": 6}]]

    memory = open_index(":memory:", dim=2)
    payloads = [
        {"id": n, "price": n % 50 * 2, "weight": n / 7, "tags": ["a", "b"] if n % 2 else ["a"], "new": n % 2 == 0,
         "title": f"thing {n}", "none": None, "deep": {"x": 1}}
        for n in range(100)
    ]  # fmt: skip
    memory.add([str(n) for n in range(100)], np.ones((100, 2)), payloads)
    kinds = {facet["field"]: facet for facet in facets(memory, None)["facets"]}
    assert {name: facet["kind"] for name, facet in kinds.items()} == {
        "id": "text", "title": "text", "price": "range", "weight": "range", "tags": "values", "new": "values"
    }  # fmt: skip
    assert (kinds["price"]["least"], kinds["price"]["most"]) == (0, 98)
    assert kinds["tags"]["values"] == [{"value": "a", "count": 100}, {"value": "b", "count": 50}]
    assert {"value": True, "count": 50} in kinds["new"]["values"]


def test_the_map_is_principal_components(client: TestClient, index: Index) -> None:
    """Against NumPy's decomposition of the centred vectors; a sample is drawn evenly and is the same every time."""
    items = list(index.scan(vectors=True))
    rows_ = np.stack([item.vector for item in items]).astype(np.float64)
    centred = rows_ - rows_.mean(0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    answer = client.get("/v1/map?field=category").json()
    mine = {point["key"]: (point["x"], point["y"]) for point in answer["points"]}
    expected = centred @ axes[:2].T
    got = np.array([mine[item.key] for item in items])
    assert np.abs(np.abs(got) - np.abs(expected)).max() < 2e-4
    assert answer["explained"] == pytest.approx((spread**2 / (spread**2).sum())[:2].tolist(), abs=1e-6)
    assert {point["value"] for point in answer["points"]} == {f"class{n:02}" for n in range(12)}
    sample = client.get("/v1/map?limit=20").json()
    assert (len(sample["points"]), sample["sampled"], sample["count"]) == (20, True, len(items))
    assert [key for key, _ in plane(index, 20)["items"]] == [point["key"] for point in sample["points"]]
    assert plane(open_index(":memory:", dim=3), 5)["items"] == []


# ── items ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_items_are_listed_in_pages_by_key(client: TestClient, index: Index) -> None:
    """Each once, in order, within a filter."""
    for where in (None, {"category": {"any_of": ["class02", "class09"]}}):
        seen: list[str] = []
        after: dict[str, Any] = {}
        while True:
            page = ask(client, "/v1/items/list", limit=5, **after, **({"where": where} if where else {}))
            seen += [item["key"] for item in page["items"]]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        assert seen == sorted(item.key for item in index.scan(where))


def test_items_by_key(client: TestClient, index: Index, key: str) -> None:
    """In order, null where there is none; vectors on request."""
    items = ask(client, "/v1/items/get", keys=["nothing", key], vectors=True)["items"]
    assert items[0] is None
    assert np.allclose(items[1]["vector"], index.get([key])[0].vector)
    assert "vector" not in ask(client, "/v1/items/get", keys=[key])["items"][0]


def test_pictures_are_added_found_shown_and_deleted(serve: Serve, own: Index, tmp_path: Path) -> None:
    """The server keeps the file; the same picture twice is one item; with the item the file goes."""
    client = serve(replace(LOOSE, writable=True), over=own)
    before = len(own)
    red, blue = (png(Image.new("RGB", (30, 20), colour)) for colour in ("red", "blue"))
    reply = send(client, [("picture", red), ("picture", blue)], "/v1/items", payloads=[{"n": 1}, {"n": 2}])
    assert reply.status_code == 201, reply.text
    first, second = reply.json()["items"]
    assert Path(first["key"]).read_bytes() == red
    assert first["payload"]["n"] == 1
    assert first["payload"]["file"]["width"] == 30
    hit = send(client, [("picture", red)], k=1).json()["hits"][0]
    assert hit["key"] == first["key"]
    assert Image.open(io.BytesIO(client.get(first["thumbnail"]).content)).size == (30, 20)
    assert send(client, [("picture", red)], "/v1/items").json()["items"][0]["key"] == first["key"]
    assert len(own) == before + 2
    assert ask(client, "/v1/items/delete", keys=[first["key"], "nothing"]) == {"removed": 1}
    assert not Path(first["key"]).exists()
    assert Path(second["key"]).exists()
    refusal(client.get(first["thumbnail"]), 404, "no_item")
    refusal(send(client, [("picture", red)], "/v1/items", payloads=[{}, {}]), 400, "malformed")
    refusal(send(client, [("picture", b"none")], "/v1/items"), 422, "image_error")
    assert {path.parent.name for path in tmp_path.rglob("*.png")} > {"own.index.uploads"}
    studied = ask(client, "/v1/facets")["count"]
    ask(client, "/v1/items/delete", keys=[second["key"]])
    assert ask(client, "/v1/facets")["count"] == studied - 1


def test_an_import_stores_what_it_can(serve: Serve, own: Index) -> None:
    """Lines of both kinds, more than a block; each bad line is told with its number and stops nothing."""
    client = serve(replace(LOOSE, writable=True, line_bytes=100_000), over=own)
    vector = [1.0] * own.dim
    good = [{"key": f"v{n}", "vector": vector, "payload": {"n": n}} for n in range(150)]
    picture = {"picture": base64.b64encode(png(Image.new("RGB", (9, 9), "lime"))).decode(), "payload": {"p": 1}}
    bad = [
        {"key": "a"}, {"picture": "!"}, {"picture": base64.b64encode(b"no").decode()}, {"key": "b", "vector": [1.0]},
        {"key": "c", "vector": [0.0] * own.dim}, {"key": "d", "vector": vector, "payload": {"_key": 1}},
        {"key": "/etc/a.png", "vector": vector, "payload": {"file": {"sha256": "0"}}}, "text",
    ]  # fmt: skip
    lines = [*good[:75], *bad, picture, *good[75:]]
    body = "\n".join(map(json.dumps, lines)) + "\n\n{oops\n"
    before = len(own)
    reply = client.post("/v1/items/import", content=body, headers=LINES)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert (answer["added"], answer["failed"]) == (151, 9)
    assert sorted(error["line"] for error in answer["errors"]) == [*range(76, 84), len(lines) + 2]
    assert len(own) == before + 151
    assert own.get(["v149"])[0].payload == {"n": 149}
    long = json.dumps({"key": "e", "vector": vector, "payload": {"x": "y" * 200_000}})
    refusal(client.post("/v1/items/import", content=long, headers=LINES), 413, "too_large")


def test_what_clients_add_together_is_stored_together(serve: Serve, own: Index) -> None:
    """One of twelve has a payload no index can hold: it alone is told, and there are fewer writes than clients."""
    client = serve(replace(LOOSE, writable=True), over=own)
    writes: list[int] = []
    gate = threading.Event()
    real = own.add

    def add(keys: Any, *rest: Any) -> None:
        writes.append(len(keys))
        gate.wait(10)
        real(keys, *rest)

    client.app.state.service.index = _Kept(own)
    client.app.state.service.index.add = add

    def post(number: int) -> Any:
        payload = {"_key": 1} if number == 5 else {"n": number}
        line = json.dumps({"key": f"k{number}", "vector": [1.0 + number] * own.dim, "payload": payload})
        return client.post("/v1/items/import", content=line, headers=LINES).json()

    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(post, number) for number in range(12)]
        deadline = time.monotonic() + 10
        while len(client.app.state.service._additions) < 11 and time.monotonic() < deadline:
            time.sleep(0.01)
        gate.set()
        added = [answer.result()["added"] for answer in answers]
    assert added == [int(number != 5) for number in range(12)]
    assert 11 in writes
    assert [item is not None for item in own.get([f"k{n}" for n in range(12)])] == [n != 5 for n in range(12)]


def test_a_server_that_is_not_writable_takes_no_changes(client: TestClient, index: Index, key: str) -> None:
    """All three ways, and the number of items stays."""
    before = len(index)
    refusal(client.post("/v1/items/delete", json={"keys": [key]}), 403, "read_only")
    refusal(client.post("/v1/items/import", content=b"{}", headers=LINES), 403, "read_only")
    refusal(send(client, [("picture", b"x")], "/v1/items"), 403, "read_only")
    assert len(index) == before


# ── thumbnails ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_thumbnails_are_small_new_and_kept(client: TestClient, place: Path) -> None:
    """A JPEG of at most the size asked for, without what the camera noted; ETag and 304; immutable by content."""
    name = str(place / "pictures" / "class01" / "photo.jpg")
    item = ask(client, "/v1/items/get", keys=[name])["items"][0]
    reply = client.get(item["thumbnail"])
    assert reply.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(reply.content))
    assert image.size == (256, 171)
    assert b"camera that knows" not in reply.content
    assert "immutable" in reply.headers["cache-control"]
    again = client.get(item["thumbnail"], headers={"If-None-Match": f'"other", {reply.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", reply.headers["etag"])
    plain = client.get("/v1/thumbnail", params={"key": name, "size": 640})
    assert Image.open(io.BytesIO(plain.content)).size == (640, 427)
    assert "must-revalidate" in plain.headers["cache-control"]
    assert plain.headers["etag"] != reply.headers["etag"]
    refusal(client.get("/v1/thumbnail", params={"key": name, "size": 300}), 400, "malformed")
    refusal(client.get("/v1/thumbnail"), 400, "malformed")


def test_no_picture_leaves_the_indexed_folders(serve: Serve, own: Index, place: Path, tmp_path: Path) -> None:
    """Not by a key that was added, a link that appeared, dots, or a name with a zero byte; --folder allows more."""
    secret = place / "elsewhere" / "secret.png"
    inside = tmp_path / "pictures" / "class02" / "1.png"
    link = tmp_path / "pictures" / "class02" / "link.png"
    link.symlink_to(secret)
    dots = f"{inside.parent}/../../../{secret.relative_to(tmp_path.parent)}"
    keys = [
        str(secret),
        str(link),
        dots,
        "relative.png",
        "/nul\0.png",
        secret.as_uri(),
        f"{tmp_path}/pictures/none.png",
    ]
    client = serve(replace(LOOSE, writable=True), over=own)
    assert client.get("/v1/thumbnail", params={"key": str(inside)}).status_code == 200
    lines = "\n".join(json.dumps({"key": key, "vector": [1.0] * own.dim}) for key in keys)
    assert client.post("/v1/items/import", content=lines, headers=LINES).json()["added"] == len(keys)
    for key in keys:
        refusal(client.get("/v1/thumbnail", params={"key": key}), 404, "no_picture")
        refusal(client.post("/v1/explain", json={"key": str(inside), "query": key}), 404, "no_picture")
    # A picture that was there, and has become a way out.
    inside.unlink()
    inside.symlink_to(secret)
    refusal(client.get("/v1/thumbnail", params={"key": str(inside)}), 404, "no_picture")
    allowed = serve(replace(LOOSE, folders=(secret.parent,)), over=_Kept(own))
    assert allowed.get("/v1/thumbnail", params={"key": str(link)}).status_code == 200


def test_a_picture_that_went_bad_is_not_shown(serve: Serve, own: Index, tmp_path: Path) -> None:
    """A file that is text by now, a pipe, a missing one: 404 or 422 and no bytes of it."""
    client = serve(over=own)
    folder = tmp_path / "pictures" / "class05"
    (folder / "1.png").write_text("private notes")
    (folder / "2.png").unlink()
    os.mkfifo(folder / "3.png".replace("3", "7"))
    (folder / "3.png").unlink()
    os.mkfifo(folder / "3.png")
    for name in ("1.png", "2.png", "3.png"):
        reply = client.get("/v1/thumbnail", params={"key": str(folder / name)})
        assert reply.status_code in (404, 422)
        assert "private" not in reply.text


# ── feedback ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_feedback_is_recorded_where_both_sides_want_it(
    serve: Serve, client: TestClient, key: str, tmp_path: Path
) -> None:
    """A search that asks to be kept, a click, a judgement; export; deletion by person and by item."""
    refusal(client.post("/v1/search", json={"key": key, "record": {"person": "ann"}}), 403, "no_feedback")
    refusal(client.get("/v1/feedback"), 403, "no_feedback")
    store = tmp_path / "the.feedback"
    client = serve(replace(LOOSE, feedback=store))
    assert ask(client, key=key)["search"] is None
    first = ask(client, key=key, k=3, record={"person": "ann"})
    hits = [hit["key"] for hit in first["hits"]]
    large = png(Image.new("RGB", (2000, 1000), "pink"))
    second = send(client, [("picture", large)], k=2, record={"person": "bob"}).json()
    ask(client, "/v1/feedback", search=first["search"], key=hits[1], clicked=True)
    ask(client, "/v1/feedback", search=first["search"], key=hits[0], alike=False)
    refusal(client.post("/v1/feedback", json={"search": 99, "key": "a", "clicked": True}), 404, "feedback_error")
    refusal(client.post("/v1/feedback", json={"search": 1, "key": "a"}), 400, "malformed")

    page = client.get("/v1/feedback?limit=1").json()
    assert page["next"] == first["search"]
    [ann] = page["searches"]
    assert (ann["query"], ann["shown"], ann["clicked"], ann["unlike"]) == ({"key": key}, hits, [hits[1]], [hits[0]])
    [bob] = client.get("/v1/feedback?person=bob").json()["searches"]
    assert bob["id"] == second["search"]
    assert Image.open(io.BytesIO(base64.b64decode(bob["query"]["picture"]))).size == (256, 128)
    with Feedback(store) as other:  # the command line may read meanwhile
        assert len(other) == 2
    assert client.delete("/v1/feedback?person=bob").json() == {"forgotten": 1}
    assert client.delete("/v1/feedback", params={"item": key}).json() == {"forgotten": 1}
    assert client.get("/v1/feedback").json()["searches"] == []
    assert client.get(f"/v1/feedback?after={2**63 - 1}").json()["searches"] == []
    refusal(client.get(f"/v1/feedback?after={2**63}"), 400, "malformed")
    refusal(client.delete("/v1/feedback"), 400, "malformed")


# ── the door ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_hosts_that_are_not_ours_are_refused(serve: Serve, client: TestClient) -> None:
    """DNS rebinding: a foreign name leads to this machine, and names itself in the Host header."""
    for host in ("evil.example", "127.0.0.1.evil.example:8765", "", "[", "localhost.evil.example"):
        refusal(client.get("/v1/info", headers={"Host": host}), 421, "unknown_host")
    for host in ("localhost:8765", "127.0.0.1", "[::1]:8765", "192.168.1.20:8765", "LOCALHOST"):
        assert client.get("/v1/info", headers={"Host": host}).status_code == 200
    named = serve(replace(LOOSE, allow_hosts=("pictures.home",)))
    assert named.get("/v1/info", headers={"Host": "pictures.home:80"}).status_code == 200


def test_other_sites_pages_may_not_post(client: TestClient, key: str) -> None:
    """By Origin or by Sec-Fetch-Site; the own page and programs may."""
    for headers in (
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
    ):  # fmt: skip
        refusal(client.post("/v1/search", json={"key": key}, headers=headers), 403, "cross_origin")
        refusal(client.delete("/v1/feedback?person=a", headers=headers), 403, "cross_origin")
    for headers in ({"Origin": BASE, "Sec-Fetch-Site": "same-origin"}, {}):
        assert client.post("/v1/search", json={"key": key}, headers=headers).status_code == 200


def test_a_token_is_asked_for_everywhere_but_where_nothing_is(serve: Serve, key: str) -> None:
    """Bearer or the cookie of a session; health, readiness and the page's files without."""
    token = "0123456789abcdef-token"
    client = serve(replace(LOOSE, token=token))
    for operation in OPERATIONS:
        reply = client.request(operation.method, operation.path, json={})
        if operation.name in ("health", "ready"):
            assert reply.status_code == 200
        elif operation.name == "session":
            refusal(reply, 400, "malformed")
        else:
            refusal(reply, 401, "unauthorised")
            assert reply.headers["www-authenticate"].startswith("Bearer")
    refusal(client.get("/v1/openapi.json"), 401, "unauthorised")
    assert client.get("/").status_code == client.get("/web/app.js").status_code == 200
    for shown in (token[:-1], token + "x", "", "é"):
        headers = {"Authorization": f"Bearer {shown}".encode()}
        refusal(client.get("/v1/info", headers=headers), 401, "unauthorised")
        refusal(client.post("/v1/session", json={"token": shown or "-"}), 401, "unauthorised")
    assert client.get("/v1/info", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    reply = client.post("/v1/session", json={"token": token})
    flags = reply.headers["set-cookie"].lower()
    assert "httponly" in flags
    assert "samesite=strict" in flags
    assert token not in flags
    assert client.get("/v1/info").status_code == 200


def test_strangers_are_not_let_in_by_mistake() -> None:
    """An address that others reach needs a token or the word; a token needs some length."""
    for host in ("0.0.0.0", "::", "192.168.1.5", "pictures.home"):
        with pytest.raises(LookalikeError, match="--token"):
            Settings(host=host).checked()
        assert Settings(host=host, open=True).checked()
        assert Settings(host=host, token="0123456789abcdef").checked()
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        assert Settings(host=host).checked()
    with pytest.raises(LookalikeError, match="16 characters"):
        Settings(token="short").checked()
    with pytest.raises(LookalikeError, match="ASCII"):
        Settings(token="ä" * 20).checked()


def test_every_answer_says_what_a_browser_needs_to_know(client: TestClient) -> None:
    """Also refusals, files and errors."""
    for reply in (client.get("/"), client.get("/v1/info"), client.get("/nothing"), client.get("/v1/info?x=1")):
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "server" not in reply.headers


def test_who_asks_too_often_waits(serve: Serve, key: str) -> None:
    """A burst is let through, then 429 with Retry-After; thumbnails cost little."""
    client = serve(replace(LOOSE, rate=2.0))
    replies = [client.get("/v1/info") for _ in range(40)]
    assert replies[5].status_code == 200
    refusal(replies[-1], 429, "too_many_requests")
    assert int(replies[-1].headers["retry-after"]) >= 1

    limit = RateLimit(10)
    assert all(limit.wait("a", now=0) == 0 for _ in range(100))
    assert limit.wait("a", now=0) == pytest.approx(0.1)
    assert limit.wait("b", now=0) == 0
    assert limit.wait("a", now=0.1) == 0
    assert limit.wait("a", now=0.1) > 0
    assert all(limit.wait("a", now=1000) == 0 for _ in range(100))
    assert limit.wait("a", now=1000) > 0


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_uploads_are_limited(serve: Serve, key: str) -> None:
    """In bytes, in pixels by their header, in number; the memory of refused ones is given back."""
    client = serve(replace(LOOSE, upload_bytes=50_000, pixels=1_000_000, pictures=3))
    big = png(Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)))
    refusal(send(client, [("picture", big)]), 413, "too_large")
    refusal(send(client, [("picture", big * 40)]), 413, "too_large")
    bomb = png(Image.new("1", (3000, 3000)))
    assert len(bomb) < 2_000
    assert "3000 × 3000" in refusal(send(client, [("picture", bomb)]), 413, "too_many_pixels")
    refusal(send(client, [("liked", bomb)]), 413, "too_many_pixels")
    refusal(send(client, [("picture", bomb)], "/v1/explain", key=key), 413, "too_many_pixels")
    refusal(send(client, [("liked", b"x")] * 4), 400, "too_many")
    refusal(client.post("/v1/search", json={"key": key, "where": {"a": "x" * 5_000_000}}), 413, "too_large")
    assert client.app.state.service.body_bytes == 0


def test_a_chunked_body_is_limited_while_it_comes(serve: Serve) -> None:
    """Without a length in advance the limit holds, too."""
    client = serve(replace(LOOSE, upload_bytes=1000, pictures=1))
    chunks = (b"x" * 10_000 for _ in range(10_000))
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    refusal(client.post("/v1/search", content=chunks, headers=kind), 413, "too_large")
    assert client.app.state.service.body_bytes == 0


def test_memory_for_bodies_is_one_budget(serve: Serve) -> None:
    """What does not fit now is told to come back."""
    client = serve(replace(LOOSE, body_bytes=1_000_000))
    client.app.state.service.body_bytes = 950_000
    reply = send(client, [("picture", b"x" * 100_000)])
    refusal(reply, 503, "busy")
    assert reply.headers["retry-after"] == "1"
    client.app.state.service.body_bytes = 0


class _Slow:
    """The tiny encoder, with a gate before the network."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.gate = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def stream(self, *arguments: Any) -> Any:
        self.gate.wait(10)
        return self._encoder.stream(*arguments)


def test_clients_share_batches_and_the_queue_is_bounded(serve: Serve, tiny: Encoder, place: Path) -> None:
    """Twelve at once: those beyond the limit get 503 and Retry-After, the others their own answers, in batches."""
    slow = _Slow(tiny)
    slow.gate.set()
    client = serve(replace(LOOSE, waiting=8), encoder=slow)
    slow.gate.clear()
    names = [place / "pictures" / f"class{n:02}" / "1.png" for n in range(12)]
    with ThreadPoolExecutor(12) as pool:
        replies = [pool.submit(send, client, [("picture", name.read_bytes())], k=1) for name in names]
        service = client.app.state.service
        deadline = time.monotonic() + 10
        while sum(reply.done() for reply in replies) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        slow.gate.set()
        done = [reply.result() for reply in replies]
    refused = [reply for reply in done if reply.status_code == 503]
    assert len(refused) == 4
    assert all(reply.headers["retry-after"] == "1" and reply.json()["error"]["code"] == "busy" for reply in refused)
    for name, reply in zip(names, done, strict=True):
        if reply.status_code == 200:
            assert reply.json()["hits"][0]["key"] == str(name)
    assert service.batcher.waiting == 0
    batches = int(re.search(r"lookalike_encoder_batch_pictures_count (\d+)", client.get("/v1/metrics").text)[1])
    assert batches < 8


def test_a_batch_gives_what_pictures_alone_give(tiny: Encoder, place: Path) -> None:
    """Good and bad pictures, regions and repetitions together: each future gets its own vector or error."""
    import asyncio

    names = sorted((place / "pictures").rglob("*.png"))[:40]
    pictures: list[Any] = [name.read_bytes() for name in names]
    pictures[7] = b"broken"
    pictures[9] = Region(pictures[9], (0, 0, 0.5, 0.5))

    async def all_of_them() -> list[Any]:
        batcher = Batcher(tiny, 100)
        try:
            return await asyncio.gather(*map(batcher.encode, pictures), return_exceptions=True)
        finally:
            await asyncio.to_thread(batcher.close)

    found = asyncio.run(all_of_them())
    for number, (picture, vector) in enumerate(zip(pictures, found, strict=True)):
        if number == 7:
            assert isinstance(vector, LookalikeError)
        else:
            assert np.allclose(vector, tiny.images([picture])[0], atol=1e-3)


def test_what_takes_too_long_is_given_up(serve: Serve, tiny: Encoder, key: str) -> None:
    """504, and the server goes on."""
    slow = _Slow(tiny)
    slow.gate.set()
    client = serve(replace(LOOSE, seconds=0.2), encoder=slow)
    slow.gate.clear()
    refusal(send(client, [("picture", Path(key).read_bytes())]), 504, "too_slow")
    slow.gate.set()
    deadline = time.monotonic() + 10
    while client.app.state.service.batcher.waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert send(client, [("picture", Path(key).read_bytes())]).status_code == 200


def test_a_defect_tells_nothing(serve: Serve, tiny: Encoder, key: str, caplog: pytest.LogCaptureFixture) -> None:
    """500 in the one shape; the log has the place in the code and not what was asked."""
    client = serve()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"a defect that quotes {key}")

    client.app.state.service.searcher.by_key = broken
    reply = client.post("/v1/search", json={"key": key})
    refusal(reply, 500, "defect")
    assert key not in reply.text
    assert "RuntimeError" in caplog.text
    assert key not in caplog.text


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_there_and_nothing_to_do(client: TestClient) -> None:
    """404, and 405 with Allow, in the one shape."""
    refusal(client.get("/v1/nothing"), 404, "no_such_page")
    refusal(client.get("/web/../app.py"), 404, "no_such_page")
    reply = client.put("/v1/search", json={})
    refusal(reply, 405, "method")
    assert reply.headers["allow"] == "POST"
    assert set(client.patch("/v1/feedback").headers["allow"].split(", ")) >= {"GET", "POST", "DELETE"}
    assert client.head("/v1/info").status_code == 200
    for query in ("x=1", "field=a&field=b", "limit=0", "limit=x", "limit=99999999999999999999999", "limit=1.5"):
        refusal(client.get(f"/v1/map?{query}"), 400, "malformed")


def test_answers_are_packed_for_those_who_take_it(client: TestClient) -> None:
    """gzip where it pays and is asked for, with Vary; the page's files with ETag."""
    packed = client.get("/v1/openapi.json", headers={"Accept-Encoding": "gzip"})
    plain = client.get("/v1/openapi.json", headers={"Accept-Encoding": "gzip;q=0, br"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json() == plain.json()
    assert packed.headers["vary"] == "Accept-Encoding"
    assert "content-encoding" not in client.get("/v1/health", headers={"Accept-Encoding": "gzip"}).headers
    page = client.get("/", headers={"Accept-Encoding": "identity"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    assert gzip.compress(page.content)


def test_the_schema_lists_what_there_is(client: TestClient, index: Index) -> None:
    """Every operation, with its body; references lead somewhere; the vector has the index's length."""
    document = client.get("/v1/openapi.json").json()
    listed = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert listed == {(operation.method, operation.path) for operation in OPERATIONS}
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    vector = document["components"]["schemas"]["Search"]["properties"]["vector"]
    assert (vector["minItems"], vector["maxItems"]) == (index.dim, index.dim)


def test_numbers_for_prometheus(serve: Serve, key: str) -> None:
    """Counts rise, histograms add up, labels are escaped."""
    client = serve()
    ask(client, key=key)
    client.post("/v1/search", json={})
    text = client.get("/v1/metrics").text
    assert 'lookalike_requests_total{operation="search",status="200"} 1' in text
    assert 'lookalike_refusals_total{code="malformed"} 1' in text
    assert re.search(r"^lookalike_items 74$", text, re.M)
    registry = Registry()
    histogram = registry.histogram("h", "Help.", ("a",), bounds=(1, 2))
    for value in (0.5, 1, 1.5, 9):
        histogram.observe(value, 'x"\n')
    assert registry.text().splitlines()[2:] == [
        'h_bucket{a="x\\"\\n",le="1"} 2', 'h_bucket{a="x\\"\\n",le="2"} 3', 'h_bucket{a="x\\"\\n",le="+Inf"} 4',
        'h_sum{a="x\\"\\n"} 12', 'h_count{a="x\\"\\n"} 4',
    ]  # fmt: skip


def test_a_server_is_not_ready_before_it_is(index: Index, tiny: Encoder, key: str) -> None:
    """Starting: health says ok, readiness and questions say 503, and come back."""
    slow = _Slow(tiny)
    app = create_app(_Kept(index), slow, LOOSE)
    with TestClient(app, base_url=BASE) as client:
        assert client.get("/v1/health").json() == {"status": "ok"}
        reply = client.get("/v1/ready")
        assert (reply.status_code, reply.json()) == (503, {"status": "starting"})
        reply = client.post("/v1/search", json={"key": key})
        refusal(reply, 503, "starting")
        assert reply.headers["retry-after"] == "1"
        slow.gate.set()
        while client.get("/v1/ready").status_code == 503:
            time.sleep(0.01)
        assert client.post("/v1/search", json={"key": key}).status_code == 200


def test_a_refusal_carries_its_headers() -> None:
    """Names of headers have dashes."""
    assert Refused(503, "busy", "m", "h", Retry_After="1").headers == {"Retry-After": "1"}


def test_the_reference_lists_every_operation() -> None:
    """docs/reference/http.md names each method and path."""
    page = (Path(__file__).parent.parent / "docs" / "reference" / "http.md").read_text()
    for operation in OPERATIONS:
        assert re.search(rf"`{operation.method}` \|.*`{operation.path}`", page), operation.name
