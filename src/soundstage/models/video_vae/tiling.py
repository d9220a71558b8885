"""Encode and decode in tiles, so that memory is bounded by the tile and not by the clip.

Tiles overlap on the latent grid, each is coded as a clip of its own, and overlaps are blended with ramps that
sum to one. The overlap is smaller than the network's receptive field, so the result is close to the untiled
one, not equal; a clip that fits into one tile gives exactly the untiled result.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.geometry import VideoGeometry
from soundstage.core.types import VideoLatents, VideoPixels
from soundstage.models.video_vae.model import VideoVAE

Ramp = Float[Tensor, " length"]


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Extents of a tile; the reference's values since May 2026."""

    size: int = 768  # pixels, of the longer side when decoding
    overlap: int = 64  # pixels
    num_frames: int = 80
    frame_overlap: int = 24

    def __post_init__(self) -> None:
        for name, extent, overlap in (
            ("size", self.size, self.overlap),
            ("num_frames", self.num_frames, self.frame_overlap),
        ):
            if not 0 <= overlap <= extent // 2:
                raise RequestError(
                    f"tile overlap {overlap} must be between 0 and {extent // 2}, half of {name}={extent}"
                )

    @classmethod
    def of_cells(cls, geometry: VideoGeometry) -> "Tiling":
        """Return the default tile for any compression: 24 x 24 cells, 10 in time, overlaps 2 and 3."""
        space, time = geometry.spatial_factor, geometry.temporal_factor
        return cls(size=24 * space, overlap=2 * space, num_frames=10 * time, frame_overlap=3 * time)

    def cells(self, geometry: VideoGeometry) -> tuple[int, int, int, int]:
        """Return size, overlap, frames and frame overlap in latent cells.

        Raises:
            RequestError: An extent is no multiple of the compression factor.
        """
        extents = (
            ("size", self.size, geometry.spatial_factor),
            ("overlap", self.overlap, geometry.spatial_factor),
            ("num_frames", self.num_frames, geometry.temporal_factor),
            ("frame_overlap", self.frame_overlap, geometry.temporal_factor),
        )
        for name, value, factor in extents:
            if value % factor:
                low = value // factor * factor
                near = f"the nearest are {low} and {low + factor}"
                raise RequestError(f"tile {name}={value} is not a multiple of {factor}; {near}")
        size, overlap, frames, frame_overlap = (value // factor for _, value, factor in extents)
        return size, overlap, frames, frame_overlap


@dataclass(frozen=True)
class Interval:
    """A tile along one axis in latent cells, with the widths of its ramps."""

    start: int
    end: int
    left: int = 0
    right: int = 0


def intervals(length: int, size: int, overlap: int) -> list[Interval]:
    """Cover an axis with tiles of `size` cells that share `overlap`; the last may be shorter."""
    size = max(size, 2, overlap + 1)
    if length <= size:
        return [Interval(0, length)]
    step = size - overlap
    count = -(-(length - overlap) // step)
    return [
        Interval(
            start=i * step,
            end=length if i == count - 1 else i * step + size,
            left=overlap if i else 0,
            right=overlap if i < count - 1 else 0,
        )
        for i in range(count)
    ]


def time_intervals(length: int, size: int, overlap: int) -> list[Interval]:
    """Cover the time axis; later tiles start one cell early, as a tile's first cell holds one frame."""
    return [
        Interval(i.start - 1, i.end, i.left + 1, i.right) if i.start else i
        for i in intervals(length, size, overlap)
    ]


def space_ramp(length: int, left: int, right: int) -> Ramp:
    """Weigh positions of a tile along a spatial axis: rising from just above 0, falling to just above 0."""
    ramp = torch.ones(length)
    ramp[:left] = torch.arange(1, left + 1) / (left + 1)
    if right:
        ramp[-right:] *= 1 - torch.arange(1, right + 1) / (right + 1)
    return ramp


def time_ramp(length: int, left: int, right: int) -> Ramp:
    """Weigh positions of a tile in time: the left ramp starts at exactly 0, on the frame that is repeated."""
    ramp = space_ramp(length, 0, right)
    if left:
        ramp[:left] *= torch.arange(left) / left
    return ramp


def decode_tiled(vae: VideoVAE, latents: VideoLatents, tiling: Tiling | None = None) -> Iterator[VideoPixels]:
    """Decode normalised latents, yielding frames as soon as no later tile touches them.

    The shorter side's tile shrinks with the picture, so that tiles have the picture's proportions.
    """
    geometry = vae.geometry
    tiling = tiling or Tiling(
        num_frames=10 * geometry.temporal_factor, frame_overlap=3 * geometry.temporal_factor
    )
    size, overlap, frames, frame_overlap = tiling.cells(geometry)
    rows, columns = (_axis(n, max(latents.shape[3:]), size, overlap) for n in latents.shape[3:])
    times = time_intervals(latents.shape[2], frames, frame_overlap)
    carried: Tensor | None = None
    for index, time in enumerate(times):
        group = _decode_group(vae, latents, time, rows, columns)
        if carried is not None:
            group[:, :, : carried.shape[2]] += carried
        if index + 1 == len(times):
            yield group
            return
        done = geometry.temporal_factor * (times[index + 1].start - time.start)
        yield group[:, :, :done]
        carried = group[:, :, done:]


def encode_tiled(
    vae: VideoVAE, pixels: VideoPixels, tiling: Tiling | None = None
) -> Float[Tensor, "b c f h w"]:
    """Encode to normalised latents; tiles are blended in latent space.

    Raises:
        RequestError: The clip does not fit the latent grid.
    """
    geometry = vae.geometry
    tiling = tiling or Tiling(
        num_frames=10 * geometry.temporal_factor, frame_overlap=3 * geometry.temporal_factor
    )
    size, overlap, frames, frame_overlap = tiling.cells(geometry)
    geometry.check_num_frames(pixels.shape[2])
    geometry.check_size(pixels.shape[3], pixels.shape[4], geometry.spatial_factor)
    length = geometry.num_latent_frames(pixels.shape[2])
    height, width = (n // geometry.spatial_factor for n in pixels.shape[3:])
    result = pixels.new_zeros(len(pixels), geometry.channels, length, height, width)
    for t in time_intervals(length, frames, frame_overlap):
        for y in intervals(height, size, overlap):
            for x in intervals(width, size, overlap):
                piece = vae.encode(_cut(pixels, geometry, t, y, x))
                weight = _outer(
                    time_ramp(piece.shape[2], t.left, t.right),
                    space_ramp(piece.shape[3], y.left, y.right),
                    space_ramp(piece.shape[4], x.left, x.right),
                )
                cells = (..., slice(t.start, t.end), slice(y.start, y.end), slice(x.start, x.end))
                result[cells] += piece * weight.to(piece)
    return result


def _decode_group(
    vae: VideoVAE, latents: VideoLatents, time: Interval, rows: list[Interval], columns: list[Interval]
) -> Tensor:
    """Decode all tiles of one time interval, weighted in time and space."""
    factor, frame_factor = vae.geometry.spatial_factor, vae.geometry.temporal_factor
    height, width = (n * factor for n in latents.shape[3:])
    num_frames = vae.geometry.num_pixel_frames(time.end - time.start)
    group = latents.new_zeros(len(latents), 3, num_frames, height, width)
    left = 1 + frame_factor * (time.left - 1) if time.left else 0
    in_time = time_ramp(num_frames, left, frame_factor * time.right)
    for y in rows:
        for x in columns:
            cells = (..., slice(time.start, time.end), slice(y.start, y.end), slice(x.start, x.end))
            piece = vae.decode(latents[cells])
            weight = _outer(
                in_time,
                space_ramp(piece.shape[3], factor * y.left, factor * y.right),
                space_ramp(piece.shape[4], factor * x.left, factor * x.right),
            )
            place = (..., slice(factor * y.start, factor * y.end), slice(factor * x.start, factor * x.end))
            group[place] += piece * weight.to(piece)
    return group


def _axis(length: int, longest: int, size: int, overlap: int) -> list[Interval]:
    if length < longest:
        size = max(2, overlap + 1, round(size * length / longest))
    return intervals(length, size, overlap)


def _cut(pixels: Tensor, geometry: VideoGeometry, t: Interval, y: Interval, x: Interval) -> Tensor:
    first, factor = geometry.temporal_factor * t.start, geometry.spatial_factor
    frames = slice(first, first + geometry.num_pixel_frames(t.end - t.start))
    return pixels[..., frames, factor * y.start : factor * y.end, factor * x.start : factor * x.end]


def _outer(
    t: Ramp, y: Float[Tensor, " rows"], x: Float[Tensor, " columns"]
) -> Float[Tensor, "length rows columns"]:
    return t[:, None, None] * y[:, None] * x
