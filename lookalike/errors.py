"""Everything Lookalike raises on purpose, one tree.

::

    LookalikeError                one line that says what happened and what to do
    ├── ImageError                a picture that cannot be read: path and reason (bulk work skips and counts it)
    │   └── FetchError            a picture that cannot be fetched: URL, reason, and whether to try again
    ├── CatalogueError            a folder, CSV or JSON file that is not a list of pictures: file, row, reason
    ├── BundleError               an encoder bundle that is missing, damaged or too new: folder and reason
    ├── ShapeError                vectors of the wrong shape: what was expected and what came
    ├── PayloadError              an entry no index can hold: its key, the field and the reason
    ├── QueryError                a question that cannot be answered: bad filter, unknown key, no examples
    ├── IndexUnavailable          an index that cannot be opened: location, cause and what to start
    ├── FeedbackError             a store of searches and judgements that cannot be opened or asked: file and reason
    ├── ServerError               a server that refused or could not answer: its code, message and hint
    ├── EncoderMismatch           an index made with another bundle: names both
    ├── ConfigError               a training configuration that cannot be run: every problem found, not only the first
    ├── TrainingError             a run that cannot go on: no negatives, a loss that is not a number, a full disk
    ├── CheckpointError           a run folder that cannot be resumed: folder and reason
    ├── ExportError               a network whose exported graph does not answer as it does: both answers
    ├── ReportError               a results file or run folder no report can be made of: file, place in it, and why
    └── MissingExtra              an optional dependency: the pip command that installs it

Doors (the command line, the HTTP server) catch `LookalikeError` and nothing else: any other exception is a defect.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BundleError",
    "CatalogueError",
    "CheckpointError",
    "ConfigError",
    "EncoderMismatch",
    "ExportError",
    "FeedbackError",
    "FetchError",
    "ImageError",
    "IndexUnavailable",
    "LookalikeError",
    "MissingExtra",
    "PayloadError",
    "QueryError",
    "ReportError",
    "ServerError",
    "ShapeError",
    "TrainingError",
]


class LookalikeError(Exception):
    """Base of every error a user can cause or cure. ``str(error)`` is one line that ends with what to do."""


class ImageError(LookalikeError):
    """A picture that cannot be read.

    Attributes:
        path: the file as the caller named it, or ``"<bytes>"`` / ``"<picture>"`` for pictures without a file.
        reason: why, in a few words, without the path.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read picture {path}: {reason}")
        self.path = path
        self.reason = reason


class FetchError(ImageError):
    """A picture that cannot be fetched from the network.

    Attributes:
        path: the URL.
        reason: why, in a few words, without the URL.
        temporary: whether the same request may succeed later.
        retry_after: seconds the host asks to wait before that, or None.
    """

    def __init__(self, url: str, reason: str, *, temporary: bool = False, retry_after: float | None = None) -> None:
        super().__init__(url, reason)
        self.args = (f"cannot fetch picture {url}: {reason}",)
        self.temporary = temporary
        self.retry_after = retry_after


class CatalogueError(LookalikeError):
    """A folder, CSV or JSON file that does not describe pictures. The message names file, row and column."""


class BundleError(LookalikeError):
    """An encoder bundle that is missing, incomplete, altered, or written by a newer version."""


class ShapeError(LookalikeError):
    """Vectors whose shape does not fit: the message gives the expected and the actual shape."""


class PayloadError(LookalikeError):
    """A key or payload that is not JSON as every engine stores it. Nothing of the same call was stored.

    Attributes:
        key: the entry's key as the caller gave it.
        reason: the field and what is wrong with it, without the key.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"cannot store entry {key!r}: {reason}")
        self.key = key
        self.reason = reason


class QueryError(LookalikeError):
    """A question that has no answer as asked: a malformed filter, an unknown key, no examples, ``k < 1``."""


class IndexUnavailable(LookalikeError):
    """An index that cannot be opened or reached. The message names the location, the cause and the remedy."""


class FeedbackError(LookalikeError):
    """A store of searches and judgements that cannot be opened, or a search it does not know."""


class ServerError(LookalikeError):
    """A server that refused or could not answer.

    Attributes:
        code: what went wrong, as the server names it, e.g. "unauthorised" or "busy".
        status: the HTTP status.
    """

    def __init__(self, message: str, code: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class EncoderMismatch(LookalikeError):
    """An index whose vectors were made by another encoder than the one asking. The message names both."""


class ConfigError(LookalikeError):
    """A configuration that cannot be run.

    Attributes:
        problems: every problem found, one line each, with the nearest valid name where there is one.
    """

    def __init__(self, problems: Sequence[str], where: str = "configuration") -> None:
        listed = problems[0] if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"{where}: {listed}" if len(problems) == 1 else f"{where}, {len(problems)} problems:{listed}")
        self.problems = list(problems)


class TrainingError(LookalikeError):
    """A run that cannot start or go on. The last good checkpoint is kept, and the message says where."""


class CheckpointError(LookalikeError):
    """A run folder that cannot be resumed: damaged, or written by another version or configuration."""


class ExportError(LookalikeError):
    """A network that cannot become a bundle: its graph in ONNX and the network in PyTorch disagree."""


class ReportError(LookalikeError):
    """A results file or run folder that no report can be made of. The message names file, place and reason."""


class MissingExtra(LookalikeError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(f"{feature} needs {package}: pip install 'lookalike[{extra}]'")
