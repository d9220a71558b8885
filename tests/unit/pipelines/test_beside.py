"""Writing beside making: in order, stopped by whatever stops either side."""

import threading
from collections.abc import Iterator
from unittest.mock import MagicMock

import pytest
import torch

from soundstage.core.errors import Cancelled, ResourceError
from soundstage.core.progress import Progress
from soundstage.pipelines import beside as module
from soundstage.pipelines.beside import Beside, write_beside


def test_parts_arrive_in_order_in_another_thread() -> None:
    arrived, threads = [], set()

    def write(parts: Iterator[int]) -> None:
        threads.add(threading.current_thread())
        arrived.extend(parts)

    assert write_beside(range(20), write) >= 0
    assert arrived == list(range(20))
    assert threads != {threading.current_thread()}


def test_an_error_of_the_writer_ends_the_making() -> None:
    made = []

    def parts() -> Iterator[int]:
        for part in range(1000):
            made.append(part)
            yield part

    def write(parts: Iterator[int]) -> None:
        next(parts)
        raise ResourceError("the disk is full")

    with pytest.raises(ResourceError, match="full"):
        write_beside(parts(), write)
    assert len(made) < 10


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Cancelled("enough")])
def test_what_stops_the_making_ends_the_writing_as_an_error(stop: BaseException) -> None:
    seen: list[BaseException] = []

    def parts() -> Iterator[int]:
        yield 1
        raise stop

    def write(parts: Iterator[int]) -> None:
        try:
            list(parts)
        except BaseException as error:
            seen.append(error)
            raise

    with pytest.raises((KeyboardInterrupt, Cancelled)):
        write_beside(parts(), write)
    assert [type(error) for error in seen] == [Cancelled]
    assert not [t for t in threading.enumerate() if t.name == "write-beside"]


def test_a_stop_while_the_writing_begins_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[threading.Thread] = []
    start = threading.Thread.start

    def start_and_be_stopped(thread: threading.Thread) -> None:
        start(thread)
        begun.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start_and_be_stopped)
    with pytest.raises(KeyboardInterrupt):
        write_beside([1], lambda parts: list(parts) and None)
    begun[0].join(timeout=5)
    assert not begun[0].is_alive()


def test_few_parts_wait_to_be_written() -> None:
    written, most = [], []

    def parts() -> Iterator[int]:
        for part in range(12):
            most.append(part - len(written))
            yield part

    def write(parts: Iterator[int]) -> None:
        for part in parts:
            threading.Event().wait(0.002)
            written.append(part)

    write_beside(parts(), write)
    assert max(most) <= 4


def test_work_beside_gives_its_result_and_tells_how_long_it_took() -> None:
    events: list[Progress] = []
    beside = Beside(torch.device("cpu"))
    pending = beside.start(lambda: torch.ones(2).sum())
    assert pending.result(events.append, "decode_audio") == 2
    beside.close()
    assert [(e.stage, e.step) for e in events] == [("decode_audio", 0), ("decode_audio", 1)]


def test_an_error_beside_is_raised_where_the_result_is_wanted() -> None:
    def fail() -> None:
        raise ResourceError("no memory")

    beside = Beside(torch.device("cpu"))
    with pytest.raises(ResourceError, match="no memory"):
        beside.start(fail).result()
    beside.close()


def test_all_clips_share_one_stream_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the allocator keeps for a stream, it keeps for that one alone."""
    kind = torch.cuda.Stream
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: MagicMock(spec=kind))
    module._stream_of.cache_clear()
    streams = [module._stream_of(torch.device("cuda", index)) for index in (0, 0, 1)]
    module._stream_of.cache_clear()
    assert streams[0] is streams[1]
    assert streams[0] is not streams[2]
