"""H.264 as it is stored in MP4: parameter sets in the header, units with their lengths in the packets.

Source: ISO/IEC 14496-15 section 5.3.3 (the header, `avcC`); ITU-T H.264 sections 7.3.1, 7.3.2 (units) and
9.1 (numbers).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

ENCODER_THREADS = 4  # a constant, not the number of cores: x264's output depends on it

_IDR, _SPS, _PPS, _DELIMITER = 5, 7, 8, 9  # unit types, table 7-1
_MAX_SETS = 31  # sequence parameter sets, by id from 0 on
PIXEL_FORMATS = (  # what x264 encodes as it is
    *("yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p"),
    *("yuv420p10le", "yuv422p10le", "yuv444p10le"),
)


@dataclass(frozen=True, kw_only=True)
class Header:
    """The parameter sets of a track; a set says by its id which it is, and packets name the ids they need."""

    profile: bytes  # profile, compatibility, level: what a player must be able to do at most
    length_size: int  # bytes before each unit
    sps: tuple[bytes, ...]
    pps: tuple[bytes, ...]
    extension: bytes = b""  # chroma format and bit depth, for the higher profiles

    @classmethod
    def parse(cls, data: bytes) -> "Header | None":
        """Read an `avcC` record; None where it is another form of H.264."""
        if len(data) < 7 or data[0] != 1:
            return None
        at, groups = 6, []
        count = data[5] & 31
        for following in (True, False):
            sets = []
            for _ in range(count):
                size = int.from_bytes(data[at : at + 2], "big")
                sets.append(data[at + 2 : at + 2 + size])
                at += 2 + size
            groups.append(tuple(sets))
            if following:
                count, at = data[at], at + 1
        return cls(
            profile=data[1:4],
            length_size=(data[4] & 3) + 1,
            sps=groups[0],
            pps=groups[1],
            extension=data[at:],
        )

    def extended(self, sets: Sequence[tuple[tuple[bytes, ...], tuple[bytes, ...]]], frame: Any) -> "Header":
        """Add the sequence and picture parameter sets of other encoders, and ask for what they need.

        Args:
            frame: One that they encode; its format is noted where the header did not have to before.
        """
        sps = self.sps + tuple(unit for group, _ in sets for unit in group)
        pps = self.pps + tuple(unit for _, group in sets for unit in group)
        profile = max((unit[1] for unit in sps), default=0)
        level = max((unit[3] for unit in sps), default=0)
        depth = max(part.bits for part in frame.format.components) - 8
        chroma = {"420": 1, "422": 2, "444": 3}[frame.format.name.replace("j", "")[3:6]]
        return Header(
            profile=bytes([profile, 0, level]),
            length_size=self.length_size,
            sps=sps,
            pps=pps,
            extension=self.extension or bytes([0xFC | chroma, 0xF8 | depth, 0xF8 | depth, 0]),
        )

    def to_bytes(self) -> bytes:
        """Write the `avcC` record."""
        data = bytes([1]) + self.profile + bytes([0xFC | (self.length_size - 1), 0xE0 | len(self.sps)])
        data += b"".join(len(unit).to_bytes(2, "big") + unit for unit in self.sps)
        data += bytes([len(self.pps)])
        data += b"".join(len(unit).to_bytes(2, "big") + unit for unit in self.pps)
        return data + self.extension

    def free_ids(self, count: int) -> list[int]:
        """Choose ids that no parameter set has, neither of sequences nor of pictures."""
        taken = {_number(unit, 4) for unit in self.sps} | {_number(unit, 1) for unit in self.pps}
        return [number for number in range(_MAX_SETS, -1, -1) if number not in taken][:count]

    def starts_anew(self, packet: bytes) -> bool:
        """Tell whether nothing after this packet needs anything before it."""
        at = 0
        while at + self.length_size < len(packet):
            size = int.from_bytes(packet[at : at + self.length_size], "big")
            at += self.length_size
            if packet[at] & 31 == _IDR:
                return True
            at += size
        return False


class Encoded(NamedTuple):
    """A coded frame, in the form that a track with a header holds."""

    data: bytes
    pts: int
    is_keyframe: bool


class Encoder:
    """x264 for a piece of a track that is otherwise copied: no frame waits for a later one.

    Lossless pieces are coded with more rows than they show. That has no meaning but one: libavcodec sets up
    its tables for lossless pictures only when the coded size changes, and shows wrong ones otherwise.
    For the same reason the encoder's note about itself stays in the stream: libavcodec imitates errors of
    old encoders, and must learn that this is another one.
    """

    def __init__(
        self,
        frame: Any,
        clock: tuple[Fraction, Fraction],
        pixel_aspect: Fraction,
        *,
        set_id: int,
        crf: int | None,
    ) -> None:
        """Get ready.

        Args:
            frame: One of the same size, format and colours as those to come.
            clock: Seconds per tick of their times, and frames per second.
            pixel_aspect: Width : height of a pixel.
            set_id: Of the parameter sets to write.
            crf: x264's constant rate factor; None for lossless.
        """
        import av
        from av.codec.context import Flags

        self._lossless = crf is None
        context = av.CodecContext.create("libx264", "w")
        context.width, context.height = frame.width, frame.height
        params = f"sps-id={set_id}"
        if self._lossless:
            context.height = (frame.height + 15) // 16 * 16 + 16
            params += f":crop-rect=0,0,0,{context.height - frame.height}"
        context.pix_fmt, context.time_base, context.framerate = frame.format.name, *clock
        context.sample_aspect_ratio = pixel_aspect
        context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
        context.colorspace, context.color_range = frame.colorspace, frame.color_range
        quality = {"qp": "0", "preset": "veryfast"} if crf is None else {"crf": str(crf), "preset": "medium"}
        context.options = {**quality, "bf": "0", "threads": str(ENCODER_THREADS), "x264-params": params}
        context.flags |= Flags.global_header
        context.open()
        self._context = context
        units = list(_split(bytes(context.extradata)))
        self.sps = tuple(unit for unit in units if unit[0] & 31 == _SPS)
        self.pps = tuple(unit for unit in units if unit[0] & 31 == _PPS)

    def encode(self, frames: Iterator[Any], length_size: int) -> Iterator[Encoded]:
        """Encode frames that carry their `pts`, in the order in which they are shown."""
        for frame in frames:
            ready = plain(frame, frame.pts, self._context.height) if self._lossless else frame
            yield from self._packed(self._context.encode(ready), length_size)
        yield from self._packed(self._context.encode(None), length_size)

    def _packed(self, packets: list[Any], length_size: int) -> Iterator[Encoded]:
        for packet in packets:
            units = [u for u in _split(bytes(packet)) if u[0] & 31 not in (_SPS, _PPS, _DELIMITER)]
            data = b"".join(len(unit).to_bytes(length_size, "big") + unit for unit in units)
            yield Encoded(data, packet.pts, packet.is_keyframe)


def plain(frame: Any, pts: int, height: int | None = None) -> Any:
    """Copy the pixels of a planar frame, and not how it was coded, which an encoder would take for orders.

    Args:
        height: Rows to add below are filled with the last one.
    """
    import av

    copy = av.VideoFrame(frame.width, height or frame.height, frame.format.name)
    for old, new in zip(frame.planes, copy.planes, strict=True):
        width = min(old.line_size, new.line_size)
        rows = np.frombuffer(old, np.uint8).reshape(-1, old.line_size)[: old.height, :width]
        pixels = np.zeros((new.buffer_size // new.line_size, new.line_size), np.uint8)
        pixels[:, :width] = rows[np.arange(len(pixels)).clip(max=len(rows) - 1)]
        new.update(pixels.tobytes())
    copy.pts, copy.time_base = pts, frame.time_base
    copy.color_range, copy.colorspace = frame.color_range, frame.colorspace
    return copy


def _split(stream: bytes) -> Iterator[bytes]:
    """Split a stream with start codes (annex B) into its units."""
    starts, at = [], stream.find(b"\0\0\1")
    while at >= 0:
        starts.append(at + 3)
        at = stream.find(b"\0\0\1", at + 3)
    for begin, after in zip(starts, [*(s - 3 for s in starts[1:]), len(stream)], strict=True):
        unit = stream[begin:after].rstrip(b"\0")
        if unit:
            yield unit


def _number(unit: bytes, skip: int) -> int:
    """Read the first Exp-Golomb number of a unit, after its first bytes: its id."""
    bits = "".join(f"{byte:08b}" for byte in unit[skip : skip + 8])
    zeros = len(bits) - len(bits.lstrip("0"))
    return int(bits[zeros : 2 * zeros + 1], 2) - 1
