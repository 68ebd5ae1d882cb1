"""Pictures, and words where the bundle knows them, to unit vectors, through OpenVINO; no PyTorch.

Decoding runs in threads ahead of the network, in a bounded window, so that memory does not grow with the number of
pictures and neither side waits for the other longer than it must. Order is kept.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from lookalike.bundle import Bundle, default_path
from lookalike.errors import BundleError, EncoderMismatch, ImageError, QueryError
from lookalike.images import Picture, Pixels
from lookalike.vectors import Vectors, unit

T = TypeVar("T")
Precision = Literal["auto", "fp32"]

# Pictures per network call (benchmarks/encode.py).
BATCH = 16
# Texts per network call.
TEXTS = 64

__all__ = ["BATCH", "Encoded", "Encoder", "SkippedPicture", "compiled", "cores"]


class SkippedPicture(UserWarning):
    """Issued by `Encoder.images` for a picture that was left out because it cannot be read."""


@dataclass(slots=True)
class Encoded(Generic[T]):
    """What became of one source: a `vector` of shape (dim,), or the `error`, or neither where `load` gave None."""

    source: T
    vector: Vectors | None = None
    error: ImageError | None = None


class Encoder:
    """An image encoder. Make one with `Encoder.default()` or `Encoder.load(path)`.

    Attributes:
        bundle: the verified bundle.
        dim: length of the vectors.
        threads: decoding threads.
        precision: "auto" computes in bfloat16 where the processor has it and in float32 elsewhere; "fp32" always in
            float32. The two give vectors whose cosine is above 0.99; an index may be filled by both.
    """

    def __init__(self, bundle: Bundle, *, precision: Precision = "auto", threads: int | None = None) -> None:
        if precision not in ("auto", "fp32"):
            raise ValueError(f"precision must be 'auto' or 'fp32', got {precision!r}")
        self.bundle = bundle
        self.dim = bundle.dim
        self.precision = precision
        self.threads = threads or cores()
        self._network = _Network(bundle, precision)
        self._words = _Words(bundle, precision)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> Encoder:
        """The encoder of a bundle folder or zip. Raises BundleError. `options` as for the constructor."""
        return cls(Bundle.load(path), **options)

    @classmethod
    def default(cls, **options: Any) -> Encoder:
        """The encoder that ships in the package. `options` as for the constructor."""
        return cls(Bundle.load(default_path()), **options)

    @property
    def name(self) -> str:
        """Name and version of the bundle."""
        return self.bundle.name

    @property
    def fingerprint(self) -> str:
        """Changes when the vectors would; an index remembers it."""
        return self.bundle.fingerprint

    def describe(self) -> dict[str, Any]:
        """What an index remembers of the encoder that fills it: name, fingerprint, and where the bundle lay."""
        home = "default" if self.bundle.path == default_path() else str(self.bundle.path.resolve())
        return {"name": self.name, "fingerprint": self.fingerprint, "bundle": home}

    def check(self, meta: Mapping[str, Any], location: str) -> None:
        """Make sure that the index described by `meta` was filled by this encoder.

        Raises:
            EncoderMismatch: it was another one. An index without a note of its encoder (filled by hand) passes.
        """
        theirs = meta.get("encoder")
        if theirs is None or theirs["fingerprint"] == self.fingerprint:
            return
        raise EncoderMismatch(
            f"index {location} was made with bundle {theirs['name']} ({theirs['fingerprint']}, {theirs['bundle']}), "
            f"not with {self.name} ({self.fingerprint}, {self.bundle.path}): give --model {theirs['bundle']}, "
            "or index the pictures anew with this bundle"
        )

    def images(
        self,
        pictures: Sequence[Picture] | Iterable[Picture],
        *,
        strict: bool = False,
        on_skip: Callable[[ImageError], None] | None = None,
    ) -> Vectors:
        """Encode pictures: paths, bytes of files, or opened `PIL` images, in any mixture.

        Args:
            pictures: any iterable; one lonely path, bytes or image is refused, since its letters would be iterated.
            strict: raise at the first picture that cannot be read, instead of leaving it out.
            on_skip: called with the `ImageError` of each picture left out. By default a `SkippedPicture` warning.

        Returns:
            (n, dim) float32, rows of unit length, in the order of the readable pictures: with nothing skipped, row i
            is picture i. Use `stream` to keep pictures and vectors together whatever happens.

        Raises:
            ImageError: a picture cannot be read and `strict` is set.
        """
        if isinstance(pictures, str | bytes | os.PathLike) or hasattr(pictures, "tobytes"):
            raise TypeError("images takes several pictures: wrap a single one in a list")
        rows: list[Vectors] = []
        for outcome in self.stream(pictures):
            if outcome.vector is not None:
                rows.append(outcome.vector)
            elif outcome.error is not None:
                if strict:
                    raise outcome.error
                if on_skip is None:
                    warnings.warn(f"skipped: {outcome.error}", SkippedPicture, stacklevel=2)
                else:
                    on_skip(outcome.error)
        return np.stack(rows) if rows else np.empty((0, self.dim), dtype=np.float32)

    @property
    def has_text(self) -> bool:
        """Whether `texts` can be asked."""
        return self.bundle.has_text

    def texts(self, texts: Sequence[str] | Iterable[str]) -> Vectors:
        """Encode texts into the space of the pictures: the closer a picture's vector, the better it fits the words.

        Any Unicode text has a vector; empty text, and text too long to be read whole, as well.

        Args:
            texts: any iterable; one lonely string is refused, since its letters would be iterated.

        Returns:
            (n, dim) float32, rows of unit length.

        Raises:
            QueryError: the bundle has no text tower; the message says how to make one.
        """
        if isinstance(texts, str):
            raise TypeError("texts takes several strings: wrap a single one in a list")
        if not self.has_text:
            raise QueryError(
                f"bundle {self.name} ({self.bundle.path}) knows pictures alone, no words: teach it words with "
                "`lookalike train --captions captions.csv --to BUNDLE`, then index the pictures with that bundle"
            )
        given = list(texts)
        rows = [self._words(given[first : first + TEXTS]) for first in range(0, len(given), TEXTS)]
        return np.concatenate(rows) if rows else np.empty((0, self.dim), dtype=np.float32)

    def stream(self, sources: Iterable[T], load: Callable[[T], Pixels | None] | None = None) -> Iterator[Encoded[T]]:
        """Encode a long or endless series in bounded memory, in order, one outcome per source.

        Args:
            sources: pictures, or anything `load` understands. Read lazily, a bounded number ahead.
            load: source → (height, width, 3) uint8 pixels of the bundle's size; run in the decoding threads. It may
                raise `ImageError`, or give None for "nothing to encode here". By default `bundle.preprocessing.load`.
        """
        read: Callable[[Any], Pixels | None] = load or self.bundle.preprocessing.load
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="lookalike-decode")
        waiting: deque[tuple[T, Future[Pixels | None]]] = deque()
        running: deque[_Batch[T]] = deque()
        batch = _Batch[T]()
        window = 2 * BATCH + self.threads
        try:
            for source in sources:
                waiting.append((source, pool.submit(read, source)))
                if len(waiting) < window:
                    continue
                batch.take(*waiting.popleft())
                if batch.full:
                    batch.start(self._network)
                    running.append(batch)
                    batch = _Batch[T]()
                    if len(running) > 1:
                        yield from running.popleft().finish()
            while waiting:
                batch.take(*waiting.popleft())
                if batch.full or not waiting:
                    batch.start(self._network)
                    running.append(batch)
                    batch = _Batch[T]()
                if len(running) > 1:
                    yield from running.popleft().finish()
            while running:
                yield from running.popleft().finish()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2


class _Batch(Generic[T]):
    """Outcomes in order, and the pixels of those that are to be encoded together."""

    def __init__(self) -> None:
        self._outcomes: list[Encoded[T]] = []
        self._rows: list[int] = []
        self._pixels: list[Pixels] = []
        self._answer: Callable[[], Vectors] | None = None

    @property
    def full(self) -> bool:
        # A long run of sources with nothing to encode must not pile up unseen.
        return len(self._pixels) == BATCH or len(self._outcomes) == 8 * BATCH

    def take(self, source: T, pixels: Future[Pixels | None]) -> None:
        outcome = Encoded(source)
        try:
            loaded = pixels.result()
        except ImageError as error:
            outcome.error = error
        else:
            if loaded is not None:
                self._rows.append(len(self._outcomes))
                self._pixels.append(loaded)
        self._outcomes.append(outcome)

    def start(self, network: _Network) -> None:
        if self._pixels:
            self._answer = network.start(self._pixels)
            self._pixels = []

    def finish(self) -> list[Encoded[T]]:
        if self._answer is not None:
            for row, vector in zip(self._rows, self._answer(), strict=True):
                self._outcomes[row].vector = vector
        return self._outcomes


class _Network:
    """The compiled graph, made when first needed: static shapes, normalisation inside, asynchronous.

    One graph for a single picture (a query) and one for `BATCH` pictures (bulk work); a short batch is padded.
    """

    def __init__(self, bundle: Bundle, precision: Precision) -> None:
        self._bundle = bundle
        self._precision = precision
        self._lock = threading.Lock()
        self._compiled: dict[int, Any] = {}
        self._idle: dict[int, list[Any]] = {}

    def start(self, pixels: Sequence[Pixels]) -> Callable[[], Vectors]:
        """Begin to encode at most `BATCH` pictures; the returned function waits and gives (n, dim) unit rows."""
        size = 1 if len(pixels) == 1 else BATCH
        request = self._request(size)
        block = np.zeros((size, *pixels[0].shape), dtype=np.uint8)
        block[: len(pixels)] = pixels
        request.start_async({0: block}, share_inputs=True)

        # `block` is an argument so that it lives until the network, which shares its memory, has read it.
        def finish(block: Pixels = block) -> Vectors:
            request.wait()
            rows = np.array(request.get_output_tensor(0).data[: len(pixels)], dtype=np.float32)
            with self._lock:
                self._idle[size].append(request)
            return unit(rows, self._bundle.dim)

        return finish

    def _request(self, size: int) -> Any:
        with self._lock:
            if size not in self._compiled:
                self._compiled[size] = self._compile(size)
                self._idle[size] = []
            if self._idle[size]:
                return self._idle[size].pop()
            return self._compiled[size].create_infer_request()

    def _compile(self, size: int) -> Any:
        return compiled(self._bundle, size, self._precision)


def compiled(bundle: Bundle, size: int, precision: Precision, change: Callable[[Any], None] | None = None) -> Any:
    """A bundle's graph, compiled for `size` pictures at once, normalisation inside.

    Args:
        bundle: whose graph.
        size: pictures at a time: the graph takes (size, height, width, 3) uint8.
        precision: as for `Encoder`.
        change: may alter the `openvino.Model` in place before it is compiled, as to ask for further outputs.

    Raises:
        BundleError: the graph cannot be run.
    """
    ov = _openvino()
    preprocessing = bundle.preprocessing
    height, width = preprocessing.size
    with tempfile.TemporaryDirectory(prefix="lookalike-") as scratch:
        folder = bundle.graph_folder(Path(scratch))
        try:
            core = ov.Core()
            model = core.read_model(folder / bundle.manifest["image"]["graph"])
            model.reshape([size, 3, height, width])
            steps = ov.preprocess.PrePostProcessor(model)
            steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
            steps.input().model().set_layout(ov.Layout("NCHW"))
            steps.input().preprocess().convert_element_type(ov.Type.f32).mean(
                [255 * m for m in preprocessing.mean]
            ).scale([255 * s for s in preprocessing.std])
            model = steps.build()
            if change is not None:
                change(model)
            return core.compile_model(model, "CPU", _options(ov, core, precision))
        except RuntimeError as error:
            raise BundleError(f"bundle {bundle.path}: the graph cannot be run: {error}") from error


class _Words:
    """The text tower, compiled when first needed; one call at a time."""

    def __init__(self, bundle: Bundle, precision: Precision) -> None:
        self._bundle = bundle
        self._precision = precision
        self._lock = threading.Lock()
        self._request: Any = None

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """(n, dim) unit rows."""
        ids = self._bundle.vocabulary(texts)
        with self._lock:
            if self._request is None:
                self._request = self._compile().create_infer_request()
            self._request.infer({0: ids})
            return unit(np.array(self._request.get_output_tensor(0).data, dtype=np.float32), self._bundle.dim)

    def _compile(self) -> Any:
        ov = _openvino()
        with tempfile.TemporaryDirectory(prefix="lookalike-") as scratch:
            folder = self._bundle.graph_folder(Path(scratch))
            try:
                core = ov.Core()
                model = core.read_model(folder / self._bundle.manifest["text"]["graph"])
                return core.compile_model(model, "CPU", _options(ov, core, self._precision))
            except RuntimeError as error:
                raise BundleError(f"bundle {self._bundle.path}: the text graph cannot be run: {error}") from error


def _options(ov: Any, core: Any, precision: Precision) -> dict[str, Any]:
    capable = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    reduced = precision == "auto" and capable
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": ov.Type.bf16 if reduced else ov.Type.f32,
    }


def _openvino() -> Any:
    """Import OpenVINO without its telemetry package, which would write to the home folder and call out on import.

    OpenVINO carries a stub for the case that the package is absent, so absent is what it shall see.
    """
    if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            del sys.modules["openvino_telemetry"]
    import openvino

    return openvino
