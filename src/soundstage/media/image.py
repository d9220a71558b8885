"""Still pictures in and out."""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from soundstage.core.errors import MediaError
from soundstage.core.files import atomic_output

Picture = UInt8[Tensor, "h w 3"]  # RGB in [0, 255]


def read_image(path: Path) -> Picture:
    """Read a picture upright: the camera's rotation is applied, transparency is dropped.

    Raises:
        MediaError: The file is missing or is not a picture.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path} is not a picture")
            frame = next(container.decode(video=0), None)
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"cannot read {path}: {error.strerror or error}") from error
    if frame is None:
        raise MediaError(f"{path} is empty")
    quarter_turns = round(frame.rotation / 90)  # counter-clockwise, as numpy turns
    upright = np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns)
    return torch.from_numpy(np.ascontiguousarray(upright))


def encode_png(picture: Picture) -> bytes:
    """Make the bytes of a PNG, to be embedded in a page.

    Source: the PNG specification, third edition: signature, IHDR, IDAT, IEND; filter 0 in front of each row.
    """
    height, width = picture.shape[:2]
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = picture.cpu().reshape(height, 3 * width).numpy()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_image(path: Path, picture: Picture) -> None:
    """Write a PNG.

    Raises:
        MediaError: The encoder refuses the picture.
        ResourceError: The disk is full or refuses the write.
    """
    import av

    try:
        with atomic_output(path) as temporary, av.open(str(temporary), "w", format="image2pipe") as container:
            stream = container.add_stream("png", rate=1)
            stream.height, stream.width = picture.shape[:2]
            stream.pix_fmt = "rgb24"
            frame = av.VideoFrame.from_ndarray(picture.cpu().contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise MediaError(f"cannot encode {path}: {error.strerror or error}") from error
