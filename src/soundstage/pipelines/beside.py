"""Work beside other work: sound decoded while the picture is, a file written while frames are decoded."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Generic, TypeVar

import torch

from soundstage.core.errors import Cancelled
from soundstage.core.progress import OnProgress, Progress

T = TypeVar("T")

WAITING = 2  # parts that may wait to be written; more would only hold memory


class Beside:
    """A thread of its own for computing, on a GPU with a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="beside")

    def start(self, work: Callable[[], T]) -> "Pending[T]":
        """Begin some work; on a GPU, after all that was begun before it."""
        began = None
        if self.device.type == "cuda":
            began = torch.cuda.Event()  # type: ignore[no-untyped-call]
            began.record(torch.cuda.current_stream(self.device))
        return Pending(self._threads.submit(self._run, work, began))

    def close(self) -> None:
        """Wait for the work and let the thread go."""
        self._threads.shutdown()

    def _run(self, work: Callable[[], T], after: torch.cuda.Event | None) -> tuple[T, float]:
        begin = time.monotonic()
        if after is None:
            return work(), time.monotonic() - begin
        stream = _stream_of(self.device)
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            stream.wait_event(after)
            result = work()
            stream.synchronize()
        return result, time.monotonic() - begin


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """Return the stream for work beside; one, as what was allocated for a stream is kept for that stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Pending(Generic[T]):
    """What some work beside will give."""

    def __init__(self, future: Future[tuple[T, float]]) -> None:
        self._future = future

    def result(self, on_progress: OnProgress | None = None, stage: str = "") -> T:
        """Wait for it; then tell of it as a stage that took as long as the work itself did."""
        result, seconds = self._future.result()
        if on_progress is not None:
            for step, spent in ((0, 0.0), (1, seconds)):
                on_progress(Progress(stage=stage, step=step, num_steps=1, seconds=spent))
        return result


def write_beside(parts: Iterable[T], write: Callable[[Iterator[T]], None]) -> float:
    """Write parts in a thread while the next ones are made here, in the order in which they come.

    The parts are made in the caller's thread, so that progress is told there, and Ctrl-C and `Cancelled`
    arise there. Whatever ends the making early ends the writing as an error does: nothing half-written is
    left.

    Args:
        write: Takes the parts from an iterator until there are no more; its errors are raised here.

    Returns:
        Seconds that `write` spent on writing, without waiting.
    """
    line = _Line[T]()
    thread = threading.Thread(target=line.serve, args=(write,), name="write-beside")
    try:
        thread.start()
        for part in parts:
            line.put(part)
            del part
            if line.error is not None:
                break
        line.end()
    except BaseException as stopped:
        line.end(stopped)
        if thread.is_alive():  # else Ctrl-C came while it was starting, and it ends by itself
            thread.join()
        raise
    thread.join()
    if line.error is not None:
        raise line.error
    return line.seconds


class _Line(Generic[T]):
    """Parts on their way from one thread to the other."""

    def __init__(self) -> None:
        self._parts: queue.Queue[tuple[T] | None] = queue.Queue(maxsize=WAITING)
        self._stopped: BaseException | None = None
        self.error: BaseException | None = None
        self.seconds = 0.0

    def put(self, part: T) -> None:
        """Hand a part over; waits while too many wait to be written."""
        self._parts.put((part,))

    def end(self, stopped: BaseException | None = None) -> None:
        """Say that nothing more comes, or that the making was stopped by this."""
        self._stopped = stopped
        self._parts.put(None)

    def serve(self, write: Callable[[Iterator[T]], None]) -> None:
        """Write what comes; after an error, only take it, so that nobody waits."""
        begin = time.monotonic()
        waited = [0.0]
        taken = self._taken(waited)
        try:
            write(taken)
        except BaseException as error:  # raised again by the thread that waits
            self.error = error
        self.seconds = time.monotonic() - begin - waited[0]
        with suppress(Cancelled):
            for part in taken:
                del part

    def _taken(self, waited: list[float]) -> Iterator[T]:
        while True:
            begin = time.monotonic()
            entry = self._parts.get()
            waited[0] += time.monotonic() - begin
            if self._stopped is not None:
                raise Cancelled("the clip was not finished") from self._stopped
            if entry is None:
                return
            yield entry[0]
            del entry
