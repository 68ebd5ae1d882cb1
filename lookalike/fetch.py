"""Fetch pictures from the network, one safely or a catalogue's politely.

A URL comes from a stranger: it may name a machine that only this one can reach (the cloud's metadata service, a
router, a database on localhost). So a host is resolved once, its addresses are checked, and the connection goes to
the very address that was checked: a name that answers differently the second time (DNS rebinding) gains nothing. The
same holds for every redirect. What comes back is read up to a limit of bytes and of seconds, and must be a picture.

The standard library's HTTP client is enough for that, and its connection can be made by hand, which is what the check
needs. Proxies named in the environment are not used: they would resolve the name again.
"""

from __future__ import annotations

import csv
import email.utils
import hashlib
import heapq
import http.client
import io
import ipaddress
import json
import os
import random
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from lookalike.errors import CatalogueError, FetchError
from lookalike.images import facts, looks_like_picture, shown
from lookalike.products import Product, Seen, is_url, products
from lookalike.tables import Problems

MAX_PICTURE = 32 << 20  # bytes of one picture
SECONDS = 60.0  # for one picture with all its redirects
_WAIT = 15.0  # seconds without a byte after which a host counts as dead
_REDIRECTS = 5
_CHUNK = 1 << 16
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
# Addresses that stand for another one: what is behind them is not what the check sees. `ipaddress` calls some global.
_TRANSLATED = tuple(
    ipaddress.ip_network(block)
    for block in (
        "::/96",
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
        "192.88.99.0/24",
    )
)
_UNICAST = ipaddress.ip_network("2000::/3")  # all that is assigned of IPv6 for everyone

ATTEMPTS = 4  # for one picture, where what went wrong may pass
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds before trying again: doubled each time, and drawn below that
_LONGEST_WAIT = 120.0  # seconds a host may ask to wait; one that asks for more is not asked again
_GIVEN_UP = 20  # requests that failed in a row for reasons that may pass, after which a host is not asked again
_WINDOW = 512  # pictures looked ahead, so that one slow host does not hold up the others
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "HEIF": ".heic", "PPM": ".ppm", "DIB": ".bmp"}
_SUFFIXES |= {name: f".{name.lower()}" for name in ("PNG", "WEBP", "GIF", "BMP", "AVIF")}

__all__ = ["ATTEMPTS", "MAX_PICTURE", "SECONDS", "Fetched", "checked_addresses", "fetch_catalogue", "get_picture"]


# ── which addresses ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a URL leads: `addresses` are those that may be connected to."""

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]

    @property
    def named(self) -> str:
        """The host as the request names it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


def checked_addresses(url: str, allow_hosts: Collection[str] = ()) -> tuple[str, ...]:
    """Resolve the host of a URL, and return the addresses that a stranger's URL may lead to.

    Public unicast addresses only: not private, loopback, link-local, multicast, reserved or unspecified ones, and none
    that stand for another address (IPv4 within IPv6, NAT64, 6to4, Teredo). Connect to one of these, and not to the
    name, which may be answered differently the next time.

    Args:
        url: http or https, without user and password.
        allow_hosts: ``host`` or ``host:port`` that may be anywhere.

    Raises:
        FetchError: no such URL or host, or none of its addresses may be connected to.
    """
    return _target(url, allow_hosts).addresses


def _target(url: str, allow_hosts: Collection[str]) -> _Target:
    name = shown(url.encode("utf-8", "backslashreplace").decode())
    try:
        url.encode()
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
        userinfo = parts.username is not None or parts.password is not None
    except ValueError as error:
        raise FetchError(name, f"not a URL ({error})") from error
    if scheme not in ("http", "https"):
        raise FetchError(name, f"only http and https URLs are fetched, not {scheme or 'a path'}")
    if not host or userinfo or re.search(r"[\x00-\x1f\x7f]", url) or re.search(r"\s", parts.netloc):
        raise FetchError(name, "not a URL that names a host, without user, password and control characters")
    port = port or (443 if scheme == "https" else 80)
    host = _ascii(name, host)
    path = quote(parts.path or "/", safe="/%:=&~+!$,;'@()*") + (
        f"?{quote(parts.query, safe=_QUERY)}" * bool(parts.query)
    )
    found = _resolved(name, host, port)
    if not {host, f"{host}:{port}", f"[{host}]:{port}"} & {allowed.lower() for allowed in allow_hosts}:
        public = tuple(address for address in found if _is_public(address))
        if not public:
            raise FetchError(name, f"{host} is at {', '.join(found)}, which is not a public address")
        found = public
    return _Target(scheme, host, port, path, found)


_QUERY = "/%:=&?~+!$,;'@()*[]"


def _ascii(name: str, host: str) -> str:
    """A host name as the resolver takes it."""
    try:
        return host.rstrip(".").encode("ascii" if host.isascii() else "idna").decode().lower()
    except UnicodeError as error:
        raise FetchError(name, f"not a host name: {shown(host)}") from error


def _resolved(name: str, host: str, port: int) -> tuple[str, ...]:
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label that is empty or too long
        temporary = getattr(error, "errno", None) == socket.EAI_AGAIN
        raise FetchError(name, f"no such host: {shown(host)}", temporary=temporary) from error
    return tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))


def _is_public(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if any(address in block for block in _TRANSLATED):
        return False
    if address.version == 6 and address not in _UNICAST:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


# ── one picture ──────────────────────────────────────────────────────────────────────────────────────────────────────


def get_picture(
    url: str, *, allow_hosts: Collection[str] = (), limit: int = MAX_PICTURE, seconds: float = SECONDS
) -> bytes:
    """The content of a picture on the network.

    Args:
        url: http or https. Up to five redirects are followed, each checked as the first.
        allow_hosts: ``host`` or ``host:port`` that may be at a private address.
        limit: bytes; more are not read.
        seconds: for all of it, however slowly a host sends.

    Raises:
        FetchError: an address that may not be connected to, a host that does not answer, an answer other than 200, one
            that is too long or too slow, or content that is no picture by its first bytes and its header.
    """
    deadline = time.monotonic() + seconds
    target = url
    for _ in range(_REDIRECTS + 1):
        try:
            answer = _ask(target, allow_hosts, limit, deadline)
        except TimeoutError as error:
            raise FetchError(shown(target), "the host answers too slowly", temporary=True) from error
        except ssl.SSLCertVerificationError as error:
            raise FetchError(shown(target), f"certificate not valid: {error.verify_message}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise FetchError(shown(target), " ".join(str(reason).split())[:200], temporary=True) from error
        if isinstance(answer, bytes):
            return answer
        try:
            target = urljoin(target, answer)
        except ValueError as error:
            raise FetchError(shown(target), f"redirected to what is no URL: {shown(answer)}") from error
    raise FetchError(shown(url), f"more than {_REDIRECTS} redirects")


def _ask(url: str, allow_hosts: Collection[str], limit: int, deadline: float) -> bytes | str:
    """The picture, or where the host says it is now."""
    target = _target(url, allow_hosts)
    name = shown(url)
    connection = _Connection(target, deadline)
    with closing(connection):
        connection.request("GET", target.path, headers=_HEADERS | {"Host": target.named})
        answer = connection.getresponse()
    with closing(answer):
        where = answer.headers.get("Location")
        if answer.status in (301, 302, 303, 307, 308) and where:
            return where
        if answer.status != 200:
            after = _retry_after(answer.headers.get("Retry-After"))
            again = answer.status in _TEMPORARY
            raise FetchError(name, f"HTTP {answer.status} {answer.reason}".strip(), temporary=again, retry_after=after)
        return _picture(name, _body(name, answer, limit), answer.headers.get("Content-Type", ""))


_HEADERS = {
    "User-Agent": "lookalike (fetches the pictures of a catalogue)",
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number of seconds or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _body(name: str, answer: http.client.HTTPResponse, limit: int) -> bytes:
    """The content, read piece by piece, so that a lie about its length costs nothing."""
    too_long = FetchError(name, f"longer than the {limit / 1e6:.0f} MB that are read")
    announced = answer.length
    if announced is not None and announced > limit:
        raise too_long
    data = bytearray()
    while chunk := answer.read(_CHUNK):
        data += chunk
        if len(data) > limit:
            raise too_long
    if announced is not None and len(data) < announced:
        raise FetchError(name, f"the connection ended after {len(data):,} of {announced:,} bytes", temporary=True)
    return bytes(data)


def _picture(name: str, data: bytes, kind: str) -> bytes:
    """The same bytes, if they are a picture: by the first of them, and by a header that can be read."""
    if looks_like_picture(data[:16]) and facts(data):
        return data
    if not data:
        raise FetchError(name, "empty")
    what = "a web page" if data[:512].lstrip().startswith(b"<") else "something else"
    raise FetchError(name, f"{what} instead of a picture ({shown(kind)[:80] or 'no content type'})")


class _Connection(http.client.HTTPConnection):
    """A connection to the checked addresses of a target, all of whose use ends at a deadline."""

    def __init__(self, target: _Target, deadline: float) -> None:
        super().__init__(target.host, target.port)
        self._target = target
        self._deadline = deadline

    def connect(self) -> None:
        """Connect to the first checked address that answers; no name is looked up here."""
        failure: OSError = OSError("no address")
        for address in self._target.addresses:
            plain = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            try:
                plain.settimeout(_left(self._deadline))
                plain.connect((address, self._target.port))
                if self._target.scheme == "https":
                    plain = _trust().wrap_socket(plain, server_hostname=self._target.host)
            except OSError as error:
                plain.close()
                failure = error
                continue
            self.sock = _Timed(plain, self._deadline)
            return
        raise failure


@cache
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()


def _left(deadline: float) -> float:
    """Seconds to wait for the next step. Raises TimeoutError where none are left."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, _WAIT)


class _Timed:
    """A socket as `http.client` uses one, with one deadline: a byte at a time, in time each, would last for ever."""

    def __init__(self, plain: socket.socket, deadline: float) -> None:
        self._plain = plain
        self._deadline = deadline

    def sendall(self, data: Any) -> None:
        """Send all of it in time."""
        self._plain.settimeout(_left(self._deadline))
        self._plain.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """What is received, as a file."""
        return io.BufferedReader(_TimedReader(self._plain, self._deadline))

    def close(self) -> None:
        """Close it; what `makefile` gave stays open until it is closed, too."""
        self._plain.close()


class _TimedReader(io.RawIOBase):
    def __init__(self, plain: socket.socket, deadline: float) -> None:
        self._plain = plain
        self._deadline = deadline
        self._file = plain.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Receive into a buffer, in time."""
        self._plain.settimeout(_left(self._deadline))
        return self._file.readinto(buffer)

    def close(self) -> None:
        """Let go of the socket."""
        self._file.close()
        super().close()


# ── a catalogue ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Fetched:
    """What a run did, in numbers of pictures.

    Attributes:
        fetched: new on disk.
        kept: there from an earlier run.
        failed: not to be had; `failures` says why.
        repeated: rows whose URL an earlier row has, too.
        local: rows whose picture is a file and no URL.
        bytes: of the pictures fetched.
        catalogue: the table that was written, one row for each picture there is.
        failures: the table of what failed: row, id, url, reason, attempts.
        problems: rows that are no products.
    """

    fetched: int = 0
    kept: int = 0
    failed: int = 0
    repeated: int = 0
    local: int = 0
    bytes: int = 0
    catalogue: str = ""
    failures: str = ""
    problems: Problems = field(default_factory=Problems)


def fetch_catalogue(
    path: str | os.PathLike[str],
    to: str | os.PathLike[str],
    mapping: Mapping[str, str] | None = None,
    *,
    allow_hosts: Collection[str] = (),
    workers: int = 16,
    per_host: int = 4,
    limit: int = MAX_PICTURE,
    strict: bool = False,
    progress: Callable[[Fetched], None] | None = None,
) -> Fetched:
    """Fetch the pictures of a catalogue whose pictures are URLs, and write the catalogue with the files in their place.

    Each picture is a file in ``to/pictures`` under a name made from its URL, written whole or not at all: a run that
    was killed goes on where it was when it is started again. What may pass (a host that is busy, a broken connection)
    is tried again after a pause that doubles and is drawn at random, or as long as the host asks for.

    Args:
        path: the catalogue, in any format of `lookalike.tables`.
        to: a folder, made where there is none. It gets ``catalogue.csv``, ready to be indexed, and ``failures.csv``.
        mapping: payload name → column (see `lookalike.products.products`).
        allow_hosts: ``host`` or ``host:port`` that may be at a private address (see `get_picture`).
        workers: pictures at a time.
        per_host: pictures at a time from one host.
        limit: bytes of a picture.
        strict: raise at the first row that is no product.
        progress: called often with the counts so far.

    Raises:
        CatalogueError: the catalogue cannot be read, or the folder not written.
    """
    done = Fetched(problems=Problems(strict))
    folder = Path(to)
    columns: dict[str, None] = {}
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        done.catalogue, done.failures = str(folder / "catalogue.csv"), str(folder / "failures.csv")
        with Path(done.failures).open("w", encoding="utf-8", newline="") as failures:
            table = csv.writer(failures)
            table.writerow(["row", "id", "url", "reason", "attempts"])

            def get(job: _Job) -> int:
                data = get_picture(job.url, allow_hosts=allow_hosts, limit=limit)
                _store(folder / "pictures", job.name, data)
                return len(data)

            def tell(job: _Job, outcome: int | FetchError) -> None:
                if isinstance(outcome, FetchError):
                    done.failed += 1
                    table.writerow([job.row, job.id, job.url, outcome.reason, job.attempts])
                    failures.flush()
                else:
                    done.fetched += 1
                    done.bytes += outcome
                if progress:
                    progress(done)

            listed = products(path, mapping, done.problems)
            _Queue(get, tell, workers, per_host).run(_jobs(listed, folder / "pictures", done, columns))
        _write_catalogue(path, folder, mapping, list(columns))
    except OSError as error:
        raise CatalogueError(f"cannot write {shown(error.filename or folder)}: {error.strerror or error}") from error
    return done


@dataclass(slots=True)
class _Job:
    """A picture to fetch, into the file `name` without its extension."""

    row: int
    id: str | int | None
    url: str
    name: str
    host: str
    attempts: int = 0


def _jobs(listed: Iterator[Product], folder: Path, done: Fetched, columns: dict[str, None]) -> Iterator[_Job]:
    """What is not there yet, each URL once; `columns` gets the names of the payload."""
    seen = Seen()
    for product in listed:
        columns.update(dict.fromkeys(product.payload))
        if not is_url(product.picture):
            done.local += 1
            continue
        url = _absolute(product.picture)
        if not seen.add(url):
            done.repeated += 1
        elif _stored(folder, _name(url)):
            done.kept += 1
        else:
            yield _Job(product.row, product.id, url, _name(url), _host(url))


def _absolute(picture: str) -> str:
    """A URL with its scheme: pages write ``//host/path``."""
    return f"https:{picture}" if picture.startswith("//") else picture


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _name(url: str) -> str:
    """The name of a picture's file without its extension: in one of 256 folders, as file systems like it."""
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{digest[:2]}/{digest[2:22]}"


def _stored(folder: Path, name: str) -> str | None:
    """The file of a picture, relative to the folder, if it is there."""
    found = (name + suffix for suffix in dict.fromkeys(_SUFFIXES.values()))
    return next((file for file in found if (folder / file).is_file()), None)


def _store(folder: Path, name: str, data: bytes) -> None:
    """Write a picture whole: under another name first, so that a kill leaves nothing that looks finished."""
    target = folder / (name + _SUFFIXES[facts(data)["format"]])
    target.parent.mkdir(exist_ok=True)
    part = target.with_suffix(".part")
    part.write_bytes(data)
    part.replace(target)


def _write_catalogue(
    path: str | os.PathLike[str], folder: Path, mapping: Mapping[str, str] | None, columns: list[str]
) -> None:
    """The catalogue again, with files for URLs, without the rows that have none."""
    home = Path(os.path.abspath(path)).parent  # noqa: PTH100
    part = folder / "catalogue.part"
    keep_url = "image_url" not in columns
    with part.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        table = csv.writer(file)
        table.writerow(["image", *columns, *["image_url"] * keep_url])
        for product in products(path, mapping, Problems()):
            url = _absolute(product.picture) if is_url(product.picture) else ""
            stored = _stored(folder / "pictures", _name(url)) if url else None
            if url and stored is None:
                continue
            image = f"pictures/{stored}" if stored else str(home / product.picture)
            table.writerow([image, *(_cell(product.payload.get(name)) for name in columns), *[url] * keep_url])
    part.replace(folder / "catalogue.csv")


def _cell(value: Any) -> Any:
    """A value in a CSV file as `lookalike.tables` reads it back."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | dict) else value


@dataclass(slots=True)
class _Host:
    """What is known of a host: pictures that wait for it, and when it may be asked."""

    waiting: deque[_Job] = field(default_factory=deque)
    running: int = 0
    not_before: float = 0.0
    failures: int = 0


class _Queue:
    """Work on many hosts at once, on each with restraint.

    Args:
        work: does a job, in a thread; raises FetchError.
        tell: is told how each job ended, in the thread that calls `run`.
        workers: jobs at a time.
        per_host: jobs at a time for one host.
    """

    def __init__(
        self,
        work: Callable[[_Job], int],
        tell: Callable[[_Job, int | FetchError], None],
        workers: int,
        per_host: int,
    ) -> None:
        self._work = work
        self._tell = tell
        self._workers = workers
        self._per_host = per_host
        self._hosts: dict[str, _Host] = {}
        self._later: list[tuple[float, int, _Job]] = []  # a heap: when to try again, a number against ties, what
        self._running: dict[Future[int], _Job] = {}
        self._held = 0  # jobs that wait or run

    def run(self, jobs: Iterator[_Job]) -> None:
        """Do all jobs; of those to come no more are drawn than a window takes."""
        pool = ThreadPoolExecutor(self._workers, "fetch")
        try:
            while True:
                for job in islice(jobs, _WINDOW - self._held):
                    self._hosts.setdefault(job.host, _Host()).waiting.append(job)
                    self._held += 1
                if not self._held:
                    return
                self._start(pool)
                if self._running:
                    done, _ = wait(self._running, self._pause(), FIRST_COMPLETED)
                    for future in done:
                        self._finish(future)
                elif (pause := self._pause()) is not None:
                    time.sleep(pause)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor) -> None:
        """Start what may be started now."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            job = heapq.heappop(self._later)[2]
            self._hosts[job.host].waiting.append(job)
        for host in self._hosts.values():
            while host.waiting and host.failures >= _GIVEN_UP:
                job = host.waiting.popleft()
                self._end(job, FetchError(job.url, "its host was given up: it failed too often, or asked to wait"))
            while (
                host.waiting
                and host.running < self._per_host
                and host.not_before <= now
                and len(self._running) < self._workers
            ):
                job = host.waiting.popleft()
                job.attempts += 1
                host.running += 1
                self._running[pool.submit(self._work, job)] = job

    def _pause(self) -> float | None:
        """Seconds until something may be started that may not now; None where nothing waits for a time."""
        now = time.monotonic()
        times = [host.not_before for host in self._hosts.values() if host.waiting and host.not_before > now]
        times += [self._later[0][0]] if self._later else []
        return max(0.0, min(times) - now) if times else None

    def _finish(self, future: Future[int]) -> None:
        job = self._running.pop(future)
        host = self._hosts[job.host]
        host.running -= 1
        try:
            outcome: int | FetchError = future.result()
        except FetchError as error:
            outcome = error
        if not isinstance(outcome, FetchError) or not outcome.temporary:
            host.failures = 0
            self._end(job, outcome)
            return
        now, asked = time.monotonic(), outcome.retry_after or 0.0
        host.not_before = max(host.not_before, now + asked) if asked else host.not_before
        host.failures = _GIVEN_UP if asked > _LONGEST_WAIT else host.failures + (not asked)
        if job.attempts >= ATTEMPTS or asked > _LONGEST_WAIT:
            reason = f"{outcome.reason}; the host asks to wait {asked:,.0f} s" if asked else outcome.reason
            self._end(job, FetchError(job.url, reason))
            return
        # Full jitter: without it, what failed together would come back together.
        pause = random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (job.attempts - 1)))
        heapq.heappush(self._later, (now + asked + pause, id(job), job))

    def _end(self, job: _Job, outcome: int | FetchError) -> None:
        self._held -= 1
        self._tell(job, outcome)
