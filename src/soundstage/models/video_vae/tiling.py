"""Encode and decode in tiles, so that memory is bounded by the tile and not by the clip.

Tiles overlap on the latent grid, each is coded as a clip of its own, and overlaps are blended with ramps that
sum to one. The overlap is smaller than the network's receptive field, so the result is close to the untiled
one, not equal; a clip that fits into one tile gives exactly the untiled result. When decoding, only frames
too large for the memory are cut; in time, chunks of them are exact (see `streaming`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.geometry import VideoGeometry
from soundstage.core.types import VideoLatents, VideoPixels
from soundstage.models.video_vae.decode_plan import DecodePlan
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.video_vae.streaming import decode_in_chunks

Ramp = Float[Tensor, " length"]


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Extents of a tile; the reference's values since May 2026."""

    size: int = 768  # pixels
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


def decode_streamed(vae: VideoVAE, latents: VideoLatents, plan: DecodePlan) -> Iterator[VideoPixels]:
    """Decode normalised latents, yielding frames as soon as they are known.

    Tiles of whole frames give the pixels of the whole clip. Where frames are cut, all tiles go through time
    side by side, and are blended in space.
    """
    rows, columns = (
        intervals(length, size, plan.overlap) if size < length else [Interval(0, length)]
        for length, size in zip(latents.shape[3:], (plan.rows, plan.columns), strict=True)
    )
    if len(rows) == len(columns) == 1:
        yield from decode_in_chunks(vae, latents, plan.chunk)
        return
    factor = vae.geometry.spatial_factor
    places = [(y, x) for y in rows for x in columns]
    tiles = [
        decode_in_chunks(vae, latents[..., y.start : y.end, x.start : x.end], plan.chunk) for y, x in places
    ]
    for first in tiles[0]:
        height, width = (n * factor for n in latents.shape[3:])
        frames = first.new_zeros(*first.shape[:3], height, width)
        for index, (y, x) in enumerate(places):
            piece = next(tiles[index]) if index else first
            weight = (
                space_ramp(piece.shape[3], factor * y.left, factor * y.right)[:, None]
                * space_ramp(piece.shape[4], factor * x.left, factor * x.right)
            ).to(piece)
            place = (..., slice(factor * y.start, factor * y.end), slice(factor * x.start, factor * x.end))
            frames[place] += piece * weight
        del first, piece
        yield frames
        del frames


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


def _cut(pixels: Tensor, geometry: VideoGeometry, t: Interval, y: Interval, x: Interval) -> Tensor:
    first, factor = geometry.temporal_factor * t.start, geometry.spatial_factor
    frames = slice(first, first + geometry.num_pixel_frames(t.end - t.start))
    return pixels[..., frames, factor * y.start : factor * y.end, factor * x.start : factor * x.end]


def _outer(
    t: Ramp, y: Float[Tensor, " rows"], x: Float[Tensor, " columns"]
) -> Float[Tensor, "length rows columns"]:
    return t[:, None, None] * y[:, None] * x
