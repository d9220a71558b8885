"""Distil a model into one that takes few steps and no guidance, as a LoRA or as whole weights.

    clean tokens ── noise ──▶ x at level σᵢ ──┬── teacher: a few guided Euler steps ──▶ x' at level σᵢ₊₁
                                              └── student: one velocity v, one pass
                                    target of v = (x - x') / (σᵢ - σᵢ₊₁)

A student of the targets takes one step where the teacher takes several, each of which needs a pass per
guidance term. Both streams share the level; part of the samples have one of them, or the first frame, given.

Sources: guidance, Meng et al. 2023 (arXiv 2210.03142); fewer steps, Salimans & Ho 2022 (arXiv 2202.00512).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from soundstage.checkpoints import generation
from soundstage.checkpoints.lora_keys import official_keys
from soundstage.core.config import from_dict
from soundstage.core.errors import ConfigError, RequestError
from soundstage.core.types import AV, Context
from soundstage.diffusion.flow import to_denoised
from soundstage.diffusion.guidance import (
    PASSES,
    ClassifierFreeGuidance,
    CrossModalGuidance,
    Pass,
    StreamGuidance,
)
from soundstage.diffusion.schedules import DISTILLED, explicit
from soundstage.models.transformer.inputs import Branch, Passes, Perturbation, StreamInput, Text
from soundstage.models.transformer.model import AVTransformer
from soundstage.nn.lora_factors import LowRankFactors
from soundstage.pipelines.loading import Component, load_components
from soundstage.pipelines.loras import linear_layers
from soundstage.training.clips import ClipBatch, ClipSource, Pair
from soundstage.training.export import read_component
from soundstage.training.recipe import Recipe
from soundstage.training.samples import HELD_OUT_SEED
from soundstage.training.state import mark_of
from soundstage.training.tasks.transformer import ISOLATED, equip, soft_weights, weighted_mean

NEEDED: tuple[Component, ...] = ("transformer", "text", "video_vae", "audio_vae")
PREFIX = "model.diffusion_model."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Whose steps are learnt, and by what."""

    teacher: str  # name or file of a whole model
    levels: tuple[float, ...] = DISTILLED  # noise levels of the student's steps
    teacher_steps: int | tuple[int, ...] = 2  # of the teacher within one of the student: for all, or for each
    guidance_scale: float | None = None  # of the teacher; when absent, as it samples by default
    audio_guidance_scale: float | None = None
    modality_scale: float | None = None
    audio_modality_scale: float | None = None
    rank: int = 32  # of the LoRA; 0 = all weights of the transformer are trained
    soft_sigma: float = 0.4  # below it, errors count less: see the transformer's own training
    clean_stream: float = 0.2  # share of samples with one stream given: A2V and V2A
    first_frame: float = 0.1  # share of batches whose first latent frames are given
    num_validation_clips: int = 8

    def __post_init__(self) -> None:
        try:
            explicit(self.levels)
        except RequestError as error:
            raise ConfigError(f"settings.levels: {error}") from error
        counts, num_steps = self.steps_of_teacher, len(self.levels) - 1
        if len(counts) != num_steps or min(counts) < 1:
            raise ConfigError(
                f"settings.teacher_steps={self.teacher_steps} is neither one positive number nor one "
                f"for each of the {num_steps} steps between settings.levels"
            )
        if self.rank < 0:
            raise ConfigError(f"settings.rank={self.rank} is negative; 0 trains all weights, 32 is usual")

    @property
    def steps_of_teacher(self) -> tuple[int, ...]:
        """How many steps the teacher takes within each of the student's."""
        counts = self.teacher_steps
        return (counts,) * (len(self.levels) - 1) if isinstance(counts, int) else counts


@dataclass(frozen=True, kw_only=True)
class Leg:
    """Where clips stand, and the level that the student's next step brings them to."""

    latents: Pair  # noisy tokens; what is given is clean
    moving: Pair  # 1 = generated, 0 = given; one per token, (b, n, 1)
    contexts: AV[Context]
    high: Float[Tensor, " b"]
    low: Float[Tensor, " b"]
    steps: Int[Tensor, " b"]  # index in the student's schedule

    def of(self, items: Int[Tensor, " some"]) -> "Leg":
        """Pick clips."""
        return Leg(
            latents=Pair(*(x[items] for x in self.latents)),
            moving=Pair(*(mask[items] for mask in self.moving)),
            contexts=self.contexts.map(lambda context: context[items]),
            high=self.high[items],
            low=self.low[items],
            steps=self.steps[items],
        )


class _HeldOut(NamedTuple):
    """What the student is measured by, made once: the teacher does not change."""

    legs: list[Leg]  # one for each step
    targets: list[Pair]
    end: Pair  # clean tokens that the teacher makes of the first leg's


class DistilTask:
    """Predict, in one unguided pass, the mean velocity of several guided steps of a teacher."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        """Load the teacher and begin with a student that is its copy.

        Raises:
            CheckpointError: The teacher lacks a part.
            ConfigError: Settings are wrong.
        """
        self.recipe, self.device = recipe, device
        self.settings = from_dict(Settings, recipe.settings, where="settings")
        teacher = load_components(
            self.settings.teacher, device=device, dtype=torch.float32, components=NEEDED
        )
        assert teacher.transformer is not None
        assert teacher.text is not None
        assert teacher.video_vae is not None
        assert teacher.audio_vae is not None
        self.files = [header.path for header in teacher.checkpoint.headers]
        self.guidance = self._guidance(teacher.defaults)
        needed = set[Pass]().union(*(guidance.needs() for guidance in self.guidance))
        self.passes: tuple[Pass, ...] = tuple(p for p in PASSES if p == "cond" or p in needed)
        self.transformer = teacher.transformer.eval().requires_grad_(False)
        self.text = teacher.text.requires_grad_(False)
        self.empty = self.text.encode([""])
        self.clips = ClipSource(
            recipe.data,
            teacher.video_vae,
            teacher.audio_vae,
            batch_size=recipe.batch_size,
            patch_size=self.transformer.config.patch_size,
            device=device,
        )
        self.ropes = self.transformer.prepare(*self.clips.positions)
        self.levels = explicit(self.settings.levels).to(device)
        self.teacher_steps = torch.tensor(self.settings.steps_of_teacher, device=device)
        equip(self.transformer, recipe, device)
        self.student: LowRankFactors | AVTransformer
        if self.settings.rank:
            shapes = {name: (shape[0], shape[1]) for name, shape in linear_layers(self.transformer).items()}
            self.student = LowRankFactors(shapes, self.settings.rank).to(device)
        else:
            self.student = copy.deepcopy(self.transformer).requires_grad_(True)
        self.modules: dict[str, nn.Module] = {"loss": self.student}
        self._held_out: _HeldOut | None = None

    def batch(self, seed: int) -> ClipBatch:
        """Render and encode fresh clips, then draw from the pool."""
        return self.clips.batch(seed)

    def loss(
        self, phase: str, batch: ClipBatch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute the squared error of the student's velocities of one step of its schedule."""
        del phase
        size, settings = len(batch.captions), self.settings
        steps = torch.randint(len(self.levels) - 1, (size,), generator=generator)
        given = torch.rand(size, generator=generator)
        moving = Pair(
            *(
                torch.ones(size, tokens.shape[1], 1).masked_fill(stands[:, None, None], 0)
                for tokens, stands in (
                    (batch.video, given < settings.clean_stream / 2),
                    (batch.audio, given > 1 - settings.clean_stream / 2),
                )
            )
        )
        if torch.rand((), generator=generator) < settings.first_frame:
            moving.video[:, : self.clips.frame_tokens] = 0
        leg = self.leg(batch, steps, generator, moving)
        video, audio = self._errors(leg, self.target(leg))
        return video + audio, {"video": video.item(), "audio": audio.item()}

    def validate(self) -> dict[str, float]:
        """Measure on held-out clips: the loss, averaged over all steps, and how far whole ways part.

        `video_end` and `audio_end` are the mean squared differences of clean tokens between what student and
        teacher make of the same noise.
        """
        held_out = self._held_out = self._held_out or self._new_held_out()
        figures = {"video": 0.0, "audio": 0.0}
        for leg, target in zip(held_out.legs, held_out.targets, strict=True):
            errors = self._errors(leg, target)
            figures["video"] += errors[0].item() / len(held_out.legs)
            figures["audio"] += errors[1].item() / len(held_out.legs)
        end = self.sample(held_out.legs[0])
        return figures | {
            "video_end": (end.video - held_out.end.video).square().mean().item(),
            "audio_end": (end.audio - held_out.end.audio).square().mean().item(),
        }

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the LoRA under official names, or the teacher's whole model with the student's weights."""
        settings = self.settings
        about = {
            "sigmas": list(settings.levels),
            "teacher": Path(settings.teacher).name,
            "teacher_steps": list(settings.steps_of_teacher),
        }
        if isinstance(self.student, LowRankFactors):
            factors: dict[str, Tensor] = {}
            for name, low_rank in self.student.additions():
                down, up = official_keys(name)
                factors |= {down: low_rank.down, up: low_rank.up}
            return {"distillation": about}, factors
        sections: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for path in self.files:
            more_sections, more_tensors = read_component(path)
            sections |= more_sections
            tensors |= more_tensors
        tensors |= {f"{PREFIX}{key}": tensor for key, tensor in self.student.state_dict().items()}
        return {**sections, "distillation": about}, tensors

    def memory(self) -> dict[str, Tensor]:
        """Return the pool of encoded clips and what tells the teacher."""
        return {**self.clips.memory(), "teacher": self._fingerprint()}

    def restore(self, memory: dict[str, Tensor]) -> None:
        """Take back what `memory` returned.

        Raises:
            ConfigError: It was another teacher's student.
        """
        if not torch.equal(memory.pop("teacher"), self._fingerprint()):
            raise ConfigError(
                f"the run was begun with another teacher than {self.settings.teacher}; name that one, or "
                "begin a new run, with init= to keep what was learnt"
            )
        self.clips.restore(memory)

    def leg(
        self,
        clips: ClipBatch,
        steps: Tensor,
        generator: torch.Generator,
        moving: Pair | None = None,
    ) -> Leg:
        """Noise clips to where steps of the schedule begin.

        Args:
            steps: Index of each clip's step, (b,).
            moving: 1 = generated, 0 = given, (b, n, 1) per stream; everything is generated when absent.
        """
        steps = steps.to(self.device)
        latents, masks = [], []
        for name in ("video", "audio"):
            clean = getattr(clips, name)
            mask = clean.new_ones(*clean.shape[:2], 1) if moving is None else getattr(moving, name).to(clean)
            level = self.levels[steps][:, None, None] * mask
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            latents.append((1 - level) * clean + level * noise)
            masks.append(mask)
        return Leg(
            latents=Pair(*latents),
            moving=Pair(*masks),
            contexts=self._contexts(clips.captions),
            high=self.levels[steps],
            low=self.levels[steps + 1],
            steps=steps,
        )

    def target(self, leg: Leg) -> Pair:
        """Return the mean velocity of the teacher's way through a leg; anything where tokens are given."""
        end = self.teach(leg)
        span = (leg.high - leg.low)[:, None, None]
        return Pair(*((start - stop) / span for start, stop in zip(leg.latents, end, strict=True)))

    @torch.no_grad()
    def teach(self, leg: Leg) -> Pair:
        """Let the teacher take its guided Euler steps through a leg; given tokens stay as they are.

        The clips of a leg can be at different steps, so that some need more of the teacher's than others.
        """
        latents = Pair(*(x.clone() for x in leg.latents))
        counts = self.teacher_steps[leg.steps]
        for step in range(int(counts.max())):
            items = (counts > step).nonzero()[:, 0]
            part, count = leg.of(items), counts[items]
            here, there = (torch.lerp(part.high, part.low, (step + more) / count) for more in (0, 1))
            noisy = Pair(*(x[items] for x in latents))
            ratio = ((there - here) / here)[:, None, None]
            for all_of_them, x, clean, mask in zip(
                latents, noisy, self._guided(noisy, part, here), part.moving, strict=True
            ):
                all_of_them[items] = torch.where(mask > 0, x + ratio * (x - clean), x)
        return latents

    def velocity(self, leg: Leg) -> Pair:
        """Ask the student."""
        inputs = (*self._inputs(leg.latents, leg, leg.high), None, self.ropes)
        if isinstance(self.student, LowRankFactors):
            answer = self.student.call(self.transformer, *inputs)
        else:
            answer = self.student(*inputs)
        return Pair(answer.video, answer.audio)

    @torch.no_grad()
    def sample(self, leg: Leg) -> Pair:
        """Let the student go from the first level to clean tokens, one Euler step per level."""
        for step in range(len(self.levels) - 1):
            leg = self._at(leg, step)
            span = (leg.low - leg.high)[:, None, None]
            steps = zip(leg.latents, self.velocity(leg), leg.moving, strict=True)
            leg = replace(leg, latents=Pair(*(x + span * v * mask for x, v, mask in steps)))
        return leg.latents

    def _at(self, leg: Leg, step: int) -> Leg:
        """Put all clips before one step of the schedule."""
        steps = torch.full_like(leg.steps, step)
        return replace(leg, steps=steps, high=self.levels[steps], low=self.levels[steps + 1])

    def _guided(self, latents: Pair, leg: Leg, sigma: Float[Tensor, " b"]) -> Pair:
        """Return the teacher's guided estimate of clean tokens, all passes as one batch."""
        inputs = self._inputs(latents, leg, sigma)
        passes = Passes(branches=self._branches(leg))
        answer = self.transformer(*inputs, None, self.ropes, passes=passes)
        results = []
        streams = (answer.video, answer.audio)
        for stream, velocities, guidance, mask in zip(
            inputs, streams, self.guidance, leg.moving, strict=True
        ):
            assert velocities is not None
            predictions: Mapping[Pass, Tensor] = {
                name: to_denoised(stream.latents, velocity, stream.timesteps)
                for name, velocity in zip(self.passes, velocities.chunk(len(self.passes)), strict=True)
            }
            results.append(guidance.combine(predictions, mask > 0))
        return Pair(*results)

    def _errors(self, leg: Leg, target: Pair) -> tuple[Tensor, Tensor]:
        """Return the weighted mean squared error of the student's velocities, per stream."""
        losses = []
        for got, wanted, mask in zip(self.velocity(leg), target, leg.moving, strict=True):
            squared = (got - wanted).square().mean(dim=2) * mask[..., 0]
            means = squared.sum(1) / mask[..., 0].sum(1).clamp(min=1)
            level = leg.high * mask.amax(dim=(1, 2))
            losses.append(weighted_mean(means, soft_weights(level, self.settings.soft_sigma)))
        return losses[0], losses[1]

    def _inputs(self, latents: Pair, leg: Leg, sigma: Float[Tensor, " b"]) -> tuple[StreamInput, StreamInput]:
        """Describe both streams at a level; given tokens, and streams that are nothing else, are at 0."""
        video, audio = (
            StreamInput(
                latents=getattr(latents, name),
                timesteps=sigma[:, None] * mask[..., 0],
                sigma=sigma * mask.amax(dim=(1, 2)),
                positions=getattr(self.clips.positions, name),
                context=getattr(leg.contexts, name),
            )
            for name, mask in zip(("video", "audio"), leg.moving, strict=True)
        )
        return video, audio

    def _branches(self, leg: Leg) -> tuple[Branch, ...]:
        """Say what each pass of the teacher reads and leaves out."""
        size = len(leg.high)
        prompt = leg.contexts.map(lambda context: Text(context=context))
        empty = self.empty.map(lambda context: Text(context=context.expand(size, -1, -1)))
        return tuple(
            Branch(
                perturbation=ISOLATED if name == "isolated" else Perturbation(),
                texts=empty if name == "uncond" else prompt,
            )
            for name in self.passes
        )

    @torch.no_grad()
    def _contexts(self, captions: list[str]) -> AV[Context]:
        """Encode captions as generation does, in float32."""
        tokens = self.text.tokenizer.tokenize(captions)
        with torch.autocast(self.device.type, enabled=False):
            contexts: AV[Context] = self.text(*(tensor.to(self.device) for tensor in tokens))
        return contexts

    def _guidance(self, own: generation.SamplingDefaults) -> tuple[StreamGuidance, StreamGuidance]:
        """Make the teacher's guidance: as it samples by default, where the settings say nothing else."""
        if own.video.stg_scale or own.audio.stg_scale:
            raise ConfigError(
                f"{self.settings.teacher} samples with self-attention guidance (stg_scale), which is not "
                "distilled; teachers are models such as the embedded one"
            )

        def scale(name: str, default: float) -> float:
            given: float | None = getattr(self.settings, name)
            return default if given is None else given

        video, audio = (
            StreamGuidance(
                terms=(
                    ClassifierFreeGuidance(scale=scale(f"{prefix}guidance_scale", stream.guidance_scale)),
                    CrossModalGuidance(scale=scale(f"{prefix}modality_scale", stream.modality_scale)),
                ),
                rescale=stream.guidance_rescale,
            )
            for prefix, stream in (("", own.video), ("audio_", own.audio))
        )
        return video, audio

    @torch.no_grad()
    def _new_held_out(self) -> _HeldOut:
        clips = self.clips.encode(HELD_OUT_SEED, self.settings.num_validation_clips, "held_out")
        legs = [
            self.leg(clips, torch.full((len(clips.captions),), step), torch.Generator().manual_seed(step))
            for step in range(len(self.levels) - 1)
        ]
        way = legs[0]
        for step in range(len(legs)):
            way = self._at(way, step)
            way = replace(way, latents=self.teach(way))
        return _HeldOut(legs, [self.target(leg) for leg in legs], way.latents)

    def _fingerprint(self) -> Tensor:
        """Digest the teacher's weights."""
        return mark_of(self.transformer.state_dict().values())
