"""Pictures from the network: which addresses, how much, how long, how often; and a catalogue that ends as files."""

from __future__ import annotations

import csv
import http.server
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from PIL import Image

from lookalike import fetch
from lookalike.catalogue import rows
from lookalike.errors import CatalogueError, FetchError, ImageError
from lookalike.fetch import checked_addresses, fetch_catalogue, get_picture


def picture(number: int = 0, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (number % 256, 40, 90)).save(buffer, form)
    return buffer.getvalue()


class Shop(http.server.ThreadingHTTPServer):
    """A server on 127.0.0.1 whose answers are functions of a path; it counts what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers: dict[str, Callable[[Answer], None]] = {}
        self.asked: Counter[str] = Counter()
        self.times: dict[str, list[float]] = defaultdict(list)
        self.lock = threading.Lock()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def url(self, path: str) -> str:
        return f"http://{self.place}{path}"

    def handle_error(self, request, address) -> None:
        """Clients that hang up are part of these tests."""


class Answer(http.server.BaseHTTPRequestHandler):
    server: Shop

    def do_GET(self) -> None:
        shop = self.server
        with shop.lock:
            shop.asked[self.path] += 1
            shop.times[self.path].append(time.monotonic())
        path = self.path.partition("?")[0]
        shop.answers.get(path, lambda answer: answer.send(picture(len(path))))(self)

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Type": "image/png", "Content-Length": str(len(body))} | given).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def shop() -> Iterator[Shop]:
    server = Shop()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture(autouse=True)
def hurry(monkeypatch) -> None:
    """Pauses of hundredths of a second."""
    monkeypatch.setattr(fetch, "_FIRST_PAUSE", 0.01)


def refused(shop: Shop | None, url: str, **options) -> FetchError:
    if shop is not None:
        options.setdefault("allow_hosts", [shop.place])
    with pytest.raises(FetchError) as caught:
        get_picture(url, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("cannot fetch picture ")
    assert isinstance(caught.value, ImageError)
    return caught.value


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.8.9.1", "localhost", "localhost.", "LOCALHOST", "0.0.0.0", "0", "127.1", "0x7f.1"),
        *("2130706433", "10.0.0.1", "172.16.3.4", "192.168.1.1", "100.64.0.1", "169.254.169.254", "192.0.2.1"),
        *("198.18.0.1", "192.88.99.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "[::]", "[::1]", "[fe80::1]"),
        *("[fc00::1]", "[fd12::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]"),
        *("[::ffff:8.8.8.8]", "[64:ff9b::7f00:1]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2001:0:1::1]"),
    ],
)
def test_addresses_that_are_not_public(host):
    """Private, loopback, link-local, multicast, reserved and unspecified ones, and those that stand for another."""
    for scheme in ("http", "https"):
        with pytest.raises(FetchError) as caught:
            checked_addresses(f"{scheme}://{host}/a.jpg")
        assert "is not a public address" in caught.value.reason
        assert not caught.value.temporary


def test_public_addresses():
    """Numbers need no resolver; what comes back is what may be connected to."""
    assert checked_addresses("http://8.8.8.8/a.jpg") == ("8.8.8.8",)
    assert checked_addresses("https://[2606:4700::1111]:8443/a.jpg") == ("2606:4700::1111",)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://8.8.8.8/a.jpg", "only http and https"),
        ("file:///etc/passwd", "only http and https"),
        ("a.jpg", "only http and https"),
        ("", "only http and https"),
        ("http://user:word@8.8.8.8/", "without user"),
        ("http://user@8.8.8.8/", "without user"),
        ("http:///a.jpg", "names a host"),
        ("http://8.8.8.8:99999/", "not a URL"),
        ("http://[::1/", "not a URL"),
        ("http://a b.example/", "names a host"),
        ("http://8.8.8.8/\r\nHost: other", "control characters"),
        ("http://8.8.8.8/\x00", "control characters"),
        ("http://8.8.8.8/\ud800", "not a URL"),
        ("http://ü..example/", "not a host name"),
        ("http://" + "a" * 70 + ".example/", "no such host"),
    ],
)
def test_urls_that_are_none(url, reason):
    """Only http and https, without a user, without what could end a header."""
    assert reason in refused(None, url).reason


def test_only_the_public_ones_of_a_host(monkeypatch):
    """A host with public and private addresses is reached at the public ones alone."""
    answer(monkeypatch, ["10.0.0.1", "8.8.8.8", "::1", "2606:4700::1111", "8.8.8.8"])
    assert checked_addresses("http://mixed.example/") == ("8.8.8.8", "2606:4700::1111")
    assert len(checked_addresses("http://mixed.example/", ["mixed.example"])) == 4


def answer(monkeypatch, *answers: list[str]) -> list[str]:
    """Let the resolver give these addresses, one list for each question; returns the questions as they come."""
    left, asked = list(answers), []

    def getaddrinfo(host, port, *args, **kwargs):
        asked.append(host)
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_that_changes_its_mind(monkeypatch):
    """DNS rebinding: the address that was checked is the one connected to, and the name is asked for once."""
    asked = answer(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    reached = []

    def connect(self, address):
        reached.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket.socket, "connect", connect)
    assert refused(None, "http://rebinding.example/a.jpg").temporary
    assert reached == [("8.8.8.8", 80)]
    assert asked == ["rebinding.example"]


def test_allowed_hosts(shop):
    """A host by its name, with or without its port; another port of it is another host."""
    url = shop.url("/a.png")
    for allowed in ("127.0.0.1", shop.place):
        assert get_picture(url, allow_hosts=[allowed]) == picture(len("/a.png"))
    for allowed in ("127.0.0.1:1", "localhost", ""):
        assert "not a public address" in refused(None, url, allow_hosts=[allowed]).reason
    assert shop.asked["/a.png"] == 2


def test_redirects_are_followed_and_checked(shop):
    """A relative redirect, a chain of them; one to a private address is refused before anything is sent there."""
    other = Shop()
    shop.answers |= {
        "/one": lambda a: a.send(b"", 302, Location="/two?x=1"),
        "/two": lambda a: a.send(b"", 308, Location=shop.url("/three")),
        "/private": lambda a: a.send(b"", 301, Location=other.url("/secret")),
        "/metadata": lambda a: a.send(b"", 302, Location="http://169.254.169.254/latest"),
        "/file": lambda a: a.send(b"", 302, Location="file:///etc/passwd"),
        "/round": lambda a: a.send(b"", 302, Location="/round"),
        "/nowhere": lambda a: a.send(b"", 302),
        "/broken": lambda a: a.send(b"", 302, Location="http://[::1/"),
    }
    assert get_picture(shop.url("/one"), allow_hosts=[shop.place]) == picture(len("/three"))
    assert shop.asked == {"/one": 1, "/two?x=1": 1, "/three": 1}
    assert "not a public address" in refused(shop, shop.url("/private")).reason
    assert "169.254.169.254" in refused(shop, shop.url("/metadata")).reason
    assert "only http and https" in refused(shop, shop.url("/file")).reason
    assert refused(shop, shop.url("/round")).reason == "more than 5 redirects"
    assert refused(shop, shop.url("/nowhere")).reason == "HTTP 302 Found"
    assert refused(shop, shop.url("/broken")).reason == "redirected to what is no URL: http://[::1/"
    assert not other.asked
    other.server_close()


# ── one picture ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_blanks_and_letters_in_a_path(shop):
    """A path that people write is sent as a URL has it, and what is escaped already is left alone."""
    for path, sent in [("/a b/ü.png", "/a%20b/%C3%BC.png"), ("/a%20b.png?q=ä&b=1", "/a%20b.png?q=%C3%A4&b=1")]:
        get_picture(shop.url(path), allow_hosts=[shop.place])
        assert shop.asked[sent] == 1


def test_what_is_no_picture(shop):
    """A page, whatever its type says; nothing; bytes that only begin like a picture; a compressed one."""
    shop.answers |= {
        "/page": lambda a: a.send(b"<!doctype html><p>Not found", Content_Type="image/jpeg"),
        "/empty": lambda a: a.send(b""),
        "/text": lambda a: a.send(b'{"error": 1}', Content_Type="application/json"),
        "/head": lambda a: a.send(b"\xff\xd8\xff" + b"\0" * 200),
    }
    assert refused(shop, shop.url("/page")).reason == "a web page instead of a picture (image/jpeg)"
    assert refused(shop, shop.url("/empty")).reason == "empty"
    assert refused(shop, shop.url("/text")).reason == "something else instead of a picture (application/json)"
    assert "instead of a picture" in refused(shop, shop.url("/head")).reason
    shop.answers["/typed"] = lambda a: a.send(picture(1), Content_Type="text/html")
    assert get_picture(shop.url("/typed"), allow_hosts=[shop.place]) == picture(1)


def endless(answer: Answer) -> None:
    answer.send_response(200)
    answer.end_headers()
    try:
        while True:
            answer.wfile.write(picture() + bytes(1 << 16))
    except OSError:
        pass


def test_bodies_without_end(shop):
    """No more is read than the limit, whether a length was announced, or lied about, or not."""
    shop.answers |= {
        "/announced": lambda a: a.send(picture(), Content_Length=str(10**12)),
        "/endless": endless,
        "/short": lambda a: a.send(picture(), Content_Length="5000"),
        "/exact": lambda a: a.send(picture()),
    }
    assert "longer than" in refused(shop, shop.url("/announced"), limit=10**6).reason
    assert "longer than" in refused(shop, shop.url("/endless"), limit=10**6).reason
    short = refused(shop, shop.url("/short"))
    assert short.temporary
    assert short.reason == f"the connection ended after {len(picture())} of 5,000 bytes"
    size = len(picture())
    assert get_picture(shop.url("/exact"), allow_hosts=[shop.place], limit=size) == picture()
    refused(shop, shop.url("/exact"), limit=size - 1)


def drip(answer: Answer) -> None:
    """A byte now and then, always in time for the next."""
    try:
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000:
            answer.wfile.write(bytes([byte]))
            answer.wfile.flush()
            time.sleep(0.02)
    except OSError:
        pass


def drip_body(answer: Answer) -> None:
    answer.send_response(200)
    answer.end_headers()
    drip(answer)


@pytest.mark.parametrize("behaviour", [drip, drip_body, lambda answer: time.sleep(1)])
def test_slow_hosts(shop, behaviour):
    """One deadline for all of it: a byte at a time in the header or in the body, or none at all, does not hold long."""
    shop.answers["/slow"] = behaviour
    began = time.monotonic()
    error = refused(shop, shop.url("/slow"), seconds=0.3)
    assert time.monotonic() - began < 5
    assert error.temporary
    assert error.reason == "the host answers too slowly"


def test_statuses(shop):
    """What may pass is marked as such, with the time the host asks for, in seconds or as a date."""
    for status in (404, 410, 403, 500, 429, 503):
        shop.answers[f"/{status}"] = lambda a, status=status: a.send(b"", status)
    temporary = {status for status in (404, 410, 403, 500, 429, 503) if refused(shop, shop.url(f"/{status}")).temporary}
    assert temporary == {500, 429, 503}
    shop.answers |= {
        "/in": lambda a: a.send(b"", 429, Retry_After="7"),
        "/at": lambda a: a.send(b"", 503, Retry_After=formatdate(time.time() + 50, usegmt=True)),
        "/past": lambda a: a.send(b"", 503, Retry_After=formatdate(time.time() - 50, usegmt=True)),
        "/odd": lambda a: a.send(b"", 503, Retry_After="soon"),
    }
    assert refused(shop, shop.url("/in")).retry_after == 7
    assert 45 < refused(shop, shop.url("/at")).retry_after <= 50
    assert refused(shop, shop.url("/past")).retry_after == 0
    assert refused(shop, shop.url("/odd")).retry_after is None


def test_hosts_that_are_not_there():
    """A port where nobody listens, and a host that speaks something else."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert refused(None, f"http://127.0.0.1:{port}/", allow_hosts=["127.0.0.1"]).reason == "Connection refused"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with server.accept()[0] as client:
                client.sendall(b"220 ftp ready\r\n")

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        assert refused(None, url, allow_hosts=["127.0.0.1"], seconds=2).temporary
        thread.join(5)


def test_https_needs_a_certificate(shop):
    """A host without TLS, or with a certificate nobody vouches for, is no https host."""
    assert refused(shop, shop.url("/a").replace("http:", "https:"), seconds=5).reason


# ── a catalogue ──────────────────────────────────────────────────────────────────────────────────────────────────────


def lines(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def table(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_catalogue_ends_as_files(shop, tmp_path):
    """Pictures on disk, a catalogue of those there are that can be indexed, and a table of what failed and why."""
    shop.answers["/gone.jpg"] = lambda a: a.send(b"", 404)
    shop.answers["/b.jpg"] = lambda a: a.send(picture(2, "JPEG"))
    source = lines(
        tmp_path / "shop.jsonl",
        {"asin": "A1", "imUrl": shop.url("/a.png"), "title": "Größe, rot", "price": 9.5, "tags": ["x", "y"]},
        {"asin": "B2", "imUrl": shop.url("/b.jpg"), "categories": [["Shoes", "Boots"], ["Sport"]], "new": True},
        {"asin": "C3", "imUrl": shop.url("/gone.jpg")},
        {"asin": "D4", "imUrl": shop.url("/a.png"), "price": 3},
        {"asin": "A1", "imUrl": shop.url("/again.png")},
        {"asin": "E5"},
    )
    mapping = {"id": "asin", "image": "imUrl"}
    done = fetch_catalogue(source, tmp_path / "to", mapping, allow_hosts=[shop.place])
    counts = (done.fetched, done.kept, done.failed, done.repeated, done.local)
    assert counts == (2, 0, 1, 1, 0)
    assert done.problems.counts == {"duplicate id": 1, "no picture": 1}
    assert done.bytes == len(picture(len("/a.png"))) + len(picture(2, "JPEG"))
    [failure] = table(done.failures)
    assert failure == {
        **{"row": "3", "id": "C3", "url": shop.url("/gone.jpg"), "reason": "HTTP 404 Not Found", "attempts": "1"}
    }
    found = {row.payload["id"]: row for row in rows([done.catalogue])}
    assert found.keys() == {"A1", "B2"}  # D4 has the picture of A1: an index holds each once
    assert {Path(row.path).suffix for row in found.values()} == {".png", ".jpg"}
    assert Path(found["B2"].path).read_bytes() == picture(2, "JPEG")
    assert found["A1"].payload == {
        **{"id": "A1", "title": "Größe, rot", "price": 9.5, "tags": ["x", "y"], "image_url": shop.url("/a.png")}
    }
    assert found["B2"].payload["category"] == "Shoes > Boots"
    assert found["B2"].payload["categories"] == ["Shoes", "Boots", "Sport"]
    assert not list((tmp_path / "to").rglob("*.part"))


def test_again_asks_only_for_what_is_missing(shop, tmp_path):
    """A second run keeps what there is and tries once more what had failed."""
    shop.answers["/1.png"] = lambda a: a.send(b"", 404)
    source = lines(tmp_path / "shop.jsonl", *({"id": n, "image": shop.url(f"/{n}.png")} for n in range(3)))
    first = fetch_catalogue(source, tmp_path / "to", allow_hosts=[shop.place])
    assert (first.fetched, first.kept, first.failed) == (2, 0, 1)
    del shop.answers["/1.png"]
    second = fetch_catalogue(source, tmp_path / "to", allow_hosts=[shop.place])
    assert (second.fetched, second.kept, second.failed) == (1, 2, 0)
    assert shop.asked == {"/0.png": 1, "/1.png": 2, "/2.png": 1}
    assert table(second.failures) == []
    assert len(table(second.catalogue)) == 3


def test_what_may_pass_is_tried_again(shop, tmp_path):
    """Busy twice, then there; always busy, then given up after four attempts; broken connections likewise."""

    def busy(answer: Answer) -> None:
        if shop.asked[answer.path] < 3:
            answer.send(b"", 503)
        else:
            answer.send(picture())

    shop.answers |= {"/busy": busy, "/always": lambda a: a.send(b"", 500)}
    shop.answers["/cut"] = lambda a: (
        a.send(picture(), Content_Length="5000") if shop.asked["/cut"] < 2 else a.send(picture())
    )
    source = lines(tmp_path / "s.jsonl", *({"image": shop.url(f"/{name}")} for name in ("busy", "always", "cut")))
    done = fetch_catalogue(source, tmp_path / "to", allow_hosts=[shop.place])
    assert (done.fetched, done.failed) == (2, 1)
    assert shop.asked == {"/busy": 3, "/always": 4, "/cut": 2}
    assert table(done.failures)[0]["reason"] == "HTTP 500 Internal Server Error"
    assert table(done.failures)[0]["attempts"] == "4"


def test_a_host_that_asks_to_wait_is_left_alone(shop, tmp_path):
    """After Retry-After nothing is asked of the host for that long; another host is not held up."""
    other = Shop()
    thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    shop.answers["/0"] = lambda a: a.send(b"", 429, Retry_After="1") if shop.asked["/0"] < 2 else a.send(picture())
    urls = [shop.url(f"/{n}") for n in range(4)] + [other.url(f"/{n}") for n in range(4)]
    source = lines(tmp_path / "s.jsonl", *({"image": url} for url in urls))
    done = fetch_catalogue(source, tmp_path / "to", allow_hosts=["127.0.0.1"], per_host=1)
    other.shutdown()
    other.server_close()
    thread.join(5)
    assert (done.fetched, done.failed) == (8, 0)
    asked = shop.times["/0"][0]
    later = [moment for path, moments in shop.times.items() for moment in moments if moment > asked]
    assert min(later) - asked >= 1
    assert max(moment for moments in other.times.values() for moment in moments) - asked < min(later) - asked


def test_a_host_that_asks_for_too_much_is_given_up(shop, tmp_path):
    """An hour is not waited for: its other pictures are said to be not asked for."""
    for number in range(5):
        shop.answers[f"/{number}"] = lambda a: a.send(b"", 429, Retry_After="3600")
    source = lines(tmp_path / "s.jsonl", *({"image": shop.url(f"/{n}")} for n in range(5)))
    done = fetch_catalogue(source, tmp_path / "to", allow_hosts=[shop.place], per_host=1)
    assert done.failed == 5
    assert sum(shop.asked.values()) == 1
    reasons = [row["reason"] for row in table(done.failures)]
    assert reasons[0] == "HTTP 429 Too Many Requests; the host asks to wait 3,600 s"
    assert set(reasons[1:]) == {"its host was given up: it failed too often, or asked to wait"}


def test_a_dead_host_is_given_up(shop, tmp_path):
    """A thousand pictures of a host that fails are not a thousand times four requests."""
    shop.answers |= {f"/{n}": lambda a: a.send(b"", 500) for n in range(1000)}
    source = lines(tmp_path / "s.jsonl", *({"image": shop.url(f"/{n}")} for n in range(1000)))
    done = fetch_catalogue(source, tmp_path / "to", allow_hosts=[shop.place])
    assert done.failed == 1000
    assert sum(shop.asked.values()) < 40
    assert len(table(done.failures)) == 1000


@pytest.mark.parametrize("per_host", [1, 3])
def test_no_more_at_a_time_than_a_host_may_be_asked(shop, tmp_path, per_host):
    """Many workers, one host: never more requests at a time than `per_host`, and as many where there is work."""

    busy: list[int] = []
    busiest = [0]

    def slow(answer: Answer) -> None:
        busy.append(1)
        busiest[0] = max(busiest[0], len(busy))
        time.sleep(0.02)
        busy.pop()
        answer.send(picture())

    shop.answers |= {f"/{n}": slow for n in range(20)}
    source = lines(tmp_path / "s.jsonl", *({"image": shop.url(f"/{n}")} for n in range(20)))
    done = fetch_catalogue(source, tmp_path / "to", allow_hosts=[shop.place], workers=8, per_host=per_host)
    assert done.fetched == 20
    assert busiest == [per_host]


def test_a_killed_run_goes_on(shop, tmp_path):
    """kill -9 in the middle: no half picture is there, and the next run asks only for the others."""

    def slow(answer: Answer) -> None:
        time.sleep(0.05)
        answer.send(picture(int(answer.path[1:])))

    shop.answers |= {f"/{n}": slow for n in range(40)}
    source = lines(tmp_path / "s.jsonl", *({"id": n, "image": shop.url(f"/{n}")} for n in range(40)))
    command = [sys.executable, "-m", "lookalike", "catalogue", "fetch", str(source), "--to", str(tmp_path / "to")]
    command += ["--allow-host", shop.place, "--per-host", "2", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while sum(1 for _ in (tmp_path / "to").rglob("*.png")) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = sum(1 for _ in (tmp_path / "to").rglob("*.png"))
    assert 5 <= kept < 40
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["kept"], summary["fetched"], summary["failed"]) == (kept, 40 - kept, 0)
    # Each once, and once more what was under way: at most two at a time.
    assert 40 <= sum(shop.asked.values()) <= 42
    found = {row.payload["id"]: Path(row.path).read_bytes() for row in rows([summary["catalogue"]])}
    assert found == {n: picture(n) for n in range(40)}


def test_files_beside_urls(shop, tmp_path):
    """A catalogue with both keeps its files where they are."""
    (tmp_path / "local.png").write_bytes(picture(7))
    source = lines(tmp_path / "s.jsonl", {"image": "local.png", "n": 1}, {"image": shop.url("/x.png"), "n": 2})
    done = fetch_catalogue(source, tmp_path / "to", allow_hosts=[shop.place])
    assert (done.fetched, done.local) == (1, 1)
    found = {row.payload["n"]: row.path for row in rows([done.catalogue])}
    assert found[1] == str(tmp_path / "local.png")
    assert Path(found[2]).read_bytes() == picture(len("/x.png"))


def test_without_leave_nothing_private_is_asked(shop, tmp_path):
    """Without --allow-host the same catalogue asks for nothing, and says so for each picture."""
    source = lines(tmp_path / "s.jsonl", {"image": shop.url("/x.png")}, {"image": "//127.0.0.1/y.png"})
    done = fetch_catalogue(source, tmp_path / "to")
    assert done.failed == 2
    assert all("not a public address" in row["reason"] for row in table(done.failures))
    assert not shop.asked
    assert table(done.catalogue) == []


def test_strict_and_places_that_cannot_be_written(shop, tmp_path):
    """With `strict` the first row that is no product ends it; a file where the folder should be is an error."""
    source = lines(tmp_path / "s.jsonl", {"image": shop.url("/x.png")}, {"image": None})
    with pytest.raises(CatalogueError, match="row 2: no picture"):
        fetch_catalogue(source, tmp_path / "to", allow_hosts=[shop.place], strict=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogueError, match="cannot write"):
        fetch_catalogue(source, tmp_path / "file", allow_hosts=[shop.place])
