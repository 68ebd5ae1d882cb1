"""Who answers: each endpoint turns a checked call into one question to the package, and the answer into JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import heapq
import hmac
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from starlette.responses import Response

from lookalike import __version__
from lookalike.errors import LookalikeError, QueryError
from lookalike.feedback import Query
from lookalike.images import Picture, Region
from lookalike.index.base import Hit, Item
from lookalike.search import near_duplicates
from lookalike.server import schemas
from lookalike.server.calls import Call, lines
from lookalike.server.replies import Refused, code_of, json_reply
from lookalike.server.security import COOKIE, session_of
from lookalike.server.service import Entry
from lookalike.server.studies import facets, plane
from lookalike.server.thumbnails import SIZES, check_pixels, jpeg

__all__ = [
    "add_items",
    "delete_items",
    "duplicates",
    "explain",
    "facet",
    "forget",
    "get_items",
    "health",
    "import_items",
    "info",
    "label",
    "list_items",
    "map_",
    "metrics",
    "react",
    "ready",
    "recommend",
    "recorded",
    "search",
    "session",
    "thumbnail",
]

IMPORTED_AT_ONCE = 64  # lines encoded and stored together
ERRORS_TOLD = 100
RECORDED_PIXELS = 256  # of an uploaded picture that is kept with its search


def _reply(call: Call, document: Any, status: int = 200) -> Response:
    return json_reply(document, call.request.headers, status)


# ── the server itself ────────────────────────────────────────────────────────────────────────────────────────────────


async def health(call: Call) -> Response:
    """The process is alive."""
    return _reply(call, {"status": "ok"})


async def ready(call: Call) -> Response:
    """Whether requests are answered now."""
    state = call.service.state
    return _reply(call, {"status": state}, 200 if state == "ok" else 503)


async def info(call: Call) -> Response:
    """What is served."""
    service, settings = call.service, call.service.settings
    thresholds = service.encoder.bundle.manifest.get("thresholds", {})
    return _reply(
        call,
        {
            "name": service.index.location.rstrip("/").rpartition("/")[2],
            "version": __version__,
            "items": len(service.index),
            "dim": service.index.dim,
            "encoder": {"name": service.encoder.name, "fingerprint": service.encoder.fingerprint},
            "can": {
                "text": service.encoder.has_text,
                "url": settings.fetch,
                "write": settings.writable,
                "add": settings.writable and service.uploads is not None,
                "feedback": service.feedback is not None,
            },
            "limits": {
                "upload_bytes": settings.upload_bytes,
                "pixels": settings.pixels,
                "pictures": settings.pictures,
                "k": schemas.K["maximum"],
            },
            "thresholds": {name: value for name, value in thresholds.items() if isinstance(value, int | float)},
        },
    )


async def metrics(call: Call) -> Response:
    """For Prometheus."""
    text = await call.service.asking.run(call.service.numbers.text)
    return Response(text, media_type="text/plain; version=0.0.4", headers={"Cache-Control": "no-store"})


async def session(call: Call) -> Response:
    """A cookie for a browser that has the token: pictures cannot send headers."""
    token = call.service.settings.token
    if token is not None and not hmac.compare_digest(call.document["token"].encode(), token.encode()):
        raise Refused(401, "unauthorised", "that is not the token", "Ask whoever runs the server.")
    reply = _reply(call, {"done": True})
    if token is not None:
        secure = call.request.url.scheme == "https"
        reply.set_cookie(COOKIE, session_of(token), httponly=True, samesite="strict", secure=secure, path="/")
    return reply


# ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def search(call: Call) -> Response:
    """Nearest items."""
    asked, service = call.document, call.service
    start, count = asked["offset"], asked["k"]
    # One more than is shown tells whether there is a next page.
    options: dict[str, Any] = {"where": asked.get("where"), "min_score": asked.get("min_score")}
    options |= {"distinct": asked["distinct"]}
    answer = await _asked(call, start + count + 1, options)
    hits: list[Hit] = await service.asking.run(answer)
    shown = hits[start : start + count]
    number = await _record(call, shown) if "record" in asked else None
    more = start + count if len(hits) > start + count else None
    return _reply(call, {"hits": service.hits(shown), "next": more, "search": number})


async def _asked(call: Call, k: int, options: dict[str, Any]) -> Callable[[], list[Hit]]:
    """The question of a search, ready to be put to the index in a thread."""
    asked, service = call.document, call.service
    _check_question(call)
    searcher = service.searcher
    if "liked" in asked or "liked" in call.files or "disliked" in asked or "disliked" in call.files:
        liked, disliked = asked.get("liked", []), asked.get("disliked", [])
        uploads = {name: [_region(call, data) for data in call.files.get(name, [])] for name in ("liked", "disliked")}

        def by_examples() -> list[Hit]:
            service.known([*liked, *disliked])
            for picture in (*uploads["liked"], *uploads["disliked"]):
                check_pixels(_bytes_of(picture), service.settings.pixels)
            return searcher.by_examples([*liked, *uploads["liked"]], [*disliked, *uploads["disliked"]], k, **options)

        return by_examples
    picture = await _picture(call)
    if "text" in asked:
        more: dict[str, Any] = {"picture": picture} if picture is not None else {}
        if "weight" in asked:
            more["weight"] = asked["weight"]
        return partial(searcher.by_text, asked["text"], k, **options, **more)
    if picture is not None:
        return partial(searcher.by_vector, await service.batcher.encode(picture), k, **options)
    if "vector" in asked:
        return partial(searcher.by_vector, asked["vector"], k, **options)

    def by_key() -> list[Hit]:
        [item] = service.known([asked["key"]])
        if "region" in asked:
            region = Region(service.album.content(item), _box(asked["region"]))
            return searcher.by_picture(region, k, **options)
        return searcher.by_key(asked["key"], k, **options)

    return by_key


def _check_question(call: Call) -> None:
    """Make sure that there is one question, and nothing that does not belong to it."""
    asked = call.document
    named = {name for name in schemas.QUESTIONS if name in asked or name in call.files}
    if "disliked" in asked or "disliked" in call.files:
        named.add("liked")
    if named not in ({name} for name in schemas.QUESTIONS) and named != {"text", "picture"}:
        raise Refused(
            400,
            "malformed",
            f"there must be one question, not {', '.join(sorted(named)) or 'none'}",
            f"Give one of {', '.join(schemas.QUESTIONS)}; words may go with a picture.",
        )
    if len(call.files.get("picture", [])) > 1:
        raise Refused(400, "malformed", "there is more than one picture", "Send several as liked examples.")
    if "region" in asked:
        _box(asked["region"])
        if not named & {"picture", "key", "url"}:
            raise Refused(400, "malformed", "a region needs a picture", "Give one of picture, key, url.")
    if "weight" in asked and len(named) < 2:
        raise Refused(400, "malformed", "a weight is between words and a picture", "Give both.")
    if "url" in asked and not call.service.settings.fetch:
        raise Refused(
            403, "no_url", "this server does not fetch pictures", "Send the picture, or start it with --allow-url."
        )


async def _picture(call: Call) -> Picture | None:
    """The picture of a question, if it has one: uploaded or fetched, within limits, cut to its region."""
    settings = call.service.settings
    if "picture" in call.files:
        [data] = call.files["picture"]
    elif "url" in call.document:
        from lookalike.fetch import get_picture

        fetch = partial(
            get_picture,
            call.document["url"],
            allow_hosts=settings.fetch_hosts,
            limit=settings.upload_bytes,
            seconds=settings.seconds / 2,
        )
        data = await call.service.drawing.run(fetch)
        call.files["picture"] = [data]
    else:
        return None
    check_pixels(data, settings.pixels)
    return _region(call, data)


def _region(call: Call, data: bytes) -> Picture:
    return Region(data, _box(call.document["region"])) if "region" in call.document else data


def _bytes_of(picture: Picture) -> bytes:
    data = picture.picture if isinstance(picture, Region) else picture
    assert isinstance(data, bytes)
    return data


def _box(region: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = region
    if not (left < right and top < bottom):
        raise Refused(
            400, "malformed", f"region {list(region)} is empty", "Give left, top, right, bottom: shares that rise."
        )
    return left, top, right, bottom


async def _record(call: Call, shown: Sequence[Hit]) -> int:
    """Keep the search, as its client asked."""
    store = call.service.feedback
    if store is None:
        raise Refused(403, "no_feedback", "this server records nothing", "Start it with --record.")
    asked = call.document
    person = asked["record"]["person"]

    def write() -> int:
        picture = b""
        if "picture" in call.files:
            picture = jpeg(_region(call, call.files["picture"][0]), RECORDED_PIXELS)
        liked = tuple(asked.get("liked", ()))
        if not (picture or liked or asked.get("key") or asked.get("text")):
            raise Refused(400, "malformed", "this question cannot be recorded", "Ask by picture, key, words or keys.")
        query = Query(asked.get("text", ""), asked.get("key", ""), picture, liked, tuple(asked.get("disliked", ())))
        return store.record(query, shown, person=person)

    return await call.service.drawing.run(write)


async def recommend(call: Call) -> Response:
    """Products beside products."""
    from lookalike.recommend import Recommender

    asked, service = call.document, call.service

    def beside() -> list[Hit]:
        service.known([*asked["keys"], *asked.get("unlike", [])])
        recommender = Recommender(service.index, service.encoder)
        return recommender.beside(
            asked["keys"],
            asked.get("unlike", ()),
            asked["k"],
            where=asked.get("where"),
            diverse=asked["diverse"],
            across=asked.get("across"),
            group=asked.get("group"),
        )

    hits = await service.asking.run(beside)
    return _reply(call, {"hits": service.hits(hits)})


async def label(call: Call) -> Response:
    """Name items after a few examples."""
    asked, service = call.document, call.service
    document = await service.studying.run(_labelled, call, asked)
    return _reply(call, document)


def _labelled(call: Call, asked: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from lookalike.fewshot import FewShotClassifier

    service = call.service
    names = [name for name, keys in asked["baskets"].items() for _ in keys]
    examples = service.known([key for keys in asked["baskets"].values() for key in keys])
    classifier = FewShotClassifier(unknown="auto" if asked["unknown"] and len(asked["baskets"]) > 1 else None)
    classifier.fit(np.stack([item.vector for item in examples if item.vector is not None]), np.array(names))
    items, more = _to_name(call, asked, {item.key for item in examples})
    counts: Counter[str] = Counter()
    labels = []
    for start in range(0, len(items), 512):
        block = items[start : start + 512]
        decisions = classifier.decide(np.stack([item.vector for item in block if item.vector is not None]), top=1)
        for item, decision in zip(block, decisions, strict=True):
            name = None if decision.label is None else str(decision.label)
            counts[name or "unknown"] += 1
            labels.append(
                {
                    "key": item.key,
                    "label": name,
                    "probability": min(1.0, decision.candidates[0].probability),
                    "payload": item.payload,
                    "thumbnail": service.thumbnail_url(item.key, item.payload),
                }
            )
    return {"labels": labels, "counts": dict(counts), "more": more}


def _to_name(call: Call, asked: dict[str, Any], examples: set[str]) -> tuple[list[Item], bool]:
    """The items that want a name, and whether there are more."""
    if "keys" in asked:
        return [item for item in call.service.known(asked["keys"]) if item.key not in examples], False
    found: list[Item] = []
    for item in call.service.index.scan(asked.get("where"), vectors=True):
        if item.key in examples:
            continue
        if len(found) == asked["limit"]:
            return found, True
        found.append(item)
    return found, False


async def explain(call: Call) -> Response:
    """What made two pictures alike."""
    asked, service = call.document, call.service
    uploaded = call.files.get("picture", [])
    if len(uploaded) + ("query" in asked) != 1:
        raise Refused(400, "malformed", "there must be one query", "Give query, a key, or upload one picture.")
    if "region" in asked:
        _box(asked["region"])

    def work() -> dict[str, Any]:
        from lookalike.explain import explain as explained

        [item] = service.known([asked["key"]])
        data = uploaded[0] if uploaded else service.album.content(service.known([asked["query"]])[0])
        check_pixels(data, service.settings.pixels)
        found = explained(service.encoder, _region(call, data), service.album.content(item))
        document = found.document()
        return {
            "score": document["score"],
            "method": document["method"],
            "why": document["why"],
            "matches": document["matches"],
            "left": _data_url(jpeg(found.overlay("left"), SIZES[-2])),
            "right": _data_url(jpeg(found.overlay("right"), SIZES[-2])),
        }

    return _reply(call, await service.studying.run(work))


def _data_url(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


# ── the whole index ──────────────────────────────────────────────────────────────────────────────────────────────────


def _study(call: Call, *asked: Any) -> tuple[Any, ...]:
    """What a study depends on. The number of items tells of changes that others made on a server."""
    return (call.service.generation, len(call.service.index), *asked)


async def duplicates(call: Call) -> Response:
    """Groups of near-duplicates."""
    asked, service = call.document, call.service
    threshold = asked.get("threshold")
    if threshold is None:
        threshold = service.encoder.bundle.manifest.get("thresholds", {}).get("duplicate")
    if threshold is None:
        raise QueryError("the bundle of this index carries no calibrated threshold: give threshold, e.g. 0.95")
    where = asked.get("where")
    key = _study(call, "duplicates", threshold, json.dumps(where, sort_keys=True))
    groups = await service.studies.get(key, partial(near_duplicates, service.index, float(threshold), where))
    start, end = asked["offset"], asked["offset"] + asked["limit"]
    document = {
        "groups": [service.hits(group) for group in groups[start:end]],
        "count": len(groups),
        "extra": sum(len(group) - 1 for group in groups),
        "threshold": threshold,
        "next": end if len(groups) > end else None,
    }
    return _reply(call, document)


async def facet(call: Call) -> Response:
    """Fields, and what they hold."""
    where = call.document.get("where")
    key = _study(call, "facets", json.dumps(where, sort_keys=True))
    return _reply(call, await call.service.studies.get(key, partial(facets, call.service.index, where)))


async def map_(call: Call) -> Response:
    """The index as points in a plane."""
    service, field, limit = call.service, call.asked.get("field"), call.asked["limit"]
    found = await service.studies.get(_study(call, "map", limit), partial(plane, service.index, limit))
    points = [
        {
            "key": key,
            "x": round(float(x), 5),
            "y": round(float(y), 5),
            "value": _plain(payload.get(field)) if field is not None else None,
            "thumbnail": service.thumbnail_url(key, payload),
        }
        for (key, payload), (x, y) in zip(found["items"], found["places"], strict=True)
    ]
    document = {"points": points, "field": field, "sampled": found["count"] > len(points), "count": found["count"]}
    return _reply(call, document | {"explained": found["explained"]})


def _plain(value: Any) -> str | None:
    return str(value)[:200] if isinstance(value, str | int | float) else None


# ── items ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def list_items(call: Call) -> Response:
    """A page of items in the order of their keys."""
    asked, service = call.document, call.service

    def page() -> list[Item]:
        after, where = asked.get("after"), asked.get("where")
        behind = (item for item in service.index.scan(where) if after is None or item.key > after)
        return heapq.nsmallest(asked["limit"] + 1, behind, key=lambda item: item.key)

    found = await service.studying.run(page)
    shown = found[: asked["limit"]]
    more = shown[-1].key if len(found) > len(shown) else None
    return _reply(call, {"items": [service.item(item) for item in shown], "next": more})


async def get_items(call: Call) -> Response:
    """Items by their keys."""
    asked, service = call.document, call.service
    found = await service.asking.run(service.index.get, asked["keys"])
    documents = [None if item is None else service.item(item, asked.get("vectors", False)) for item in found]
    return _reply(call, {"items": documents})


async def add_items(call: Call) -> Response:
    """Add pictures."""
    service, pictures = call.service, call.files.get("picture", [])
    payloads = call.document.get("payloads") or [{} for _ in pictures]
    if not pictures or len(payloads) != len(pictures):
        raise Refused(
            400,
            "malformed",
            f"{len(pictures)} pictures and {len(payloads)} payloads",
            "Send at least one picture, and a payload for each or none at all.",
        )
    _can_add(call)
    for data in pictures:
        check_pixels(data, service.settings.pixels)
    vectors = await asyncio.gather(*(service.batcher.encode(data) for data in pictures))

    def keep() -> list[Item]:
        return [Item(*service.keep(data, payload)) for data, payload in zip(pictures, payloads, strict=True)]

    items = await service.drawing.run(keep)
    await service.add([(item.key, vector, item.payload) for item, vector in zip(items, vectors, strict=True)])
    return _reply(call, {"items": [service.item(item) for item in items]}, 201)


def _can_add(call: Call) -> None:
    if call.service.uploads is None:
        raise Refused(
            403, "no_uploads", "there is no place to keep pictures", "Start the server with --uploads FOLDER."
        )


async def delete_items(call: Call) -> Response:
    """Delete items."""
    removed = await call.service.writing.run(call.service.remove, call.document["keys"])
    return _reply(call, {"removed": removed})


async def import_items(call: Call) -> Response:
    """Add what comes as JSON lines, in bounded memory, durable block by block."""
    run = _Import(call)
    block: list[tuple[int, bytes]] = []
    number = 0
    async for line in lines(call):
        number += 1
        if line.strip():
            block.append((number, line))
        # The memory of a block counts as any other body's.
        if len(block) == IMPORTED_AT_ONCE or sum(len(text) for _, text in block) > call.service.settings.line_bytes:
            await run.take(block)
            block = []
    await run.take(block)
    if not number:
        raise Refused(400, "malformed", "the body is empty", "Send JSON, one object a line.")
    return _reply(call, {"added": run.added, "failed": run.failed, "errors": run.errors})


class _Import:
    """One import: what was added and what failed."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.added = 0
        self.failed = 0
        self.errors: list[dict[str, Any]] = []

    async def take(self, block: Sequence[tuple[int, bytes]]) -> None:
        """Store the lines of a block; one that fails does not stop the others."""
        ready = [found for found in await asyncio.gather(*(self._read(*line) for line in block)) if found is not None]
        if not ready:
            return
        service = self._call.service
        try:
            await service.add([entry for _, entry in ready])
            self.added += len(ready)
        except LookalikeError:  # one of them: nothing was stored, and each is tried alone
            for number, entry in ready:
                try:
                    await service.add([entry])
                    self.added += 1
                except LookalikeError as error:
                    self._fail(number, code_of(error), str(error))

    async def _read(self, number: int, line: bytes) -> tuple[int, Entry] | None:
        """A line's number and what it holds."""
        service = self._call.service
        try:
            entry = schemas.parsed(line, "the line")
            schemas.check(entry, schemas.IMPORT_LINE, "the line")
            if ("picture" in entry) == ("key" in entry) or ("vector" in entry) != ("key" in entry):
                raise Refused(400, "malformed", "the line has neither picture nor key and vector", "Give one of them.")
            payload = entry.get("payload", {})
            if (
                "file" in payload
            ):  # by which it would tell the server, at its next start, a folder to show pictures from
                raise Refused(400, "malformed", "the payload's field file is the server's own", "Name it otherwise.")
            if "key" in entry:
                if len(entry["vector"]) != service.index.dim:
                    length = f"{len(entry['vector'])}, not {service.index.dim}"
                    raise Refused(400, "shape_error", f"the vector has length {length}", "Use the index's encoder.")
                return number, (entry["key"], entry["vector"], payload)
            _can_add(self._call)
            data = base64.b64decode(entry["picture"], validate=True)
            check_pixels(data, service.settings.pixels)
            vector = await service.batcher.encode(data)
            key, whole = await service.drawing.run(service.keep, data, payload)
            return number, (key, vector, whole)
        except binascii.Error as error:
            self._fail(number, "malformed", f"picture is not base64: {error}")
        except Refused as error:
            if error.status == 503:
                raise
            self._fail(number, error.code, error.message)
        except LookalikeError as error:
            self._fail(number, code_of(error), str(error))
        return None

    def _fail(self, number: int, code: str, message: str) -> None:
        self.failed += 1
        if len(self.errors) < ERRORS_TOLD:
            self.errors.append({"line": number, "code": code, "message": message[:500]})


async def thumbnail(call: Call) -> Response:
    """The picture of an item, small."""
    service, size = call.service, call.asked["size"]
    [item] = service.known([call.asked["key"]])
    service.album.path(item)
    tag = f'"{service.album.tag(item, size)}"'
    # The page asks with the content's hash: that address never shows another picture.
    lasts = "max-age=31536000, immutable" if call.asked.get("v") else "max-age=0, must-revalidate"
    headers = {"ETag": tag, "Cache-Control": f"private, {lasts}"}
    known = {one.strip().removeprefix("W/") for one in call.request.headers.get("if-none-match", "").split(",")}
    if tag in known:
        return Response(status_code=304, headers=headers)
    data = await service.drawing.run(service.album.thumbnail, item, size)
    return Response(data, media_type="image/jpeg", headers=headers)


# ── feedback ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def react(call: Call) -> Response:
    """A click or a judgement."""
    store, asked = call.service.feedback, call.document
    assert store is not None

    def write() -> None:
        if "clicked" in asked:
            store.click(asked["search"], asked["key"])
        if "alike" in asked:
            store.judge(asked["search"], asked["key"], asked["alike"])

    await call.service.drawing.run(write)
    return _reply(call, {"done": True})


async def recorded(call: Call) -> Response:
    """What is recorded, a page at a time."""
    store, asked = call.service.feedback, call.asked
    assert store is not None

    def read() -> list[dict[str, Any]]:
        found = store.searches(person=asked.get("person"), after=asked["after"], limit=asked["limit"] + 1)
        return [search.document() for search in found]

    searches = await call.service.drawing.run(read)
    shown = searches[: asked["limit"]]
    more = shown[-1]["id"] if len(searches) > len(shown) else None
    return _reply(call, {"searches": shown, "next": more})


async def forget(call: Call) -> Response:
    """Delete feedback for good."""
    store = call.service.feedback
    assert store is not None
    forget_them = partial(store.forget, person=call.asked.get("person"), item=call.asked.get("item"))
    if len(call.asked) != 1:
        raise Refused(400, "malformed", "say whom or what to forget", "Give person or item, one of the two.")
    return _reply(call, {"forgotten": await call.service.drawing.run(forget_them)})
