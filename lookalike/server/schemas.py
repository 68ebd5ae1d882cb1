"""What requests and answers look like: JSON Schemas, which check requests and fill the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from lookalike.index.base import INT_MAX, INT_MIN
from lookalike.server.replies import Refused

Schema = dict[str, Any]

__all__ = ["NAMED", "Schema", "check", "obj", "parsed"]


def obj(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """An object with these properties and no others."""
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": list(required)} if required else {})


def array(items: Schema, least: int = 0, most: int = 256) -> Schema:
    """A list."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
COSINE: Schema = {"type": "number", "minimum": -1, "maximum": 1}
# Cosines are sums of rounded products: an answer may pass 1 by a hair.
SCORE: Schema = {"type": "number", "minimum": -1.001, "maximum": 1.001}
PAYLOAD: Schema = {"type": "object", "description": "What is known about the item: JSON."}

KEY: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 4096,
    "description": "The key of an item in the index; of a picture that was indexed, its absolute path.",
}
FIELD: Schema = {"type": "string", "minLength": 1, "maxLength": 256, "description": "The name of a payload field."}
_INTEGER: Schema = {"type": "integer", "minimum": INT_MIN, "maximum": INT_MAX}
_SCALAR: Schema = {"anyOf": [{"type": "string", "maxLength": 4096}, {"type": "boolean"}, _INTEGER]}
_BOUND: Schema = {"type": "number", "minimum": -1e300, "maximum": 1e300}
_BOUNDS = {
    **obj(gt=_BOUND, gte=_BOUND, lt=_BOUND, lte=_BOUND),
    "minProperties": 1,
}
WHERE: Schema = {
    "type": "object",
    "description": "Conditions on payload fields, all of which must hold: a value, {any_of: [values]}, or "
    "{range: {gt, gte, lt, lte}}.",
    "maxProperties": 32,
    "propertyNames": {"minLength": 1, "maxLength": 256},
    "additionalProperties": {
        "anyOf": [
            *_SCALAR["anyOf"],
            obj(("eq",), eq=_SCALAR),
            obj(("any_of",), any_of=array(_SCALAR, 1)),
            obj(("range",), range=_BOUNDS),
        ]
    },
    "examples": [{"category": "shoes", "price": {"range": {"lt": 50}}}],
}
REGION: Schema = {
    "description": "The part of the picture to search with: left, top, right, bottom in shares of its width and "
    "height, upright, from 0 to 1, left below right and top below bottom.",
    **array({"type": "number", "minimum": 0, "maximum": 1}, 4, 4),
    "examples": [[0.1, 0.2, 0.6, 0.9]],
}
VECTOR: Schema = array({"type": "number", "minimum": -1e30, "maximum": 1e30}, 1, 8192)
PERSON: Schema = {
    "type": "string",
    "maxLength": 200,
    "description": "Who asked: any name, as long as it is the same one when they want to be forgotten.",
}
K: Schema = {"type": "integer", "minimum": 1, "maximum": 500, "default": 30, "description": "How many answers."}
THRESHOLD: Schema = {"type": "number", "exclusiveMinimum": -1, "maximum": 1}

HIT = obj(
    ("key", "score", "payload", "copies", "thumbnail"),
    key=TEXT,
    score={**SCORE, "description": "The cosine with what was asked."},
    payload=PAYLOAD,
    copies={"type": "array", "items": TEXT, "description": "Keys of identical files that this answer stands for."},
    thumbnail={**_optional(TEXT), "description": "Where its picture is; null where it has no file."},
)
HITS: Schema = {"type": "array", "items": HIT}
ITEM = obj(
    ("key", "payload", "thumbnail"),
    key=TEXT,
    payload=PAYLOAD,
    thumbnail=_optional(TEXT),
    vector={"type": "array", "items": NUMBER},
)
ERROR = obj(
    ("error",),
    error=obj(
        ("code", "message", "hint"),
        code={**TEXT, "description": "For programs."},
        message={**TEXT, "description": "What happened, with which values."},
        hint={**TEXT, "description": "What to do."},
    ),
)
_ANSWERING = {
    "k": K,
    "where": WHERE,
    "min_score": {**COSINE, "description": "Only answers at least this close."},
}
QUESTIONS = ("picture", "key", "text", "url", "vector", "liked")
SEARCH = {
    **obj(
        key=KEY,
        text={"type": "string", "minLength": 1, "maxLength": 10_000, "description": "Words."},
        url={"type": "string", "minLength": 1, "maxLength": 4096, "description": "Of a picture; often not allowed."},
        vector={**VECTOR, "description": "As the encoder of the index makes them."},
        liked={**array(KEY, 0, 64), "description": "Keys of examples; pictures may be uploaded as examples, too."},
        disliked={**array(KEY, 0, 64), "description": "Keys of examples to move away from; go with liked ones."},
        weight={"type": "number", "minimum": 0, "maximum": 1, "description": "Of words beside a picture; 0.5."},
        region=REGION,
        **_ANSWERING,
        offset={"type": "integer", "minimum": 0, "maximum": 1500, "default": 0, "description": "Answers to pass over."},
        distinct={"type": "boolean", "default": True, "description": "Fold identical files into one answer."},
        record=obj(("person",), person=PERSON)
        | {"description": "Keep this search and its answers in the feedback store, if the server has one."},
    ),
    "description": "One question: key, text, url, vector, liked examples, or an uploaded picture.",
}
SEARCHED = obj(
    ("hits", "next", "search"),
    hits=HITS,
    next={**_optional(COUNT), "description": "The offset of the next page; null at the end."},
    search={**_optional(COUNT), "description": "Its number in the feedback store, where it was recorded."},
)
RECOMMEND = obj(
    ("keys",),
    keys={**array(KEY, 1, 64), "description": "The products to find something beside."},
    unlike={**array(KEY, 0, 64), "description": "Products to move away from."},
    k=K,
    where=WHERE,
    diverse={"type": "number", "minimum": 0, "maximum": 1, "default": 0, "description": "0 is order of relevance."},
    across={**FIELD, "description": "A field of categories: answers come from other ones than the products'."},
    group={**FIELD, "description": "A field that variants of one product share: one answer stands for its group."},
)
LABEL = obj(
    ("baskets",),
    baskets={
        "type": "object",
        "description": "Named examples: a few keys per name.",
        "minProperties": 1,
        "maxProperties": 64,
        "propertyNames": {"minLength": 1, "maxLength": 200},
        "additionalProperties": array(KEY, 1, 256),
    },
    keys={**array(KEY, 1, 1000), "description": "Which items to name; by default all."},
    where=WHERE,
    limit={"type": "integer", "minimum": 1, "maximum": 5000, "default": 500, "description": "At most so many items."},
    unknown={
        "type": "boolean",
        "default": True,
        "description": "Whether an item may be none of them; with a single basket every item gets its name.",
    },
)
LABELLED = obj(
    ("labels", "counts", "more"),
    labels=array(
        obj(
            ("key", "label", "probability", "payload", "thumbnail"),
            key=TEXT,
            label={**_optional(TEXT), "description": "null where it is none of them."},
            probability=_optional({"type": "number", "minimum": 0, "maximum": 1.0001}),
            payload=PAYLOAD,
            thumbnail=_optional(TEXT),
        ),
        most=5000,
    ),
    counts={"type": "object", "additionalProperties": COUNT, "description": "How many items got each name."},
    more={"type": "boolean", "description": "Whether there are items beyond the limit."},
)
EXPLAIN = obj(
    ("key",),
    key={**KEY, "description": "The item whose likeness is to be explained."},
    query={**KEY, "description": "The item it is like, where no picture is uploaded."},
    region=REGION,
)
_SHARE: Schema = {"type": "number"}
EXPLAINED = obj(
    ("score", "method", "why", "matches", "left", "right"),
    score=SCORE,
    method={"enum": ["correspondence", "occlusion"]},
    why=TEXT,
    matches=array(obj(("left", "right", "share"), left=array(_SHARE, 2, 2), right=array(_SHARE, 2, 2), share=NUMBER)),
    left={**TEXT, "description": "The query with its heat map: a data URL."},
    right={**TEXT, "description": "The item with its heat map: a data URL."},
)
_FROM = {"type": "integer", "minimum": 0, "maximum": 10_000_000, "default": 0}
DUPLICATES = obj(
    threshold={**THRESHOLD, "description": "Cosine; by default the one calibrated for the encoder."},
    where=WHERE,
    limit={"type": "integer", "minimum": 1, "maximum": 200, "default": 20},
    offset=_FROM,
)
DUPLICATED = obj(
    ("groups", "count", "extra", "threshold", "next"),
    groups=array({"type": "array", "items": HIT}, most=200),
    count={**COUNT, "description": "How many groups there are."},
    extra={**COUNT, "description": "How many pictures more than needed."},
    threshold=COSINE,
    next=_optional(COUNT),
)
FACETS = obj(where=WHERE)
FACETED = obj(
    ("count", "facets"),
    count={**COUNT, "description": "How many items fit."},
    facets=array(
        obj(
            ("field", "count", "kind", "values", "least", "most"),
            field=TEXT,
            count={**COUNT, "description": "How many items have it."},
            kind={"enum": ["values", "range", "text"]},
            values=array(
                obj(("value", "count"), value={"type": ["string", "boolean", "integer"]}, count=COUNT), most=1000
            ),
            least=_optional(NUMBER),
            most=_optional(NUMBER),
        )
    ),
)
MAPPED = obj(
    ("points", "field", "sampled", "count", "explained"),
    points=array(
        obj(
            ("key", "x", "y", "value", "thumbnail"),
            key=TEXT,
            x=NUMBER,
            y=NUMBER,
            value=_optional(TEXT),
            thumbnail=_optional(TEXT),
        ),
        most=10_000,
    ),
    field=_optional(TEXT),
    sampled={"type": "boolean", "description": "Whether there are more items than points."},
    count=COUNT,
    explained={**array(NUMBER, 2, 2), "description": "Shares of the variance along x and y."},
)
LIST = obj(
    where=WHERE,
    limit={"type": "integer", "minimum": 1, "maximum": 500, "default": 50},
    after={**KEY, "description": "Only keys behind this one, in the order of their code points."},
)
LISTED = obj(("items", "next"), items=array(ITEM, most=500), next=_optional(TEXT))
GET = obj(("keys",), keys=array(KEY, 1, 500), vectors={"type": "boolean", "default": False})
GOT = obj(("items",), items=array(_optional(ITEM), most=500))
ADD = obj(
    payloads={**array({"type": "object"}, 0, 64), "description": "One for each picture, in order; or none at all."}
)
ADDED = obj(("items",), items=array(ITEM, most=64))
DELETE = obj(("keys",), keys=array(KEY, 1, 500))
DELETED = obj(("removed",), removed=COUNT)
IMPORT_LINE = obj(
    key={**KEY, "description": "With vector: any key."},
    vector=VECTOR,
    picture={"type": "string", "minLength": 1, "description": "Instead: the file of a picture in base64."},
    payload={"type": "object"},
)
IMPORTED = obj(
    ("added", "failed", "errors"),
    added=COUNT,
    failed=COUNT,
    errors={
        **array(obj(("line", "code", "message"), line=COUNT, code=TEXT, message=TEXT), most=100),
        "description": "Of the first hundred lines that failed.",
    },
)
REACTION = obj(
    ("search", "key"),
    search={"type": "integer", "minimum": 1, "maximum": INT_MAX},
    key=KEY,
    clicked={"const": True, "description": "The answer was opened."},
    alike={"type": ["boolean", "null"], "description": "Alike, not alike, or null to take it back."},
) | {"minProperties": 3}
RECORDED = obj(
    ("searches", "next"),
    searches=array(
        {
            "type": "object",
            "required": ["id", "at", "person", "query", "shown", "scores", "clicked", "alike", "unlike"],
        },
        most=500,
    ),
    next=_optional(COUNT),
)
FORGOTTEN = obj(("forgotten",), forgotten={**COUNT, "description": "Searches deleted, or that lost an answer."})
SESSION = obj(("token",), token={"type": "string", "minLength": 1, "maxLength": 1024})
DONE = obj(("done",), done={"const": True})
STATE = obj(("status",), status={"enum": ["ok", "starting", "stopping"]})
INFO = obj(
    ("name", "version", "items", "dim", "encoder", "can", "limits", "thresholds"),
    name={**TEXT, "description": "Of the index: the last part of its location."},
    version=TEXT,
    items=COUNT,
    dim=COUNT,
    encoder=obj(("name", "fingerprint"), name=TEXT, fingerprint=TEXT),
    can=obj(
        ("text", "url", "write", "add", "feedback"),
        **{name: {"type": "boolean"} for name in ("text", "url", "write", "add", "feedback")},
    ),
    limits=obj(
        ("upload_bytes", "pixels", "pictures", "k"),
        **dict.fromkeys(("upload_bytes", "pixels", "pictures", "k"), COUNT),
    ),
    thresholds={"type": "object", "additionalProperties": NUMBER},
)

# Those that OpenAPI knows by name; wherever one is used, the page refers to it.
NAMED: dict[str, Schema] = {
    "Error": ERROR,
    "Explained": EXPLAINED,
    "Faceted": FACETED,
    "Hit": HIT,
    "Info": INFO,
    "Item": ITEM,
    "Search": SEARCH,
    "Searched": SEARCHED,
    "Where": WHERE,
}


def parsed(body: bytes, what: str = "the body") -> Any:
    """A JSON document. Raises Refused where it is none, or holds text that is not Unicode."""
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        json.dumps(document, ensure_ascii=False).encode()  # halves of characters, which no answer could repeat
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise Refused(400, "malformed", f"{what} is not JSON: {reason}", "Send one JSON object, as UTF-8.") from None
    return document


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def check(document: Any, schema: Schema, what: str = "the body") -> None:
    """Make sure that a document is what a schema says. Raises Refused that names the place."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator(json.dumps(schema)).iter_errors(document))
    if error is None:
        return
    place = error.json_path.removeprefix("$").lstrip(".")
    message = error.message if len(error.message) <= 300 else f"{error.message[:300]} …"
    raise Refused(
        400,
        "malformed",
        f"{what}{f', {place}' if place else ''}: {message}",
        "The schema at /v1/openapi.json says what is taken.",
    )


@cache
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def converted(text: str, schema: Schema, name: str) -> Any:
    """A query parameter as its schema wants it. Raises Refused."""
    value: Any = text
    if schema.get("type") == "integer":
        try:
            value = int(text) if len(text) <= 20 else text
        except ValueError:
            value = text
    check(value, schema, f"parameter {name}")
    return value


def settings_of(schema: Schema, document: Mapping[str, Any]) -> dict[str, Any]:
    """A document with the defaults of its schema filled in, and whole numbers as integers (JSON writes 1 as 1.0)."""
    properties: Mapping[str, Schema] = schema.get("properties", {})
    filled = {name: inner["default"] for name, inner in properties.items() if "default" in inner} | dict(document)
    return {
        name: int(value) if properties.get(name, {}).get("type") == "integer" else value
        for name, value in filled.items()
    }
