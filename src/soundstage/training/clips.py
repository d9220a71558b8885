"""Encoded clips of the world, both streams and captions: what the diffusion transformer is trained on.

Each rendered clip is encoded once and drawn several times, with a fresh wording of its caption.
"""

import functools
import json
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.types import Tokens
from soundstage.data.world.caption import caption_of
from soundstage.data.world.kind import Split
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.transformer.patchify import patchify_audio, patchify_video
from soundstage.models.transformer.positions import audio_positions, video_positions
from soundstage.models.video_vae.model import VideoVAE
from soundstage.nn.causal_conv import VideoConv
from soundstage.training.recipe import DataRecipe
from soundstage.training.samples import WorldSource
from soundstage.training.state import mark_of
from soundstage.training.tasks.audio_vae import EXTRA_SECONDS, SOURCE_RATE, MelSource

logger = logging.getLogger(__name__)

POOL_ONLY = ("reuse", "pool_size")  # of the recipe's data: how clips are kept, not which


class Pair(NamedTuple):
    """One tensor per stream; unlike `AV`, both are there."""

    video: Tensor
    audio: Tensor


@dataclass(frozen=True)
class ClipBatch:
    """Clean tokens of both streams and what the captions say."""

    video: Tokens
    audio: Float[Tensor, "b audio_n audio_d"]
    captions: list[str]


class ClipSource:
    """Render, encode, pool and draw clips."""

    def __init__(
        self,
        recipe: DataRecipe,
        video_vae: VideoVAE,
        audio_vae: AudioVAE,
        *,
        batch_size: int,
        patch_size: int,
        device: torch.device,
    ) -> None:
        """Freeze the autoencoders and tabulate the positions of the recipe's clips.

        Raises:
            RequestError: The autoencoder cannot encode clips of the recipe's size or length.
        """
        self.recipe, self.batch_size, self.device = recipe, batch_size, device
        self.world = WorldSource(recipe, device)
        skip_silent_kernels(video_vae)
        self.video_vae = video_vae.to(device).eval().requires_grad_(False)
        self.audio_vae = audio_vae.to(device).eval().requires_grad_(False)
        self.mels = MelSource(recipe, audio_vae.config, device)
        self.video_geometry = replace(video_vae.geometry, patch_size=patch_size)
        self.audio_geometry = audio_vae.config.geometry()
        self.video_geometry.check_num_frames(recipe.num_frames)
        self.video_geometry.check_size(recipe.height, recipe.width)
        self.positions = self._positions()
        self.pool = Pool(recipe.pool_size)
        # A batch that mixes many seeds would draw all scenes of each, which costs more than a step on a GPU.
        self.scenes = functools.lru_cache(maxsize=max(recipe.pool_size, 1))(self.world.scenes)

    @property
    def frame_tokens(self) -> int:
        """Video tokens of one latent frame."""
        size = self.video_geometry.token_size
        return (self.recipe.height // size) * (self.recipe.width // size)

    def batch(self, seed: int) -> ClipBatch:
        """Render and encode fresh clips, then draw from the pool."""
        size = self.batch_size
        if not self.pool.capacity:
            return self.encode(seed, size)
        rng = random.Random(seed)
        share = size / self.recipe.reuse
        fresh = size if len(self.pool) < 8 * size else int(share) + (rng.random() < share % 1)
        if fresh:
            clips = self.encode(seed, fresh)
            self.pool.add(clips.video, clips.audio, seed)
        return self._draw(rng, size)

    @torch.no_grad()
    def encode(self, seed: int, count: int, split: Split = "train") -> ClipBatch:
        """Render and encode clips."""
        scenes = self.scenes(seed, count, split)
        video = self.video_vae.encode(self.world.render(scenes))
        audio = self.audio_vae.encode(self.mels.of(self.world.sound(scenes, SOURCE_RATE, EXTRA_SECONDS)))
        return ClipBatch(
            patchify_video(video, self.video_geometry.patch_size),
            patchify_audio(audio),
            self.world.captions(seed, scenes),
        )

    def memory(self) -> dict[str, Tensor]:
        """Pack the pool for saving, with a mark of what its clips depend on."""
        return {**self.pool.tensors(), "drawn_from": self._mark()}

    def restore(self, memory: Mapping[str, Tensor]) -> None:
        """Unpack what `memory` packed, unless the clips would now be others: then they are rendered anew."""
        mark = memory.get("drawn_from")
        if mark is not None and not torch.equal(mark, self._mark()):
            logger.warning(
                "the pool was drawn with another [data] or other autoencoders; rendering its clips anew"
            )
            return
        self.pool.restore(memory)

    def _mark(self) -> Tensor:
        """Hash the recipe of the scenes and the frozen autoencoders: captions and tokens depend on both."""
        scenes = {name: value for name, value in asdict(self.recipe).items() if name not in POOL_ONLY}
        tensors = (*self.video_vae.state_dict().values(), *self.audio_vae.state_dict().values())
        return mark_of(tensors, json.dumps(scenes, sort_keys=True))

    def _draw(self, rng: random.Random, size: int) -> ClipBatch:
        video, audio, places = self.pool.draw(rng, size)
        captions = []
        for seed, count, index in places:
            scene = self.scenes(seed, count, "train")[index]
            captions.append(caption_of(scene, rng))
        return ClipBatch(video.to(self.device).float(), audio.to(self.device).float(), captions)

    def _positions(self) -> Pair:
        recipe, video, audio = self.recipe, self.video_geometry, self.audio_geometry
        frames = video.num_latent_frames(recipe.num_frames)
        rows, columns = recipe.height // video.token_size, recipe.width // video.token_size
        num_audio = audio.num_tokens(recipe.num_frames, recipe.frame_rate)
        return Pair(
            video_positions(video, frames, rows, columns, recipe.frame_rate).to(self.device),
            audio_positions(audio, num_audio).to(self.device),
        )


class Pool:
    """The latest encoded clips, as a ring in half precision, with the seeds that tell their scenes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.video: list[Tensor] = []
        self.audio: list[Tensor] = []
        self.places: list[tuple[int, int, int]] = []  # seed, batch size and index within the batch
        self.next = 0

    def __len__(self) -> int:
        return len(self.places)

    def add(self, video: Tokens, audio: Float[Tensor, "b audio_n audio_d"], seed: int) -> None:
        """Put clips in, in place of the oldest when full."""
        for index, (v, a) in enumerate(zip(video.half().cpu(), audio.half().cpu(), strict=True)):
            place = (seed, len(video), index)
            if len(self) < self.capacity:
                self.video.append(v)
                self.audio.append(a)
                self.places.append(place)
            else:
                self.video[self.next], self.audio[self.next], self.places[self.next] = v, a, place
            self.next = (self.next + 1) % self.capacity

    def draw(self, rng: random.Random, size: int) -> tuple[Tensor, Tensor, list[tuple[int, int, int]]]:
        """Take clips at random, each at most once, in half precision."""
        chosen = rng.sample(range(len(self)), size)
        video = torch.stack([self.video[i] for i in chosen])
        audio = torch.stack([self.audio[i] for i in chosen])
        return video, audio, [self.places[i] for i in chosen]

    def tensors(self) -> dict[str, Tensor]:
        """Pack the pool for saving."""
        if not self.places:
            return {}
        return {
            "video": torch.stack(self.video),
            "audio": torch.stack(self.audio),
            "places": torch.tensor(self.places),
            "next": torch.tensor(self.next),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Unpack what `tensors` packed."""
        if "places" in tensors:
            self.video, self.audio = list(tensors["video"]), list(tensors["audio"])
            self.places = [(int(seed), int(count), int(i)) for seed, count, i in tensors["places"].tolist()]
            self.next = int(tensors["next"])


def skip_silent_kernels(vae: VideoVAE) -> None:
    """Do not compute convolutions that only give zeros, such as those of a solved encoder."""

    def silent(conv: VideoConv) -> Callable[[Tensor], Tensor]:
        return lambda x: x.new_zeros(len(x), conv.conv.out_channels, *x.shape[2:])

    for module in vae.modules():
        if isinstance(module, VideoConv) and not any(p.any() for p in module.parameters()):
            module.forward = silent(module)  # type: ignore[method-assign, assignment]
