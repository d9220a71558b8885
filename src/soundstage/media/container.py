"""Open media files: one error for everything that cannot be read, one clock for picture and sound."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from soundstage.core.errors import MediaError

Seconds = int | float | Fraction

_NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS, of raw streams
_WITHOUT_INDEX = ("mpegts", "mpeg")  # a jump may land behind the frame that is needed


@contextmanager
def open_media(path: Path, **options: str) -> Iterator[Any]:
    """Open a file for reading with PyAV; whatever FFmpeg finds wrong inside the block names the file.

    Args:
        options: Of the demuxer, see FFmpeg's manual.

    Raises:
        MediaError: The file is missing, damaged, or not a media file.
    """
    import av

    try:
        with av.open(str(path), options=options) as container:
            yield container
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"cannot read {path}: {error.strerror or error}") from error


def read_packets(container: Any, *streams: Any) -> Iterator[Any]:
    """Read the packets of some streams in their order, as errors of this file and not of one being written.

    Raises:
        MediaError: The file is damaged.
    """
    import av

    try:
        for packet in container.demux(*streams):
            if packet.size:  # the last ones are empty: they tell decoders to give out what they hold
                yield packet
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"cannot read {container.name}: {error.strerror or error}") from error


def picture_stream(container: Any) -> Any | None:
    """Find the moving picture; a cover image beside the sound is not one."""
    from av.stream import Disposition

    moving = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    return next(moving, None)


def sound_stream(container: Any) -> Any | None:
    """Find the first sound track."""
    return container.streams.audio[0] if container.streams.audio else None


def clock_origin(container: Any) -> Fraction:
    """Say when second 0 is on the container's clock: at the first shown frame, or where the sound begins."""
    import av

    stream = picture_stream(container) or sound_stream(container)
    if stream is not None and stream.start_time is not None:
        return Fraction(stream.start_time * stream.time_base)
    return Fraction(container.start_time or 0, av.time_base)


def picture_origin(container: Any) -> Fraction:
    """Say when the first frame is shown on the clock of the picture's packets; still at the beginning, then.

    It is second 0, except in an AVI, which stores no times: those that FFmpeg makes up may begin late.
    """
    stream = picture_stream(container)
    if container.format.name != "avi" or stream is None:
        return clock_origin(container)
    first = next(
        ((packet.pts or 0) * packet.time_base for packet in container.demux(stream) if packet.size),
        Fraction(0),
    )
    container.seek(0, stream=stream)
    return Fraction(first)


def seek_before(container: Any, stream: Any, seconds: Fraction) -> None:
    """Go to a point from where decoding gives everything from `seconds` of the container's clock on."""
    import av

    if container.format.flags & _NO_TIMESTAMPS or container.format.name in _WITHOUT_INDEX:
        return  # still at the beginning
    try:
        container.seek(int(seconds / stream.time_base), stream=stream, backward=True)
    except av.FFmpegError:  # a format without an index: read it from the beginning
        container.seek(0, stream=stream, backward=True, any_frame=True)
