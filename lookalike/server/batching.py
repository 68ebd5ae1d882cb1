"""Pictures of all clients through one encoder: decoded in threads, encoded in batches, in bounded memory.

A network is fastest with a full batch, and a client wants its answer now. So a batch takes whatever pictures are ready,
and waits for those that are being decoded, but never long: a huge picture must not hold up the small ones.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from lookalike.encoder import BATCH, Encoder, cores
from lookalike.errors import LookalikeError
from lookalike.images import Picture, Pixels
from lookalike.server.replies import Refused
from lookalike.vectors import Vectors

T = TypeVar("T")

__all__ = ["Batcher", "Lane", "busy"]

LINGER = 0.02  # seconds a picture that is ready waits for others
ALONE = 6  # up to so many pictures go one by one: a batch is padded to `BATCH`, and costs what a full one costs


def busy(what: str) -> Refused:
    """The refusal of work that would have to wait too long."""
    return Refused(503, "busy", f"too many {what} are waiting", "Try again in a second.", Retry_After="1")


@dataclass(slots=True)
class _Job:
    picture: Picture
    answer: asyncio.Future[Vectors]
    pixels: Pixels | None = None


class Batcher:
    """Encodes pictures of many requests together.

    Args:
        encoder: makes the vectors.
        waiting: pictures that may wait; more are refused with 503.
        observe: called with the size of each batch.
    """

    def __init__(self, encoder: Encoder, waiting: int, observe: Callable[[int], None] = lambda size: None) -> None:
        self._encoder = encoder
        self._limit = waiting
        self._observe = observe
        self._waiting = 0  # pictures that were taken and not answered
        self._lock = threading.Lock()
        self._ready: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._decoders = ThreadPoolExecutor(cores(), thread_name_prefix="lookalike-decode")
        self._thread = threading.Thread(target=self._run, name="lookalike-encode", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pictures that were taken and not answered."""
        return self._waiting

    async def encode(self, picture: Picture) -> Vectors:
        """The vector (dim,) of a picture.

        Raises:
            Refused: too many are waiting. ImageError: it cannot be read.
        """
        if self._waiting >= self._limit:
            raise busy("pictures")
        loop = asyncio.get_running_loop()
        job = _Job(picture, loop.create_future())
        with self._lock:
            self._waiting += 1
        self._decoders.submit(self._decode, job)
        return await job.answer

    def close(self) -> None:
        """Finish what is waiting, and stop."""
        self._decoders.shutdown(wait=True)
        self._ready.put(None)
        self._thread.join()

    def _decode(self, job: _Job) -> None:
        if job.answer.cancelled():  # its client has gone, or waited too long
            self._settle([job], None, None)
            return
        try:
            job.pixels = self._encoder.bundle.preprocessing.load(job.picture)
        except BaseException as error:
            self._settle([job], None, error)
            return
        job.picture = b""  # a waiting picture needs its pixels only
        self._ready.put(job)

    def _run(self) -> None:
        while (batch := self._gathered()) is not None:
            jobs = [job for job in batch if not job.answer.cancelled()]
            self._settle([job for job in batch if job.answer.cancelled()], None, None)
            if not jobs:
                continue
            try:
                vectors = self._encoded([job.pixels for job in jobs if job.pixels is not None])
            except BaseException as error:
                self._settle(jobs, None, error)
            else:
                self._settle(jobs, vectors, None)
                self._observe(len(jobs))

    def _gathered(self) -> list[_Job] | None:
        """The next batch, or None at the end."""
        first = self._ready.get()
        if first is None:
            return None
        batch = [first]
        until = time.monotonic() + LINGER
        while len(batch) < min(BATCH, self._waiting):
            try:
                job = self._ready.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                self._ready.put(None)
                break
            batch.append(job)
        return batch

    def _encoded(self, pixels: Sequence[Pixels]) -> list[Vectors]:
        parts = [[one] for one in pixels] if len(pixels) <= ALONE else [list(pixels)]
        outcomes = [outcome for part in parts for outcome in self._encoder.stream(part, _as_it_is)]
        return [outcome.vector for outcome in outcomes if outcome.vector is not None]

    def _settle(self, jobs: Sequence[_Job], vectors: Sequence[Vectors] | None, error: BaseException | None) -> None:
        """Give the answers out, in the event loop of each request; one call for a batch."""
        if not jobs:
            return
        with self._lock:
            self._waiting -= len(jobs)

        def tell() -> None:
            for place, job in enumerate(jobs):
                if job.answer.done():
                    continue
                if error is not None:
                    job.answer.set_exception(error)
                elif vectors is not None:
                    job.answer.set_result(vectors[place])

        jobs[0].answer.get_loop().call_soon_threadsafe(tell)


def _as_it_is(pixels: Pixels) -> Pixels:
    return pixels


class Lane:
    """Threads for work that must not hold up the event loop, with a bounded number of tasks that wait.

    Args:
        threads: how many.
        waiting: tasks taken and not finished; more are refused with 503.
        what: what the tasks are called.
    """

    def __init__(self, threads: int, waiting: int, what: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"lookalike-{what}")
        self._limit = waiting
        self._what = what
        self._taken = 0

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """What `work` gives. Raises Refused where too many tasks wait."""
        if self._taken >= self._limit:
            raise busy(self._what)
        self._taken += 1
        task = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        task.add_done_callback(self._finished)
        return await task

    def _finished(self, task: asyncio.Future[Any]) -> None:
        self._taken -= 1
        if not task.cancelled() and isinstance(task.exception(), LookalikeError):
            pass  # looked at, so that a task nobody waits for any more does not complain

    def close(self) -> None:
        """Finish what runs, drop what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)
