"""What a media file holds: sizes as shown, exact rates, counted frames."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from soundstage.core.errors import MediaError
from soundstage.media.container import open_media, picture_stream, read_packets, sound_stream
from soundstage.media.tone import Transfer
from soundstage.media.upright import Look

_RATES = tuple(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120)) + tuple(
    map(Fraction, (24, 25, 30, 50, 60, 12, 15, 10, 8, 48, 100, 120))
)


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """A moving picture."""

    height: int  # pixels as shown: upright and square
    width: int
    frame_rate: Fraction  # exact; of the usual step where steps differ
    num_frames: int  # counted, not what the header says
    duration: Fraction  # seconds, from the first shown frame to the end of the last
    is_variable: bool  # frames do not follow each other at one rate
    is_interlaced: bool  # two moments in every frame, in alternating lines
    rotation: int  # degrees counter-clockwise, already applied in height and width
    bit_depth: int
    has_alpha: bool
    transfer: Transfer
    codec: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """A sound track."""

    sample_rate: int  # Hz, of what is decoded
    channels: int
    duration: Fraction  # seconds
    codec: str


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """A media file; a stream it does not have is None."""

    path: Path
    video: VideoInfo | None
    audio: AudioInfo | None

    @property
    def duration(self) -> Fraction:
        """Seconds of the picture, or of the sound where there is none."""
        stream = self.video or self.audio
        assert stream is not None
        return stream.duration


class Timeline(NamedTuple):
    """When the packets of one stream are shown."""

    times: list[int]  # ticks, ascending
    tick: Fraction  # seconds
    end: int  # ticks, of the last packet

    @property
    def duration(self) -> Fraction:
        """Seconds from the first to the end of the last."""
        return (self.end - self.times[0]) * self.tick


def probe(path: Path) -> MediaInfo:
    """Find out what a file holds.

    Reads the times of all packets, and decodes one frame of each stream.

    Raises:
        MediaError: The file cannot be read, or has neither picture nor sound.
    """
    with open_media(path) as container:
        picture, sound = picture_stream(container), sound_stream(container)
        if picture is None and sound is None:
            raise MediaError(f"{path} has neither picture nor sound")
        frame = None if picture is None else next(container.decode(picture), None)
    with open_media(path) as container:  # once more from the beginning
        heard = None if sound is None else next(container.decode(sound_stream(container)), None)
    with open_media(path) as container:
        timelines = _timelines(container)
        video = None if frame is None else _video_info(picture_stream(container), timelines, frame)
        audio = None if heard is None else _audio_info(sound_stream(container), timelines, heard)
    if video is None and audio is None:
        raise MediaError(f"{path} is empty: it has neither frames nor samples")
    return MediaInfo(path=path, video=video, audio=audio)


def _timelines(container: Any) -> dict[int, Timeline]:
    """Read every packet's time, without decoding."""
    found: dict[int, list[tuple[int, int]]] = {}
    ticks: dict[int, Fraction] = {}
    wanted = [s for s in (picture_stream(container), sound_stream(container)) if s is not None]
    for packet in read_packets(container, *wanted):
        if not packet.is_discard:
            stamps = found.setdefault(packet.stream_index, [])
            stamps.append((_stamp(packet, stamps), packet.duration or 0))
            ticks[packet.stream_index] = packet.time_base
    return {
        index: Timeline(sorted(time for time, _ in stamps), ticks[index], max(map(sum, stamps)))
        for index, stamps in found.items()
    }


def _stamp(packet: Any, before: list[tuple[int, int]]) -> int:
    """Give the time of a packet; a raw stream has none, so that its packets just follow each other."""
    if packet.pts is not None:
        return int(packet.pts)
    if packet.dts is not None:
        return int(packet.dts)
    return sum(before[-1]) if before else 0


def _video_info(stream: Any, timelines: dict[int, Timeline], frame: Any) -> VideoInfo:
    timeline, look = timelines[stream.index], Look.of(frame, stream.sample_aspect_ratio)
    rate, is_variable = _frame_rate(stream, timeline)
    count = len(timeline.times)
    span = (timeline.times[-1] - timeline.times[0]) * timeline.tick
    return VideoInfo(
        height=look.size[0],
        width=look.size[1],
        frame_rate=rate,
        num_frames=count,
        duration=max(timeline.duration, span + 1 / rate) if is_variable else count / rate,
        is_variable=is_variable,
        is_interlaced=bool(frame.interlaced_frame),
        rotation=look.rotation,
        bit_depth=look.bit_depth,
        has_alpha=look.has_alpha,
        transfer=look.transfer,
        codec=stream.codec_context.name,
    )


def _audio_info(stream: Any, timelines: dict[int, Timeline], frame: Any) -> AudioInfo:
    return AudioInfo(
        sample_rate=frame.sample_rate,
        channels=frame.layout.nb_channels,
        duration=timelines[stream.index].duration,
        codec=stream.codec_context.name,
    )


def _frame_rate(stream: Any, timeline: Timeline) -> tuple[Fraction, bool]:
    """Find the one rate that explains all times; if none does, the usual step, and True."""
    times, tick = timeline.times, timeline.tick
    told = [Fraction(r) for r in (stream.average_rate, stream.guessed_rate) if r]
    if len(times) == 1 or times[0] == times[-1]:
        return (told or [Fraction(24)])[0], False
    mean = (len(times) - 1) / ((times[-1] - times[0]) * tick)
    steps = sorted(b - a for a, b in pairwise(times) if b > a)
    usual = 1 / (steps[len(steps) // 2] * tick)
    near = sorted((r for r in _RATES if abs(r / mean - 1) < Fraction(1, 20)), key=lambda r: abs(r - mean))
    for rate in [*told, *near, mean.limit_denominator(1001)]:
        if _explains(rate, times, tick):
            return rate, False
    return min((r for r in _RATES if abs(r / usual - 1) < Fraction(1, 50)), default=usual), True


def _explains(rate: Fraction, times: list[int], tick: Fraction) -> bool:
    """Tell whether frames at `rate`, with times rounded to ticks, give these times."""
    step = 1 / (rate * tick)
    return all(abs(time - times[0] - index * step) <= 1 for index, time in enumerate(times))
