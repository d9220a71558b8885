"""Join picture and sound in one MP4 whose two streams start together and end together.

The same input gives the same bytes: no creation time, no encoder banner, a fixed number of encoder threads.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from soundstage.core.errors import MediaError
from soundstage.core.files import atomic_output
from soundstage.dsp.resample import resample
from soundstage.media.audio import StereoWaveform, read_sound
from soundstage.media.container import clock_origin, open_media, sound_stream
from soundstage.media.tracks import (
    AAC_SAMPLE_RATES,
    CopiedSoundTrack,
    OriginalSound,
    SoundCodec,
    SoundTrack,
    VideoTrack,
    check_sound,
)
from soundstage.media.video import ClipPixels, Frames, to_frames

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # of files with a picture
_COPIED = ("aac", "alac", "ac3", "eac3", "mp3")  # sound that goes from one MP4 into another as it is
_CHUNK = 8  # frames converted at once, so that a long clip is never held twice
_MAX_TIMESCALE = 2**31 - 1  # ticks per second that an MP4 can have

AnySoundTrack = SoundTrack | CopiedSoundTrack
MakeSoundTrack = Callable[[Any], AnySoundTrack]  # adds a track to an output container


def write_clip(
    path: Path,
    video: ClipPixels | Frames | Iterable[Tensor],
    sound: StereoWaveform | OriginalSound | None,
    *,
    frame_rate: Fraction,
    sample_rate: int = 48_000,
    metadata: Mapping[str, Any] | None = None,
    crf: int = 18,
    sound_codec: SoundCodec = "aac",
) -> None:
    """Write H.264 and sound, a waveform cut or padded with silence to exactly the length of the picture.

    Pictures of even size are stored as 4:2:0, which everything plays. An odd width or height does not fit
    4:2:0; such clips are stored as 4:4:4, because the file then has the size that was asked for (ffmpeg plays
    it, some players do not).

    Args:
        video: Pixels in [-1, 1] or 8-bit frames; one tensor, or chunks of the clip in order.
        sound: Stereo in [-1, 1], clipped; or the sound of a file, whose packets are copied when they can go
            into an MP4 as they are (then it ends where it ends), and coded again otherwise; None writes no
            sound track.
        sample_rate: Of a waveform, Hz.
        metadata: JSON-ready data for the `comment` tag, read back by `read_metadata`.
        crf: x264's constant rate factor: 0 is lossless, 18 is visually so, 51 the worst.
        sound_codec: "alac" is lossless but not played by every browser.

    Raises:
        MediaError: The input is empty, not finite or changes size, or the encoder refuses it.
        RequestError: The codec does not know the sample rate.
        ResourceError: The disk is full or refuses the write.
    """
    if isinstance(sound, Tensor):
        check_sound(sample_rate, sound_codec)
    with ExitStack() as stack:
        make_track, sound_rate = None, sample_rate
        if isinstance(sound, OriginalSound):
            make_track, sound_rate = _original_track(stack, sound, sound_codec)
        elif sound is not None:
            make_track = waveform_track(sound, sample_rate, sound_codec)
        options = exact_mp4(frame_rate, sound_rate)
        with open_output(path, "mp4", options, metadata) as container:
            _write_streams(container, _single_frames(video), make_track, frame_rate, crf)


def write_parts(
    path: Path,
    parts: Iterable[tuple[ClipPixels | Frames | Iterable[Tensor], StereoWaveform | None]],
    *,
    frame_rate: Fraction,
    sample_rate: int = 48_000,
    metadata: Mapping[str, Any] | None = None,
    crf: int = 18,
) -> None:
    """Write a clip that comes in parts, holding one at a time; see `write_clip`.

    Args:
        parts: Picture and sound in order. They need not be cut at the same moment: what a part's sound lacks
            comes with a later part. Without sound in the first part the clip has no sound track.

    Raises:
        MediaError: The input is empty, not finite or changes size, or the encoder refuses it.
        RequestError: AAC does not know the sample rate.
        ResourceError: The disk is full or refuses the write.
    """
    check_sound(sample_rate, "aac")
    with open_output(path, "mp4", exact_mp4(frame_rate, sample_rate), metadata) as container:
        picture, sound = None, None
        for video, waveform in parts:
            if sound is not None and waveform is not None:
                sound.feed(waveform)
            for frame in _single_frames(video):
                if picture is None:
                    picture = VideoTrack(container, frame.shape[0], frame.shape[1], frame_rate, crf)
                    sound = None if waveform is None else SoundTrack(container, waveform, sample_rate)
                _write_frame(picture, sound, frame, frame_rate)
        _finish(picture, sound, frame_rate)


@contextmanager
def open_output(
    path: Path, kind: str, options: Mapping[str, str], metadata: Mapping[str, Any] | None
) -> Iterator[Any]:
    """Open a file for writing that is complete or absent when the block ends.

    Args:
        kind: FFmpeg's name of the format.
        options: Of the format.
        metadata: JSON-ready data for the `comment` tag.

    Raises:
        MediaError: FFmpeg refuses what is written.
        ResourceError: The disk is full or refuses the write.
    """
    import av

    try:
        with (
            atomic_output(path) as temporary,
            av.open(str(temporary), "w", format=kind, container_options=dict(options)) as container,
        ):
            if metadata is not None:
                container.metadata["comment"] = json.dumps(metadata, sort_keys=True)
            yield container
    except av.FFmpegError as error:
        raise MediaError(f"cannot encode {path}: {error.strerror or error}") from error


def exact_mp4(frame_rate: Fraction, sample_rate: int) -> dict[str, str]:
    """Set up an MP4 whose lengths are exact, that plays while it loads, and that holds no date.

    Edit lists count in units of the movie clock; the default of 1 ms would round the sound's length.
    """
    clock = math.lcm(frame_rate.numerator, sample_rate)
    if clock > _MAX_TIMESCALE:
        clock = sample_rate
    return {"movflags": "+faststart", "fflags": "+bitexact", "movie_timescale": str(clock)}


def waveform_track(waveform: StereoWaveform, sample_rate: int, codec: SoundCodec) -> MakeSoundTrack:
    """Say how to add a track of this sound."""
    return lambda container: SoundTrack(container, waveform, sample_rate, codec)


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the JSON that `write_clip` or `write_wav` stored; an empty dict where there is none.

    Raises:
        MediaError: The file is missing or is not a media file.
    """
    with open_media(path) as container:  # MKV writes the names of its tags in capitals
        comment = {name.lower(): text for name, text in container.metadata.items()}.get("comment") or "{}"
    try:
        data = json.loads(comment)
    except json.JSONDecodeError:
        data = comment
    return data if isinstance(data, dict) else {"comment": comment}


def _original_track(stack: ExitStack, sound: OriginalSound, codec: SoundCodec) -> tuple[MakeSoundTrack, int]:
    """Say how to add a track of a file's sound, and give its rate; packets are copied where they can be."""
    if sound.start == 0:
        source = stack.enter_context(open_media(sound.path))
        stream, origin = sound_stream(source), clock_origin(source)
        if stream is not None and _can_copy(source, stream, origin):
            return lambda container: CopiedSoundTrack(container, source, stream, origin), stream.rate
    waveform, rate = _decoded(sound, codec)
    return waveform_track(waveform, rate, codec), rate


def _can_copy(source: Any, stream: Any, origin: Fraction) -> bool:
    """Tell whether packets can go into an MP4 as they are: made for one, and beginning with the clip."""
    begins = stream.start_time is not None and stream.start_time * stream.time_base == origin
    return "mp4" in source.format.name and stream.codec_context.name in _COPIED and begins


def _decoded(sound: OriginalSound, codec: SoundCodec) -> tuple[StereoWaveform, int]:
    """Decode the sound from its start on, at a rate that the codec knows."""
    heard = read_sound(sound.path, start=sound.start)
    assert heard is not None
    assert heard.waveform is not None
    assert heard.sample_rate is not None
    rate = heard.sample_rate
    if codec == "aac" and rate not in AAC_SAMPLE_RATES:
        rate = min((r for r in AAC_SAMPLE_RATES if r >= rate), default=AAC_SAMPLE_RATES[-1])
    return resample(heard.waveform[None], heard.sample_rate, rate)[0], rate


def _write_streams(
    container: Any,
    frames: Iterator[UInt8[Tensor, "h w 3"]],
    make_track: MakeSoundTrack | None,
    frame_rate: Fraction,
    crf: int,
) -> None:
    """Encode both streams side by side, so that neither has to be buffered until the other is done."""
    picture, sound = None, None
    for frame in frames:
        if picture is None:
            picture = VideoTrack(container, frame.shape[0], frame.shape[1], frame_rate, crf)
            sound = None if make_track is None else make_track(container)
        _write_frame(picture, sound, frame, frame_rate)
    _finish(picture, sound, frame_rate)


def _write_frame(
    picture: VideoTrack, sound: AnySoundTrack | None, frame: UInt8[Tensor, "h w 3"], frame_rate: Fraction
) -> None:
    """Encode a frame, and the sound up to its end."""
    picture.write(frame)
    if sound is not None:
        sound.write_until(picture.num_frames / frame_rate)


def _finish(picture: VideoTrack | None, sound: AnySoundTrack | None, frame_rate: Fraction) -> None:
    if picture is None:
        raise MediaError("the video has no frames")
    picture.finish()
    if sound is not None:
        sound.finish(picture.num_frames / frame_rate)


def _single_frames(
    video: ClipPixels | Frames | Iterable[Tensor],
) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """Yield 8-bit frames one by one from a clip or from chunks of one."""
    for chunk in [video] if isinstance(video, Tensor) else video:
        if chunk.dtype == torch.uint8:
            yield from chunk.cpu().contiguous()
        else:
            for start in range(0, chunk.shape[1], _CHUNK):
                yield from to_frames(chunk[:, start : start + _CHUNK])
