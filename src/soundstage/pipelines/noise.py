"""Where noise comes from: a source per run, which makes a seed mean the same clip everywhere.

| order | generators | the same seed gives the same video with or without |
|---|---|---|
| `streams` | one per stream, purpose and item | sound, appended conditions, a larger batch, a GPU |
| `reference` | the official code's: one for all, video first | nothing; for comparison with it |

All noise is drawn on the CPU in the layout of tokens, then moved.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from soundstage.core.rng import generator
from soundstage.core.types import AV
from soundstage.diffusion.flow import moving
from soundstage.pipelines.conditions import StreamState

# The official seeds of noise that samplers add; those of res_2s do not depend on the user's seed.
_REFERENCE_SEEDS: dict[str, Callable[[int], int]] = {
    "ancestral": lambda seed: seed + 10_000,
    "step": lambda seed: -1,  # noqa: ARG005  the signature of the table
    "substep": lambda seed: -1 + 10_000,  # noqa: ARG005
}


@runtime_checkable
class NoiseSource(Protocol):
    """Noise of one run."""

    def initial(self, streams: AV[StreamState]) -> AV[Tensor]:
        """Draw the noise that the next stage starts from, for the streams that are sampled."""

    def draw(self, like: AV[Tensor], purpose: str) -> AV[Tensor]:
        """Draw noise that a sampler adds on its way; called again, it goes on."""


class StreamNoise:
    """A generator for each stream, purpose and item of the batch; item i has the seed `seed + i`.

    Appended tokens have generators of their own, so that conditions do not shift the clip's noise.
    """

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        """Seed the generators.

        Args:
            dtype: That of the network, of no account: noise is drawn in float32, whatever computes with it.
        """
        del dtype
        self.seed = seed
        self._stage = 0
        self._num_target: dict[str, int] = {}
        self._generators: dict[str, torch.Generator] = {}

    def initial(self, streams: AV[StreamState]) -> AV[Tensor]:
        """Draw the noise that the next stage starts from, for the streams that are sampled."""
        sampled = moving(streams)
        for name, state in (("video", sampled.video), ("audio", sampled.audio)):
            if state is not None:
                self._num_target[name] = state.num_target
        noise = self._draw(sampled.map(lambda state: state.latents), "start")
        self._stage += 1
        return noise

    def draw(self, like: AV[Tensor], purpose: str) -> AV[Tensor]:
        """Draw noise that a sampler adds on its way; called again, it goes on."""
        return self._draw(like, purpose)

    def _draw(self, like: AV[Tensor], purpose: str) -> AV[Tensor]:
        return AV(self._stream("video", like.video, purpose), self._stream("audio", like.audio, purpose))

    def _stream(self, name: str, like: Tensor | None, purpose: str) -> Tensor | None:
        if like is None:
            return None
        target = self._num_target[name]
        items = []
        for item in range(like.shape[0]):
            clip = self._tokens(f"{name}.{purpose}", item, target, like.shape[2])
            appended = self._tokens(f"{name}.{purpose}.appended", item, like.shape[1] - target, like.shape[2])
            items.append(torch.cat([clip, appended]))
        return _sent(torch.stack(items), like)

    def _tokens(self, name: str, item: int, count: int, channels: int) -> Tensor:
        key = f"{self._stage}.{name}.{item}"
        if key not in self._generators:
            self._generators[key] = generator(self.seed + item, f"{self._stage}.{name}")
        return torch.randn(count, channels, generator=self._generators[key])


class SeveralNoises:
    """Noise of several clips that are made together: that of each is what it would be alone."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._sources = [StreamNoise(seed) for seed in seeds]

    def initial(self, streams: AV[StreamState]) -> AV[Tensor]:
        """Draw the noise that the next stage starts from, for the streams that are sampled."""
        one = streams.map(StreamState.first)
        return _stacked([source.initial(one) for source in self._sources])

    def draw(self, like: AV[Tensor], purpose: str) -> AV[Tensor]:
        """Draw noise that a sampler adds on its way; called again, it goes on."""
        one = like.map(lambda tokens: tokens[:1])
        return _stacked([source.draw(one, purpose) for source in self._sources])


def _stacked(noises: Sequence[AV[Tensor]]) -> AV[Tensor]:
    video = [noise.video for noise in noises if noise.video is not None]
    audio = [noise.audio for noise in noises if noise.audio is not None]
    return AV(torch.cat(video) if video else None, torch.cat(audio) if audio else None)


class ReferenceNoise:
    """The official order: one generator, video then audio, frozen streams included; stages continue it."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        """Seed the generators.

        Args:
            dtype: That of the network; the official code draws in it, and bfloat16 gives other numbers.
        """
        self.seed = seed
        self.dtype = dtype
        self._main = torch.Generator().manual_seed(seed)
        self._added: dict[str, torch.Generator] = {}

    def initial(self, streams: AV[StreamState]) -> AV[Tensor]:
        """Draw the noise that the next stage starts from, for the streams that are sampled."""
        noise = self._draw(streams.map(lambda state: state.latents), self._main, self.dtype)
        sampled = moving(streams)
        return AV(noise.video if sampled.video else None, noise.audio if sampled.audio else None)

    def draw(self, like: AV[Tensor], purpose: str) -> AV[Tensor]:
        """Draw noise that a sampler adds on its way; called again, it goes on."""
        if purpose not in self._added:
            seed = _REFERENCE_SEEDS[purpose](self.seed)
            self._added[purpose] = torch.Generator().manual_seed(seed)
        dtype = self.dtype if purpose == "ancestral" else torch.float64
        return self._draw(like, self._added[purpose], dtype)

    @staticmethod
    def _draw(like: AV[Tensor], source: torch.Generator, dtype: torch.dtype) -> AV[Tensor]:
        # AV.map visits the video stream first.
        return like.map(lambda x: _sent(torch.randn(x.shape, generator=source, dtype=dtype), x))


def _sent(noise: Tensor, like: Tensor) -> Tensor:
    """Move noise to where a tensor is; a GPU fetches it by itself, so that no step waits for it."""
    if like.device.type == "cuda":
        noise = noise.pin_memory()
    return noise.to(like, non_blocking=True)


NOISE_ORDERS: dict[str, Callable[[int, torch.dtype], NoiseSource]] = {  # of a seed, for a network's type
    "streams": StreamNoise,
    "reference": ReferenceNoise,
}
