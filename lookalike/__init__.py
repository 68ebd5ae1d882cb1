"""Lookalike: visual search that learns what "alike" means from your own pictures.

>>> from lookalike import Encoder, Searcher, open_index
>>> Encoder.default().dim > 0
True

The names below load when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lookalike.client import connect as connect
    from lookalike.encoder import Encoder as Encoder
    from lookalike.errors import LookalikeError as LookalikeError
    from lookalike.index import open_index as open_index
    from lookalike.search import Searcher as Searcher

_HOME = {
    "Encoder": "lookalike.encoder",
    "LookalikeError": "lookalike.errors",
    "Searcher": "lookalike.search",
    "connect": "lookalike.client",
    "open_index": "lookalike.index",
}
__all__ = ["Encoder", "LookalikeError", "Searcher", "__version__", "connect", "open_index"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lookalike' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
