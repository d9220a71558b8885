"""Decode a clip chunk after chunk, to the pixels that it has when it is decoded at once.

The decoder sees about 22 latent frames to each side, so tiles that overlap by less differ from the whole
clip, and tiles that overlap by more compute everything several times. Here nothing is computed twice: every
convolution keeps the last two frames that it was given and goes on from there when the next chunk comes.

    latents   |-- chunk 0 --|-- chunk 1 --|-- chunk 2 --|
    layer 1   |- chunk 0 -|--- chunk 1 --|--- chunk 2 --|      each layer is a frame late, as it waits for
    layer 2   | chunk 0 |--- chunk 1 --|--- chunk 2 ----|      the frame after; shortcuts wait with it

So memory is that of a chunk and of two frames per convolution, however long the clip is. A clip in one chunk
runs the same operations as `VideoVAE.decode`, one in several the same sums in convolutions of other sizes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.types import VideoLatents, VideoPixels
from soundstage.models.video_vae.blocks import (
    Features,
    ResBlock,
    ResGroup,
    Upsample,
    normed,
    unpatchify,
)
from soundstage.models.video_vae.model import VideoVAE
from soundstage.nn.causal_conv import VideoConv


class Chunk(NamedTuple):
    """Some frames of a clip, in order."""

    frames: Features
    is_last: bool


Layer = Callable[[Chunk], Features]  # keeps what it needs for the next chunk; may return no frames


def decode_in_chunks(vae: VideoVAE, latents: VideoLatents, chunk: int) -> Iterator[VideoPixels]:
    """Decode normalised latents, yielding frames in order as soon as they are known.

    Args:
        chunk: Latent frames that go through the network at once; memory grows with them.
    """
    if vae.decoder is None:
        raise RuntimeError("this video VAE was built without its decoder")
    flow = _cut(latents, chunk)
    for layer, size in _layers(vae, chunk):
        flow = _through(layer, flow, size)
    for part in flow:
        yield part.frames
        del part


def _cut(latents: VideoLatents, chunk: int) -> Iterator[Chunk]:
    length = latents.shape[2]
    for start in range(0, length, chunk):
        yield Chunk(latents[:, :, start : start + chunk], is_last=start + chunk >= length)


def _layers(vae: VideoVAE, chunk: int) -> Iterator[tuple[Layer, int]]:
    """Yield the layers in order, each with the number of frames that it is given at most."""
    decoder = vae.decoder
    assert decoder is not None
    yield lambda given: vae.per_channel_statistics.denormalise(given.frames), chunk
    yield _Conv(decoder.conv_in), chunk
    for block in decoder.up_blocks:
        if isinstance(block, ResGroup):
            for inner in block.res_blocks:
                assert isinstance(inner, ResBlock)
                yield _Residual(inner), chunk
        else:
            assert isinstance(block, Upsample)
            yield _Growth(block), chunk
            chunk *= block.stride[0]
    yield _Conv(decoder.conv_out, before=normed), chunk
    yield lambda given: unpatchify(given.frames, decoder.config.patch_size), chunk


def _through(layer: Layer, chunks: Iterator[Chunk], size: int) -> Iterator[Chunk]:
    """Pass a clip through one layer; while a chunk is further on, nothing of it is held here."""
    for part in _regrouped(chunks, size):
        is_last, made = part.is_last, [layer(part)]
        del part
        if made[0].shape[2]:
            yield Chunk(made.pop(), is_last)


def _regrouped(chunks: Iterator[Chunk], size: int) -> Iterator[Chunk]:
    """Cut what is longer than `size` and join what is shorter than half of it."""
    held: list[Tensor] = []
    for frames, is_last in chunks:
        held.append(frames)
        del frames
        count = sum(part.shape[2] for part in held)
        if not is_last and 2 * count < size:
            continue
        whole = held[0] if len(held) == 1 else torch.cat(held, dim=2)
        held.clear()
        pieces = [whole[:, :, start : start + size] for start in range(0, whole.shape[2], size)]
        del whole
        while pieces:
            yield Chunk(pieces.pop(0), is_last and not pieces)


class _Conv:
    """A convolution that goes on where it stopped."""

    def __init__(self, conv: VideoConv, before: Callable[[Features], Features] | None = None) -> None:
        self.conv = conv
        self.before = before
        self.kept: Tensor | None = None

    def __call__(self, chunk: Chunk) -> Features:
        """Convolve what can be; unless causal or the last, that ends a frame before the chunk does."""
        x = chunk.frames
        if x.shape[2] and self.before is not None:
            x = self.before(x)
        if not x.shape[2]:
            return self._nothing(x)
        parts = [*(self.conv.front(x) if self.kept is None else [self.kept]), x]
        if chunk.is_last and not self.conv.causal:
            parts.append(x[:, :, -1:])
        x = torch.cat(parts, dim=2)
        del parts
        self.kept = None if chunk.is_last else x[:, :, -2:].clone()
        return self._nothing(x) if x.shape[2] < 3 else self.conv.over(x)

    def _nothing(self, x: Tensor) -> Tensor:
        return x.new_empty(len(x), self.conv.conv.out_channels, 0, *x.shape[3:])


class _Delay:
    """Holds frames back until the branch beside them has come as far."""

    def __init__(self) -> None:
        self.held: Tensor | None = None

    def __call__(self, x: Features, count: int) -> Float[Tensor, "b c count h w"]:
        """Take frames and give the `count` oldest ones."""
        if self.held is not None:
            x = torch.cat([self.held, x], dim=2)
        self.held = x[:, :, count:].clone() if count < x.shape[2] else None
        return x[:, :, :count]


class _Residual:
    """A `ResBlock` that goes on where it stopped."""

    def __init__(self, block: ResBlock) -> None:
        self.first, self.second = _Conv(block.conv1, normed), _Conv(block.conv2, normed)
        self.shortcut = _Delay()

    def __call__(self, chunk: Chunk) -> Features:
        """Refine what can be."""
        h = self.second(Chunk(self.first(chunk), chunk.is_last))
        x = self.shortcut(chunk.frames, h.shape[2])
        return h.add_(x)


class _Growth:
    """An `Upsample` that goes on where it stopped."""

    def __init__(self, block: Upsample) -> None:
        self.block = block
        self.conv = _Conv(block.conv)
        self.shortcut = _Delay()
        self.has_begun = False

    def __call__(self, chunk: Chunk) -> Features:
        """Grow what can be; only the clip's first frame loses its first half."""
        convolved = self.conv(chunk)
        x = self.shortcut(chunk.frames, convolved.shape[2])
        if not convolved.shape[2]:
            return convolved
        grown = self.block.grow(convolved, x)
        is_first, self.has_begun = not self.has_begun, True
        return grown[:, :, 1:] if is_first and self.block.stride[0] == 2 else grown
