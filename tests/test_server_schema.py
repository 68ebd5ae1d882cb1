"""The OpenAPI document is true: schemathesis asks what it allows and what it forbids, and looks at every answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings

from lookalike.catalogue import rows
from lookalike.encoder import Encoder
from lookalike.index import open_index
from lookalike.indexing import update_index
from lookalike.server.calls import Operation
from lookalike.server.operations import OPERATIONS
from lookalike.server.settings import Settings

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install 'lookalike[dev]'")

from schemathesis.checks import CHECKS  # noqa: E402
from schemathesis.generation.modes import GenerationMode  # noqa: E402

pytestmark = pytest.mark.slow

# Not "positive_data_acceptance": that a key must exist and a vector must have a direction is more than a schema says.
NAMES = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> Any:
    """JSON lines: text as it is, anything else as one line."""
    return value.encode("utf-8", "replace") if isinstance(value, str) else json.dumps(value, default=str).encode()


@pytest.fixture(scope="module")
def address(
    tmp_path_factory: pytest.TempPathFactory, draw_classes: Callable[..., Path], tiny: Encoder
) -> Iterator[str]:
    import uvicorn

    from lookalike.server.app import create_app

    top = tmp_path_factory.mktemp("schema")
    index = open_index(top / "the.index", dim=tiny.dim, meta={"encoder": tiny.describe()})
    update_index(index, tiny, rows([draw_classes(top / "pictures")]))
    app = create_app(index, tiny, Settings(rate=0, writable=True, feedback=top / "the.feedback"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started or app.state.service.state == "starting":
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def api(address: str) -> Any:
    return schemathesis.openapi.from_url(f"{address}/v1/openapi.json")


def is_wrong_on_the_wire(case: Any) -> bool:
    """Whether what is wrong with a form survives being sent.

    A list is as many parts as it has elements, so that an empty one in place of the options is no part at all; and what
    is left then, parts under names that exist, is a form like any other.
    """
    if not isinstance(case.body, dict) or case.media_type != "multipart/form-data":
        return True
    parts = {name for name, value in case.body.items() if value != []}
    return not parts <= {"picture", "liked", "disliked"}


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_schema_is_true(api: Any, operation: Operation, mode: str) -> None:
    """What the document allows and what it forbids: no server error, and no answer that it does not describe."""
    if mode == "negative" and not (operation.parameters or operation.body):
        pytest.skip("there is nothing to get wrong")
    asked = api[operation.path][operation.method].as_strategy(generation_mode=GenerationMode(mode))

    @given(case=asked)
    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        assume(mode == "positive" or is_wrong_on_the_wire(case))
        case.call_and_validate(checks=CHECKS.get_by_names(NAMES))

    ask()
