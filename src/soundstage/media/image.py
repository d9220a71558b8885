"""Still pictures in and out."""

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from soundstage.core.errors import MediaError, RequestError
from soundstage.core.files import atomic_output
from soundstage.media.container import open_media, picture_stream
from soundstage.media.upright import Converter, Look, over_black

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = UInt8[Tensor, "h w 3"]  # RGB in [0, 255]

_WORST_CRF = 51  # of x264


def read_image(path: Path) -> Picture:
    """Read a picture as a viewer sees it.

    The camera's rotation is applied, colours are brought to sRGB from the profile that the file carries,
    transparency is laid over black, 16 bits become 8. Of a video, it is the first frame.

    Raises:
        MediaError: The file is missing, damaged, or is not a picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return _to_rgb(image)
    except UnidentifiedImageError:
        return _read_frame(path)  # HEIC, EXR, a video: FFmpeg may know it
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def recompress(picture: Picture, crf: int) -> UInt8[Tensor, "rows columns 3"]:
    """Send a picture through H.264 and back, as if it were a frame of a video.

    The models learnt from videos: a picture without the traces of compression tends to be continued as a
    picture, without motion.

    Args:
        crf: x264's constant rate factor; 0 leaves the picture as it is, 51 is the worst.

    Returns:
        The picture, without the last line where their number is odd, which the encoder does not take; a
        picture of one line is returned as it is.

    Raises:
        RequestError: `crf` is outside 0 to 51.
    """
    if not 0 <= crf <= _WORST_CRF:
        raise RequestError(f"crf={crf} is outside 0 to {_WORST_CRF}; 0 leaves the picture alone")
    height, width = (extent - extent % 2 for extent in picture.shape[:2])
    if crf == 0 or min(height, width) < 2:
        return picture
    return _through_h264(picture[:height, :width], crf)


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


def _to_rgb(image: "Image") -> Picture:
    """Bring any mode of Pillow to upright 8-bit sRGB over black."""
    from PIL import ImageOps

    profile = image.info.get("icc_profile")
    upright: Any = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # 16-bit grey, which Pillow would clip instead of scale
        upright = _grey_to_8_bits(upright)
    elif upright.mode in ("P", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
    alpha = upright.getchannel("A") if upright.mode in ("RGBA", "LA", "La", "RGBa") else None
    rgb = _to_srgb(upright.convert("RGB") if alpha else upright, profile)
    if alpha is None:
        return torch.from_numpy(np.array(rgb))
    return over_black(torch.from_numpy(np.dstack([np.array(rgb), np.array(alpha)])))


def _grey_to_8_bits(image: Any) -> Any:
    from PIL import Image

    values = np.asarray(image, np.float64)
    most = 1.0 if image.mode == "F" else 65535.0
    return Image.fromarray((values / most * 255).round().clip(0, 255).astype(np.uint8))


def _to_srgb(image: Any, profile: bytes | None) -> Any:
    """Convert to sRGB; a profile that does not fit the picture or cannot be read is left out of account."""
    from PIL import ImageCms

    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return image.convert("RGB")


def _read_frame(path: Path) -> Picture:
    """Decode the first frame with FFmpeg."""
    with open_media(path) as container:
        stream = picture_stream(container) or next(iter(container.streams.video), None)
        if stream is None:
            raise MediaError(f"{path} is not a picture")
        frame = next(container.decode(stream), None)
        if frame is None:
            raise MediaError(f"{path} is empty")
        return Converter(Look.of(frame, stream.sample_aspect_ratio), None)(frame)


def _through_h264(picture: Picture, crf: int) -> Picture:
    import av
    from av.video.reformatter import Colorspace

    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 24)
    encoder.options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
    frame = av.VideoFrame.from_ndarray(picture.cpu().contiguous().numpy(), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
    frame.pts, frame.time_base = 0, encoder.time_base
    decoder = av.CodecContext.create("h264", "r")
    packets = encoder.encode(frame) + encoder.encode(None)
    decoded = [out for packet in [*packets, None] for out in decoder.decode(packet)]
    rgb = decoded[0].reformat(format="rgb24", src_colorspace=Colorspace.ITU709)
    return torch.from_numpy(rgb.to_ndarray())
