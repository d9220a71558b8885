"""The tracks of a file being written: encoded pictures, encoded sound, and packets copied from another file.

An AAC encoder delays its input by 1,024 samples. The container undoes that with an edit list, which
libavformat only writes when the packets carry negative timestamps, and the encoder only makes those when
every frame that goes in has a `pts` and a `time_base`. Without them the sound is late, at 24 kHz by 43 ms.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from soundstage.core.errors import MediaError, RequestError
from soundstage.media.audio import StereoWaveform, clip_waveform
from soundstage.media.container import read_packets
from soundstage.media.h264 import ENCODER_THREADS

SoundCodec = Literal["aac", "alac"]  # alac is lossless: exact to 24 bits

AAC_SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_FRAME_SIZES: dict[SoundCodec, int] = {"aac": 1024, "alac": 4096}  # samples in a packet
_AAC_BIT_RATE = 192_000  # bits per second, stereo
_BT709 = 1  # the code of BT.709 for primaries, transfer and matrix in H.264, table E-3 ff.
_LIMITED = 1  # AVCOL_RANGE_MPEG


def check_sound(sample_rate: int, codec: SoundCodec) -> None:
    """Refuse a sample rate before anything is written.

    Raises:
        RequestError: The codec does not know it.
    """
    if codec == "aac" and sample_rate not in AAC_SAMPLE_RATES:
        near = min(AAC_SAMPLE_RATES, key=lambda rate: abs(rate - sample_rate))
        raise RequestError(f"sample_rate={sample_rate} is not one of AAC's; the nearest is {near}")


class VideoTrack:
    """H.264 in BT.709, one tick of the clock per frame."""

    def __init__(self, container: Any, height: int, width: int, frame_rate: Fraction, crf: int) -> None:
        self._container = container
        self._size = (height, width)
        self._time_base = 1 / frame_rate
        # Without it, x264 gave other bytes now and then for the same frames on a CPU with AVX-512.
        params = {"x264-params": "cpu-independent=1"}
        options = {"crf": str(crf), "preset": "medium", "threads": str(ENCODER_THREADS), **params}
        self._stream = container.add_stream("libx264", rate=frame_rate, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        codec = self._stream.codec_context
        codec.time_base = self._time_base
        codec.color_primaries = codec.color_trc = codec.colorspace = _BT709
        codec.color_range = _LIMITED
        self.num_frames = 0

    def write(self, rgb: UInt8[Tensor, "h w 3"]) -> None:
        """Encode the next frame."""
        import av
        from av.video.reformatter import ColorRange, Colorspace

        if tuple(rgb.shape[:2]) != self._size:
            was, now = ("x".join(map(str, reversed(size))) for size in (self._size, rgb.shape[:2]))
            raise MediaError(f"frame {self.num_frames} is {now}, the frames before it are {was}")
        frame = av.VideoFrame.from_ndarray(rgb.numpy(), format="rgb24").reformat(
            format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base, frame.duration = self.num_frames, self._time_base, 1
        self._container.mux(self._stream.encode(frame))
        self.num_frames += 1

    def finish(self) -> None:
        """Write what the encoder still holds."""
        self._container.mux(self._stream.encode(None))


class SoundTrack:
    """Encoded sound, fed in whole codec frames that say when they are."""

    def __init__(
        self, container: Any, waveform: StereoWaveform, sample_rate: int, codec: SoundCodec = "aac"
    ) -> None:
        self._container = container
        self._waveform = clip_waveform(waveform)  # what is not encoded yet
        self._sample_rate = sample_rate
        self._codec = codec
        self._frame_size = _FRAME_SIZES[codec]
        self._stream = container.add_stream(codec, rate=sample_rate, layout="stereo")
        if codec == "aac":
            # AAC holds at most 12 bits per stereo sample; 8 keeps low rates well inside.
            self._stream.bit_rate = min(_AAC_BIT_RATE, 8 * sample_rate)
        else:
            self._stream.codec_context.format = "s32p"  # of which 24 bits are kept
        self._stream.codec_context.time_base = Fraction(1, sample_rate)
        self._written = 0

    def feed(self, waveform: StereoWaveform) -> None:
        """Take what follows the samples that are there."""
        self._waveform = torch.cat([self._waveform, clip_waveform(waveform)], dim=1)

    def write_until(self, seconds: Fraction) -> None:
        """Encode the whole codec frames that end by then, as far as their samples are there."""
        num_samples = round(seconds * self._sample_rate)
        while self._written + self._frame_size <= num_samples and self._waveform.shape[1] >= self._frame_size:
            self._encode(self._frame_size)

    def finish(self, seconds: Fraction) -> None:
        """Encode the rest, the last codec frame shortened, so that the track lasts `seconds`."""
        num_samples = round(seconds * self._sample_rate)
        while num_samples > self._written:
            self._encode(min(self._frame_size, num_samples - self._written))
        self._container.mux(self._stream.encode(None))

    def _encode(self, count: int) -> None:
        import av

        samples, self._waveform = self._waveform[:, :count], self._waveform[:, count:]
        samples = torch.nn.functional.pad(samples, (0, count - samples.shape[1])).contiguous()
        array = samples.numpy() if self._codec == "aac" else _to_24_bits(samples).numpy()
        layout = "fltp" if self._codec == "aac" else "s32p"
        frame = av.AudioFrame.from_ndarray(array, format=layout, layout="stereo")
        frame.sample_rate = self._sample_rate
        frame.pts, frame.time_base = self._written, Fraction(1, self._sample_rate)
        self._container.mux(self._stream.encode(frame))
        self._written += count


class CopiedTrack:
    """Packets of another file's stream, byte for byte, moved so that second 0 is `origin` of their clock."""

    def __init__(self, container: Any, template: Any, origin: Fraction) -> None:
        self._container = container
        self._origin = origin
        self._stream = container.add_stream_from_template(template, opaque=True)
        self._stream.metadata.update(template.metadata)
        if "mp4" in template.container.format.name and container.format.name in ("mp4", "mov"):
            self._stream.codec_context.codec_tag = template.codec_context.codec_tag  # hvc1 and hev1 differ

    def set_header(self, data: bytes) -> None:
        """Describe the track otherwise than its template; before the first packet."""
        self._stream.codec_context.extradata = data

    def write_instead(self, packet: Any, data: bytes, pts: int, is_keyframe: bool) -> None:
        """Write other data in the place of a packet, to be shown at `pts` of its clock."""
        import av

        new = av.Packet(data)
        new.pts, new.dts, new.duration = pts, packet.dts, packet.duration
        new.time_base, new.is_keyframe = packet.time_base, is_keyframe
        self.write(new)

    def seconds(self, packet: Any) -> Fraction:
        """Say when a packet is due, on the clock of the file being written."""
        return Fraction((packet.pts if packet.dts is None else packet.dts) * packet.time_base - self._origin)

    def write(self, packet: Any) -> None:
        """Write the next packet; it is used up."""
        shift = round(self._origin / packet.time_base)
        if packet.pts is not None:
            packet.pts -= shift
        if packet.dts is not None:
            packet.dts -= shift
        packet.stream = self._stream
        self._container.mux(packet)


@dataclass(frozen=True)
class OriginalSound:
    """The sound of a file from `start` seconds on, to be heard as it is."""

    path: Path
    start: int | float | Fraction = 0


class CopiedSoundTrack:
    """The beginning of another file's sound, its packets copied, cut to length by shortening the last one."""

    def __init__(self, container: Any, source: Any, stream: Any, origin: Fraction) -> None:
        self._track = CopiedTrack(container, stream, origin)
        self._origin = origin
        self._packets: Iterator[Any] = read_packets(source, stream)
        self._next = next(self._packets, None)

    def write_until(self, seconds: Fraction) -> None:
        """Copy the packets that end by then."""
        while self._next is not None and self._begins(self._next, after=True) <= seconds:
            self._track.write(self._next)
            self._next = next(self._packets, None)

    def finish(self, seconds: Fraction) -> None:
        """Copy the rest up to `seconds`; the last packet says that it ends there."""
        self.write_until(seconds)
        if self._next is not None and self._begins(self._next) < seconds:
            left = seconds - self._begins(self._next)
            self._next.duration = max(round(left / self._next.time_base), 1)
            self._track.write(self._next)

    def _begins(self, packet: Any, *, after: bool = False) -> Fraction:
        ticks = packet.pts + (packet.duration if after else 0)
        return Fraction(ticks * packet.time_base - self._origin)


def _to_24_bits(samples: StereoWaveform) -> Tensor:
    """Round to 24 bits, stored in the upper bits of 32, as FFmpeg has it."""
    scaled = (samples.double() * 2**23).round().clamp(-(2**23), 2**23 - 1)
    return scaled.to(torch.int32) * 256
