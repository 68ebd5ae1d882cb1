"""A server that is down, slow, strict or not ours: what the remote index says and does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lookalike.errors import IndexUnavailable, ShapeError
from lookalike.index import open_index

remote = pytest.importorskip("lookalike.index.remote")
from qdrant_client import QdrantClient, models  # noqa: E402

DIM = 4
ROWS = np.eye(DIM, dtype=np.float32)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact"),
    pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection"),
]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0))
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


class FakeServer:
    """Answers each request with what `answer(method, path, body)` says: a status and a JSON result."""

    def __init__(self, answer: Callable[[str, str, object], tuple[int, object]]) -> None:
        self.requests: list[tuple[str, str, object, dict[str, str]]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = json.loads(raw) if raw else None
                fake.requests.append((self.command, self.path, body, dict(self.headers)))
                status, result = answer(self.command, self.path, body)
                ok = {"result": result, "status": "ok", "time": 0.0}
                document = ok if status == 200 else {"status": {"error": result}, "time": 0.0}
                content = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    servers: list[FakeServer] = []

    def start(answer: Callable[[str, str, object], tuple[int, object]]) -> FakeServer:
        servers.append(FakeServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_no_server_says_how_to_start_one():
    with pytest.raises(IndexUnavailable, match=r"127\.0\.0\.1:9/pictures.*docker run -p 6333:6333 qdrant/qdrant"):
        open_index("http://127.0.0.1:9/pictures", dim=DIM)


@pytest.mark.parametrize("location", ["http://127.0.0.1:9", "http://127.0.0.1:9/", "https:///pictures"])
def test_a_location_without_a_collection(location):
    with pytest.raises(IndexUnavailable, match="write http://host:6333/collection"):
        open_index(location, dim=DIM)


def test_a_password_in_the_location_is_refused_and_not_repeated():
    with pytest.raises(IndexUnavailable, match="QDRANT_API_KEY") as caught:
        open_index("http://user:hunter2@127.0.0.1:9/pictures", dim=DIM)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403, 400, 500])
def test_the_api_key_is_sent_and_never_shown(serve, monkeypatch, status):
    monkeypatch.setenv("QDRANT_API_KEY", "hunter2")
    server = serve(lambda *_: (status, "no"))
    with pytest.raises(IndexUnavailable) as caught:
        open_index(f"{server.url}/pictures", dim=DIM)
    assert server.requests[0][3]["api-key"] == "hunter2"
    assert "hunter2" not in str(caught.value)
    assert ("QDRANT_API_KEY" in str(caught.value)) == (status in (401, 403))


def test_a_prefix_and_an_escaped_name_reach_the_server(serve):
    server = serve(lambda *_: (200, {"exists": False}))
    with pytest.raises(IndexUnavailable, match="no index at"):
        open_index(f"{server.url}/qdrant/my%20pictures")
    assert server.requests[0][1] == "/qdrant/collections/my%20pictures/exists"


@pytest.mark.parametrize(("failures", "attempts"), [(2, 3), (9, 3)])
@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_busy_server_is_asked_again_but_not_for_ever(serve, status, failures, attempts):
    count = 0

    def answer(*_: object) -> tuple[int, object]:
        nonlocal count
        count += 1
        return (status, "busy") if count <= failures else (200, {"exists": False})

    server = serve(answer)
    with pytest.raises(IndexUnavailable) as caught:
        open_index(f"{server.url}/pictures")
    assert len(server.requests) == attempts
    assert ("no index at" in str(caught.value)) == (failures < attempts)


def test_a_refused_request_is_not_repeated_and_its_reason_is_given(serve):
    server = serve(lambda *_: (400, "the disk of the server is full"))
    with pytest.raises(IndexUnavailable, match=r"400.*the disk of the server is full"):
        open_index(f"{server.url}/pictures", dim=DIM)
    assert len(server.requests) == 1


def collection(metadata: object, size: int = DIM) -> dict[str, object]:
    params = {"vectors": {"size": size, "distance": "Cosine"}}
    hnsw = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000}
    optimizers = {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1, "default_segment_number": 0,
                  "flush_interval_sec": 5}  # fmt: skip
    config = {"params": params, "hnsw_config": hnsw, "optimizer_config": optimizers, "wal_config": None}
    config["metadata"] = metadata
    return {"status": "green", "optimizer_status": "ok", "segments_count": 1, "config": config, "payload_schema": {}}


def test_a_collection_of_something_else_is_left_alone(serve):
    def answer(method: str, path: str, body: object) -> tuple[int, object]:
        return 200, ({"exists": True} if path.endswith("/exists") else collection(None))

    server = serve(answer)
    with pytest.raises(IndexUnavailable, match="not made by Lookalike"):
        open_index(f"{server.url}/pictures", dim=DIM)
    assert {method for method, *_ in server.requests} == {"GET"}


def test_someone_else_made_the_collection_at_the_same_moment(serve):
    document = {"format": 1, "meta": {"by": "other"}, "fields": {}, "late": [], "quantization": None}

    def answer(method: str, path: str, body: object) -> tuple[int, object]:
        if method == "PUT":
            return 409, "already exists"
        return 200, ({"exists": False} if path.endswith("/exists") else collection({"lookalike": document}))

    index = open_index(f"{serve(answer).url}/pictures", dim=DIM, meta={"by": "me"})
    assert index.meta == {"by": "other"}
    index.close()


def test_large_adds_travel_in_requests_of_bounded_size(serve, monkeypatch):
    monkeypatch.setattr(remote, "_REQUEST_BYTES", 20_000)
    document = {"format": 1, "meta": {}, "fields": {}, "late": [], "quantization": None}

    def answer(method: str, path: str, body: object) -> tuple[int, object]:
        if method == "PUT":
            return 200, {"operation_id": 1, "status": "completed"}
        return 200, ({"exists": True} if path.endswith("/exists") else collection({"lookalike": document}))

    server = serve(answer)
    index = open_index(f"{server.url}/pictures")
    payloads = [{"text": "x" * (i % 7) * 500} for i in range(100)]
    index.add([str(i) for i in range(100)], np.tile(ROWS, (25, 1)), payloads)
    index.close()
    upserts = [(path, body) for method, path, body, _ in server.requests if method == "PUT"]
    assert len(upserts) > 5
    assert all(path.endswith("/points?wait=true") for path, _ in upserts)
    assert [point["payload"]["_key"] for _, body in upserts for point in body["points"]] == [str(i) for i in range(100)]
    assert max(len(json.dumps(body)) for _, body in upserts) < 20_000


def test_what_is_kept_with_a_collection_is_found_again():
    client = QdrantClient(":memory:")
    first = remote.RemoteIndex(client, "c", dim=DIM, meta={"bundle": "b"}, fields={"word": "keyword"})
    first.add(list("abcd"), ROWS, [{"word": letter} for letter in "abcd"])
    second = remote.RemoteIndex(client, "c", fields={"late": "integer"})
    assert (second.dim, second.meta, len(second)) == (DIM, {"bundle": "b"}, 4)
    document = client.get_collection("c").config.metadata["lookalike"]
    assert document["fields"] == {"word": "keyword", "late": "integer"}
    assert document["late"] == ["late"]
    with pytest.raises(ShapeError, match="4 numbers, not 8"):
        remote.RemoteIndex(client, "c", dim=8)
    with pytest.raises(IndexUnavailable, match="quantization None, not int8"):
        remote.RemoteIndex(client, "c", quantization="int8")
    reader = remote.RemoteIndex(client, "c", read_only=True)
    for change in (lambda: reader.add(["x"], ROWS[:1]), lambda: reader.remove(["a"])):
        with pytest.raises(IndexUnavailable, match="read-only"):
            change()
    with pytest.raises(IndexUnavailable, match="no index at"):
        remote.RemoteIndex(client, "other", dim=DIM, read_only=True)


def test_points_are_the_same_as_in_a_folder():
    from lookalike.index._points import point_id

    client = QdrantClient(":memory:")
    remote.RemoteIndex(client, "c", dim=DIM).add(["a"], ROWS[:1], [{"word": "x", 'q"q': 1}])
    (point,) = client.scroll("c", with_vectors=True)[0]
    assert (point.id, point.payload) == (point_id("a"), {"_key": "a", "word": "x", "q%22q": 1})
    assert client.get_collection("c").config.params.vectors.distance == models.Distance.COSINE


def test_without_the_package_the_extra_is_named():
    code = """
import sys
sys.modules["qdrant_client"] = None
from lookalike import errors
from lookalike.index import open_index
try:
    open_index("http://localhost:6333/c")
except errors.MissingExtra as error:
    print(error)
"""
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.strip() == "a Qdrant server needs qdrant-client: pip install 'lookalike[qdrant]'"
