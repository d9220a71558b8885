"""New sound under an existing picture, whose packets are copied byte for byte."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from soundstage.core.errors import MediaError, RequestError
from soundstage.media.audio import StereoWaveform, clip_waveform
from soundstage.media.container import open_media, picture_origin, picture_stream, read_packets
from soundstage.media.mux import FORMATS, exact_mp4, open_output
from soundstage.media.probe import VideoInfo, probe
from soundstage.media.tracks import CopiedTrack, SoundCodec, SoundTrack, check_sound


def replace_sound(
    source: Path,
    waveform: StereoWaveform,
    out: Path,
    *,
    sample_rate: int,
    sound_codec: SoundCodec = "aac",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Give a video a new sound; the picture is not touched.

    The packets of the picture are copied with their times, rotation, pixel shape and codec tag. The sound
    begins with the first shown frame and is cut or padded with silence to the length of the picture. Other
    tracks (the sound of before, subtitles) are left out.

    Args:
        source: Any video file.
        out: Ends in .mp4, .mov or .mkv; an .mkv holds nearly every codec.
        metadata: JSON-ready data for the `comment` tag.

    Raises:
        MediaError: The source cannot be read or has no picture, or `out` cannot hold its codec.
        RequestError: `out` has another ending, is the source itself, or the codec does not know the rate.
        ResourceError: The disk is full or refuses the write.
    """
    check_sound(sample_rate, sound_codec)
    kind = output_kind(out, source)
    samples = clip_waveform(waveform)
    info = picture_info(source)
    with open_media(source) as container:
        stream = picture_stream(container)
        assert stream is not None
        options = exact_mp4(info.frame_rate, sample_rate) if kind != "matroska" else {"fflags": "+bitexact"}
        with open_output(out, kind, options, metadata) as output:
            check_holds(output, out, stream.codec_context.name)
            picture = CopiedTrack(output, stream, picture_origin(container))
            sound = SoundTrack(output, samples, sample_rate, sound_codec)
            for packet in read_packets(container, stream):
                sound.write_until(min(max(picture.seconds(packet), Fraction(0)), info.duration))
                picture.write(packet)
            sound.finish(info.duration)


def output_kind(out: Path, source: Path) -> str:
    """Give FFmpeg's name of the format that a file name asks for.

    Raises:
        RequestError: The ending is not that of a video, or the source would be overwritten while it is read.
    """
    if out.suffix.lower() not in FORMATS:
        endings = ", ".join(FORMATS)
        raise RequestError(f"output {out} ends in none of {endings}; {out.with_suffix('.mp4').name} would do")
    if out.exists() and source.exists() and out.samefile(source):
        raise RequestError(f"output {out} is the source itself; choose another name")
    return FORMATS[out.suffix.lower()]


def picture_info(source: Path) -> VideoInfo:
    """Probe a file that must have a picture.

    Raises:
        MediaError: It has none, or cannot be read.
    """
    info = probe(source)
    if info.video is None:
        raise MediaError(f"{source} has no picture")
    return info.video


def check_holds(output: Any, out: Path, codec: str) -> None:
    """Refuse a container that has no place for a codec.

    Raises:
        MediaError: Names a container that has.
    """
    from av.codec import Codec

    name = Codec(codec, "r").canonical_name
    if output.format.name != "matroska" and name not in output.supported_codecs:
        raise MediaError(f"{out.name} cannot hold {name}; name the output {out.with_suffix('.mkv').name}")
