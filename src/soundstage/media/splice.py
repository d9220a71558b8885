"""Some frames of a video replaced, all others as they were, bit for bit after decoding.

Packets are copied up to the replaced frames and from the next independent frame on. Between these, the new
frames are coded as usual, and the old ones that have lost what they were predicted from without loss:

    packets   copied ............ | lossless | new frames | lossless ...... | copied ......................
              up to the last group that                     up to the next frame that
              is shown before the new frames                starts anew (IDR)

Where a video cannot be continued like this (it is not H.264 in an MP4, MOV or MKV), all of it is coded anew,
the old frames without loss.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from soundstage.core.errors import MediaError, RequestError
from soundstage.media.audio import StereoWaveform, clip_waveform
from soundstage.media.container import (
    clock_origin,
    open_media,
    picture_origin,
    picture_stream,
    read_packets,
    seek_before,
    sound_stream,
)
from soundstage.media.h264 import ENCODER_THREADS, PIXEL_FORMATS, Encoded, Encoder, Header, plain
from soundstage.media.mux import exact_mp4, open_output
from soundstage.media.placement import resize_frames
from soundstage.media.probe import VideoInfo
from soundstage.media.remux import check_holds, output_kind, picture_info
from soundstage.media.tracks import CopiedTrack, SoundCodec, SoundTrack, check_sound
from soundstage.media.upright import Look, colour_matrix, unturn

Pictures = UInt8[Tensor, "f h w 3"]


def splice_frames(
    source: Path,
    out: Path,
    frames: Pictures | Iterable[Tensor],
    *,
    span: range,
    sound: StereoWaveform | Literal["keep"] | None = "keep",
    sample_rate: int = 48_000,
    sound_codec: SoundCodec = "alac",
    metadata: Mapping[str, Any] | None = None,
    crf: int = 12,
) -> None:
    """Replace a span of a video's frames; the others decode to the same bits as before.

    Times, rotation and pixel shape are those of the source. Lossless frames use H.264's profile "High 4:4:4
    Predictive", which FFmpeg-based players show and most hardware does not.

    Args:
        source: Any video file of ordinary range.
        out: Ends in .mp4, .mov or .mkv.
        frames: 8-bit, upright, of the size that `probe` tells; one tensor, or chunks in order.
        span: Indices of the source's shown frames that they take the place of.
        sound: "keep" copies the sound's packets; a waveform starts with the first frame and is cut or padded
            to the length of the picture; None writes no sound.
        sample_rate: Of a waveform, Hz.
        sound_codec: Of a waveform; "alac" keeps every sample, to 24 bits.
        metadata: JSON-ready data for the `comment` tag.
        crf: Quality of the new frames, x264's constant rate factor.

    Raises:
        MediaError: The source cannot be read, is HDR or of a format that cannot be kept, or the frames do not
            fit it.
        RequestError: The span lies outside, or an argument is not allowed.
        ResourceError: The disk is full or refuses the write.
    """
    kind = output_kind(out, source)
    info = picture_info(source)
    _check(source, info, span)
    if isinstance(sound, Tensor):
        check_sound(sample_rate, sound_codec)
        sound = clip_waveform(sound)
    pictures = _single_pictures(frames, info, span)
    options = exact_mp4(info.frame_rate, sample_rate) if kind != "matroska" else {"fflags": "+bitexact"}
    with ExitStack() as stack:
        container = stack.enter_context(open_media(source))
        stream, origin = picture_stream(container), clock_origin(container)
        assert stream is not None
        heard = sound_stream(container) if sound == "keep" else None
        job, plan = _job(source, info, span, crf, pictures), _plan(source, span)
        output = stack.enter_context(open_output(out, kind, options, metadata))
        picture = _Rewritten(job, output, stream) if plan is None else _Spliced(job, plan, output, stream)
        kept = None if heard is None else _keep(output, out, heard, origin)
        track = SoundTrack(output, sound, sample_rate, sound_codec) if isinstance(sound, Tensor) else None
        for packet in read_packets(container, *(s for s in (stream, heard) if s is not None)):
            if kept is not None and packet.stream is heard:
                kept.write(packet)
                continue
            if track is not None and packet.dts is not None:
                due = packet.dts * packet.time_base - origin
                track.write_until(min(max(due, Fraction(0)), info.duration))
            picture.write(packet)
        picture.finish()
        next(pictures, None)  # more than fit are an error
        if track is not None:
            track.finish(info.duration)


class Job(NamedTuple):
    """What both ways of writing the picture need."""

    source: Path
    span: range
    crf: int
    frame_rate: Fraction
    pictures: Iterator[Any]
    example: Any  # a decoded frame of the source
    look: Look
    origin: Fraction  # when the first frame is shown, on the source's clock


def _job(source: Path, info: VideoInfo, span: range, crf: int, pictures: Iterator[Any]) -> Job:
    with open_media(source) as container:
        stream, origin = picture_stream(container), picture_origin(container)
        example = next(container.decode(stream))
        look = Look.of(example, stream.sample_aspect_ratio if stream else None)
    if example.format.name not in PIXEL_FORMATS:
        raise MediaError(f"{source} stores pixels as {example.format.name}, which H.264 cannot keep exactly")
    return Job(source, span, crf, info.frame_rate, pictures, example, look, origin)


def _keep(output: Any, out: Path, heard: Any, origin: Fraction) -> CopiedTrack:
    check_holds(output, out, heard.codec_context.name)
    return CopiedTrack(output, heard, origin)


class Stamp(NamedTuple):
    """What a packet says about itself."""

    pts: int  # ticks, when its frame is shown
    is_shown: bool  # not only there for others to be predicted from
    starts_anew: bool  # nothing after it needs anything before it


class Plan(NamedTuple):
    """What is done with the packets of a track."""

    header: Header
    begin: int  # in the order of the file, packets before this one are copied
    resume: int  # this packet and all after it are copied
    before: list[int]  # pts of old frames that are coded again, shown before the new ones
    replaced: list[int]  # pts of the new ones
    after: list[int]  # pts of old frames that are coded again, shown after the new ones
    dts: list[int]  # ticks, when each packet is decoded


def plan_packets(stamps: Sequence[Stamp], first: int, last: int) -> tuple[int, int]:
    """Find the packets that cannot be copied when the frames shown at `first` to `last` are replaced.

    Returns:
        The first of them, and the first after them. Before each, everything that was sent is shown before
        everything that is still to come; and the second one starts anew, so that it can follow anything.
    """
    latest = list(accumulate((stamp.pts for stamp in stamps), max))  # shown last, of those up to here
    earliest = list(accumulate((stamp.pts for stamp in reversed(stamps)), min))[::-1]  # first, from here on
    begin, resume = 0, len(stamps)
    for index in range(1, len(stamps)):
        if latest[index - 1] >= earliest[index]:
            continue
        if latest[index - 1] < first:
            begin = index
        if earliest[index] > last and stamps[index].starts_anew:
            resume = index
            break
    return begin, resume


def _plan(source: Path, span: range) -> Plan | None:
    """Look at all packets; None where the track cannot be continued by another encoder."""
    with open_media(source) as container:
        stream = picture_stream(container)
        assert stream is not None
        header = Header.parse(bytes(stream.codec_context.extradata or b""))
        if header is None or stream.codec_context.name != "h264":
            return None
        stamps, dts = [], []
        for packet in read_packets(container, stream):
            if packet.pts is None:
                return None
            dts.append(packet.dts)
            anew = packet.is_keyframe and header.starts_anew(bytes(packet))
            stamps.append(Stamp(packet.pts, not packet.is_discard, anew))
    shown = sorted(stamp.pts for stamp in stamps if stamp.is_shown)
    if len(set(shown)) < len(shown) or len(header.free_ids(3)) < 3:
        return None
    replaced = shown[span.start : span.stop]
    begin, resume = plan_packets(stamps, replaced[0], replaced[-1])
    again = sorted(stamp.pts for stamp in stamps[begin:resume] if stamp.is_shown)
    return Plan(
        header,
        begin,
        resume,
        [pts for pts in again if pts < replaced[0]],
        replaced,
        [pts for pts in again if pts > replaced[-1]],
        decoding_times([stamp.pts for stamp in stamps]) if None in dts else dts,
    )


def decoding_times(pts: list[int]) -> list[int]:
    """Make up when packets are decoded, which MKV does not store: in order, and none too late."""
    ordered = sorted(pts)
    early = max(due - shown for due, shown in zip(ordered, pts, strict=True))
    return [due - early for due in ordered]


class _NewFrames:
    """The new frames, brought to the form in which the source stores its own."""

    def __init__(self, pictures: Iterator[UInt8[Tensor, "h w 3"]], example: Any, look: Look) -> None:
        self._pictures, self._example, self._look = pictures, example, look

    def next(self, pts: int, time_base: Fraction) -> Any:
        """Convert the next one."""
        import av

        picture = unturn(next(self._pictures), self._look.matrix)
        picture = resize_frames(picture[None], self._look.stored)[0]
        like = self._example
        frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24").reformat(
            format=like.format.name, dst_colorspace=colour_matrix(like), dst_color_range=like.color_range
        )
        frame.colorspace, frame.color_range = like.colorspace, like.color_range
        frame.pts, frame.time_base = pts, time_base
        return frame


class _Spliced:
    """A copied track of which some packets are replaced."""

    def __init__(self, job: Job, plan: Plan, output: Any, stream: Any) -> None:
        self._source, self._plan, self._index = job.source, plan, 0
        self._tick = Fraction(stream.time_base)
        self._new = _NewFrames(job.pictures, job.example, job.look)
        self._track = CopiedTrack(output, stream, job.origin)
        clock = (self._tick, job.frame_rate)
        self._encoders = [
            Encoder(job.example, clock, job.look.pixel_aspect, set_id=number, crf=crf)
            for number, crf in zip(plan.header.free_ids(3), (None, job.crf, None), strict=True)
        ]
        header = plan.header.extended([(e.sps, e.pps) for e in self._encoders], job.example)
        self._track.set_header(header.to_bytes())
        self._coded = self._encode()

    def write(self, packet: Any) -> None:
        """Copy the next packet, or put a new one in its place."""
        packet.dts = self._plan.dts[self._index]
        if not self._plan.begin <= self._index < self._plan.resume:
            self._track.write(packet)
        elif not packet.is_discard:  # times of decoding stay: without reordering they are early enough
            coded = next(self._coded)
            self._track.write_instead(packet, coded.data, coded.pts, coded.is_keyframe)
        self._index += 1

    def finish(self) -> None:
        """Check that every frame found its place."""
        assert next(self._coded, None) is None

    def _encode(self) -> Iterator[Encoded]:
        """Code what cannot be copied, in the order in which it is shown; no frame waits for a later one."""
        plan, size = self._plan, self._plan.header.length_size
        new = (self._new.next(pts, self._tick) for pts in plan.replaced)
        for encoder, frames in zip(
            self._encoders, (self._old(plan.before), new, self._old(plan.after)), strict=True
        ):
            yield from encoder.encode(frames, size)

    def _old(self, wanted: list[int]) -> Iterator[Any]:
        """Decode frames of the source that are coded again."""
        if not wanted:
            return
        with open_media(self._source) as container:
            stream = picture_stream(container)
            assert stream is not None
            seek_before(container, stream, wanted[0] * self._tick)
            missing = set(wanted)
            for frame in container.decode(stream):
                if frame.pts in missing:
                    yield frame
                if frame.pts >= wanted[-1]:
                    return


class _Rewritten:
    """A track that is decoded and coded anew without loss, some of its frames replaced."""

    def __init__(self, job: Job, output: Any, stream: Any) -> None:
        self._span, self._output, self._source, self._index = job.span, output, stream, 0
        self._new = _NewFrames(job.pictures, job.example, job.look)
        example = job.example
        self._origin = round(job.origin / stream.time_base)
        options = {"qp": "0", "preset": "veryfast", "threads": str(ENCODER_THREADS)}
        self._stream = output.add_stream("libx264", rate=job.frame_rate, options=options)
        self._stream.width, self._stream.height = example.width, example.height
        self._stream.pix_fmt = example.format.name
        context = self._stream.codec_context
        context.time_base = stream.time_base
        context.color_primaries, context.color_trc = example.color_primaries, example.color_trc
        context.colorspace, context.color_range = example.colorspace, example.color_range
        if stream.sample_aspect_ratio:
            context.sample_aspect_ratio = stream.sample_aspect_ratio
        self._stream.set_display_matrix(job.look.display_matrix)

    def write(self, packet: Any) -> None:
        """Decode the next packet and code what comes of it."""
        self._take(packet.decode())

    def finish(self) -> None:
        """Code what the decoder and the encoder still hold."""
        self._take(self._source.decode(None))
        self._output.mux(self._stream.encode(None))

    def _take(self, frames: list[Any]) -> None:
        for frame in frames:
            pts = (frame.dts if frame.pts is None else frame.pts) - self._origin
            frame.time_base = self._source.time_base  # which the last ones do not carry
            is_new = self._index in self._span
            coded = self._new.next(pts, self._source.time_base) if is_new else plain(frame, pts)
            self._output.mux(self._stream.encode(coded))
            self._index += 1


def _single_pictures(job_frames: Pictures | Iterable[Tensor], info: VideoInfo, span: range) -> Iterator[Any]:
    """Yield the new frames one by one; too few, too many or of another size are an error."""
    count = 0
    for chunk in [job_frames] if isinstance(job_frames, Tensor) else job_frames:
        for picture in chunk.cpu():
            if tuple(picture.shape[:2]) != info.size:
                was = "x".join(map(str, reversed(picture.shape[:2])))
                raise MediaError(f"a new frame is {was}, the video is {info.width}x{info.height}")
            count += 1
            if count <= len(span):
                yield picture.contiguous()
    if count != len(span):
        raise MediaError(f"{count} new frames are given for the {len(span)} frames {span[0]} to {span[-1]}")


def _check(source: Path, info: VideoInfo, span: range) -> None:
    if info.transfer != "sdr":
        raise MediaError(f"{source} is HDR ({info.transfer}); frames of ordinary range do not fit into it")
    if span.step != 1 or not 0 <= span.start < span.stop <= info.num_frames:
        raise RequestError(
            f"frames {span.start} to {span.stop - 1} are not in {source}; it has 0 to {info.num_frames - 1}"
        )
