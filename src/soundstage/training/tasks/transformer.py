"""Train the diffusion transformer, text tower included, by flow matching on joint clips of the world.

The autoencoders are frozen. Each encoded clip is drawn several times, with fresh noise.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.config import from_dict
from soundstage.core.types import AV, Context
from soundstage.data.world.caption import caption_of
from soundstage.data.world.kind import Split
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.text.config import TextConfig
from soundstage.models.text.connectors import TextConnectors
from soundstage.models.text.gemma import GemmaTower, tiny_gemma_config
from soundstage.models.text.text_encoder import TextEncoder
from soundstage.models.text.tokenizer import Tokenizer, train_tokenizer
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.inputs import Perturbation, StreamInput
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE
from soundstage.nn.attention_backends import PRODUCTS, use_attention
from soundstage.nn.kernels.choice import InductorKernels, use_kernels
from soundstage.training.clips import ClipBatch, ClipSource, Pair
from soundstage.training.export import read_component
from soundstage.training.reading import FactReader
from soundstage.training.recipe import Recipe
from soundstage.training.samples import HELD_OUT_SEED

ISOLATED = Perturbation(skip_a2v="all", skip_v2a="all")
NUM_WEIGHING_CLIPS = 64
VALIDATION_SIGMAS = (0.35, 0.65, 0.85, 0.95, 0.98)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How noise levels, captions and conditions are drawn."""

    video_vae: str  # file of the frozen video VAE
    audio_vae: str  # file of the frozen audio VAE
    sigma_mean: float = 0.6  # of the logit of the noise level; the official law gives 0.6 for 112 tokens
    sigma_std: float = 1.0
    soft_sigma: float = (
        0.0  # below it, errors count less: a network that predicts clean tokens divides by sigma
    )
    feature_power: float = 0.0  # errors count by this power of their feature's deviation: 0, all alike
    uniform_share: float = 0.1  # of noise levels drawn uniformly instead
    independent_sigma: float = 0.25  # share of samples whose streams have their own noise levels
    clean_stream: float = 0.1  # share of samples with one stream given: A2V and V2A
    first_frame: float = 0.1  # share of batches whose first latent frames are given
    isolated: float = 0.08  # share of samples without cross-modal attention: the guidance's isolated pass
    caption_dropout: float = 0.1  # share of empty captions
    reading: float = 0.0  # weight of the questions about captions (`reading.py`); 0, none are asked
    num_read_captions: int = 64  # captions of a step about which they are asked
    vocabulary: int = 512
    num_tokenizer_captions: int = 4000
    num_validation_clips: int = 32


class TransformerTask:
    """Predict the velocity of both streams at once."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.settings = from_dict(Settings, recipe.settings, where="settings")
        section = recipe.model["transformer"]
        self.config = TransformerConfig.from_header(section)
        self.clips = ClipSource(
            recipe.data,
            *_autoencoders(self.settings),
            batch_size=recipe.batch_size,
            patch_size=self.config.patch_size,
            device=device,
        )
        self.max_length = int(recipe.model["text_encoder"]["max_length"])
        self.transformer = AVTransformer(self.config)
        self.text = self._new_text_encoder(section)
        parts: dict[str, nn.Module] = {"transformer": self.transformer, "text": self.text}
        if self.settings.reading:
            parts["reader"] = self._new_reader()
        product = nn.ModuleDict(parts).to(device)
        equip(product, recipe, device)
        self.reader = parts.get("reader")
        self.modules: dict[str, nn.Module] = {"loss": product}
        self.feature_weights = self._weigh_features()

    def batch(self, seed: int) -> ClipBatch:
        """Render and encode fresh clips, then draw from the pool."""
        return self.clips.batch(seed)

    def loss(
        self, phase: str, batch: ClipBatch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute the mean squared error of both velocities.

        Source: LTX-2, arXiv 2601.03233; flow matching, Lipman et al. 2023.
        """
        del phase
        size = len(batch.captions)
        sigmas = self._draw_sigmas(size, generator)
        keep = None  # a whole batch at a time: levels that differ between tokens cost extra
        if torch.rand((), generator=generator) < self.settings.first_frame:
            first = torch.arange(batch.video.shape[1], device=self.device) < self.clips.frame_tokens
            keep = first.expand(size, -1)
        isolated = torch.rand(size, generator=generator) < self.settings.isolated
        dropped = (torch.rand(size, generator=generator) < self.settings.caption_dropout).tolist()
        captions = ["" if drop else caption for drop, caption in zip(dropped, batch.captions, strict=True)]
        perturbations = [ISOLATED if alone else Perturbation() for alone in isolated.tolist()]
        errors = self._weigh(self._errors(batch, captions, sigmas, generator, keep, perturbations))
        video = weighted_mean(errors.video, soft_weights(sigmas.video, self.settings.soft_sigma))
        audio = weighted_mean(errors.audio, soft_weights(sigmas.audio, self.settings.soft_sigma))
        loss, figures = video + audio, {"video": video.item(), "audio": audio.item()}
        if self.reader is None:
            return loss, figures
        reading, right = self._read(int(torch.randint(1 << 62, (), generator=generator)), "train")
        return loss + self.settings.reading * reading, {**figures, "read_right": right.item()}

    def validate(self) -> dict[str, float]:
        """Measure the squared error of denoised tokens on held-out clips, averaged over noise levels."""
        clips = self.clips.encode(HELD_OUT_SEED, self.settings.num_validation_clips, "held_out")
        figures: dict[str, float] = {}
        for sigma in VALIDATION_SIGMAS:
            level = torch.full((len(clips.captions),), sigma, device=self.device)
            share = sigma * sigma / len(VALIDATION_SIGMAS)  # denoised = noisy - sigma velocity
            generator = torch.Generator().manual_seed(0)
            errors = self._errors(clips, clips.captions, Pair(level, level), generator)
            measured = {"": errors} | ({"weighted_": self._weigh(errors)} if self.feature_weights else {})
            for name, pair in measured.items():
                for stream, values in zip(("video", "audio"), pair, strict=True):
                    key = f"{name}{stream}"
                    figures[key] = figures.get(key, 0.0) + share * values.mean().item()
        if self.reader is not None:
            figures["read_right"] = self._read(HELD_OUT_SEED, "held_out")[1].item()
        return figures

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the transformer, connectors, text tower and tokenizer under their official names."""
        prefix = "model.diffusion_model."
        tensors = {f"{prefix}{key}": t for key, t in self.transformer.state_dict().items()}
        for key, tensor in self.text.connectors.state_dict().items():
            tensors[key if key.startswith("text_embedding_projection.") else f"{prefix}{key}"] = tensor
        tensors |= self.text.gemma.state_dict()
        tensors["tokenizer_json"] = self._tokenizer_bytes()
        section = {**self.text.connectors.config.to_header(), **self.config.to_header()}
        section["patch_size"] = self.config.patch_size
        return {
            "transformer": section,
            "text_encoder": {"max_length": self.max_length},
            "gemma_config": self.gemma_config,
        }, tensors

    def memory(self) -> dict[str, Tensor]:
        """Return the pool of encoded clips and the tokenizer."""
        return {**self.clips.memory(), "tokenizer_json": self._tokenizer_bytes()}

    def restore(self, memory: dict[str, Tensor]) -> None:
        """Take back what `memory` returned."""
        content = bytes(memory.pop("tokenizer_json").tolist())
        self.text.tokenizer = Tokenizer.from_bytes(content, self.max_length)
        self.clips.restore(memory)

    def _errors(
        self,
        clips: ClipBatch,
        captions: list[str],
        sigmas: Pair,
        generator: torch.Generator,
        keep: Tensor | None = None,
        perturbations: list[Perturbation] | None = None,
    ) -> Pair:
        """Return the mean squared velocity error of each sample and feature, (b, d), per stream."""
        context = self._contexts(captions)
        inputs, targets, masks = [], [], []
        for name in ("video", "audio"):
            clean = getattr(clips, name)
            sigma = getattr(sigmas, name)
            noise = noise_like(clean, generator)
            timesteps = sigma[:, None].expand(clean.shape[:2])
            mask = torch.ones_like(timesteps)
            if name == "video" and keep is not None:
                timesteps, mask = timesteps.masked_fill(keep, 0), mask.masked_fill(keep, 0)
            level = timesteps[..., None]
            inputs.append(
                StreamInput(
                    latents=(1 - level) * clean + level * noise,
                    timesteps=timesteps,
                    sigma=sigma,
                    positions=getattr(self.clips.positions, name).expand(len(clean), -1, -1, -1),
                    context=getattr(context, name),
                )
            )
            targets.append(noise - clean)
            masks.append(mask)
        velocity = self.transformer(*inputs, perturbations)
        means = []
        for got, target, mask in zip((velocity.video, velocity.audio), targets, masks, strict=True):
            squared = (got - target).square() * mask[..., None]
            means.append(squared.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))
        return Pair(*means)

    def _read(self, seed: int, split: Split) -> tuple[Tensor, Tensor]:
        """Ask what captions say; return the loss and the share of right answers."""
        assert isinstance(self.reader, FactReader)
        scenes = self.clips.world.scenes(seed, self.settings.num_read_captions, split)
        marks = self.reader.marks(scenes).to(self.device)
        loss, right = self.reader(self._contexts(self.clips.world.captions(seed, scenes)), marks)
        return loss, right

    def _contexts(self, captions: list[str]) -> AV[Context]:
        contexts: AV[Context] = self.text(
            *(t.to(self.device) for t in self.text.tokenizer.tokenize(captions))
        )
        return contexts

    def _weigh(self, errors: Pair) -> Pair:
        """Average the errors of features, each with its weight, (b,)."""
        if self.feature_weights is None:
            return Pair(*(error.mean(1) for error in errors))
        weighed = zip(errors, self.feature_weights, strict=True)
        return Pair(*((error * weight).mean(1) for error, weight in weighed))

    def _weigh_features(self) -> Pair | None:
        """Weigh features by their deviation: what varies most is most of the clip. Variances in all stay."""
        power = self.settings.feature_power
        if not power:
            return None
        clips = self.clips.encode(self.recipe.seed, NUM_WEIGHING_CLIPS)

        def weights(tokens: Tensor) -> Tensor:
            deviation = tokens.flatten(0, 1).std(0)
            return deviation**power * deviation.square().mean() / (deviation ** (power + 2)).mean()

        return Pair(weights(clips.video), weights(clips.audio))

    def _draw_sigmas(self, size: int, generator: torch.Generator) -> Pair:
        """Draw noise levels: mostly one for both streams, sometimes one each, sometimes one stream clean."""
        settings = self.settings

        def levels() -> Tensor:
            normal = torch.randn(size, generator=generator) * settings.sigma_std + settings.sigma_mean
            uniform = torch.rand(size, generator=generator).clamp(min=1e-3)
            chosen = torch.rand(size, generator=generator) < settings.uniform_share
            return torch.where(chosen, uniform, normal.sigmoid())

        video, own = levels(), levels()
        independent = torch.rand(size, generator=generator) < settings.independent_sigma
        audio = torch.where(independent, own, video)
        pick = torch.rand(size, generator=generator)
        video = video.masked_fill(pick < settings.clean_stream / 2, 0)
        audio = audio.masked_fill(pick > 1 - settings.clean_stream / 2, 0)
        return Pair(video.to(self.device), audio.to(self.device))

    def _new_text_encoder(self, section: Mapping[str, Any]) -> TextEncoder:
        tokenizer = Tokenizer.from_bytes(self._tokenizer_content(), self.max_length)
        self.gemma_config = tiny_gemma_config(tokenizer.vocab_size, **self.recipe.model.get("gemma", {}))
        connectors = TextConnectors(TextConfig.from_header(section, self.gemma_config))
        return TextEncoder(tokenizer, GemmaTower.from_config(self.gemma_config), connectors)

    def _new_reader(self) -> FactReader:
        seed = random.Random(f"reader:{self.recipe.seed}").getrandbits(62)
        scenes = self.clips.world.scenes(seed, self.settings.num_tokenizer_captions)
        return FactReader(scenes, self.config.video.context_dim, self.config.audio.context_dim)

    def _tokenizer_content(self) -> bytes:
        """Take the tokenizer of the weights to begin with, or train one on captions."""
        if self.recipe.init:
            given = read_component(Path(self.recipe.init))[1].get("tokenizer_json")
            if given is not None:
                return bytes(given.tolist())
        rng = random.Random(self.recipe.seed)
        scenes = self.clips.world.scenes(rng.getrandbits(62), self.settings.num_tokenizer_captions)
        return train_tokenizer([caption_of(scene, rng) for scene in scenes], self.settings.vocabulary)

    def _tokenizer_bytes(self) -> Tensor:
        return torch.frombuffer(bytearray(self.text.tokenizer.to_bytes()), dtype=torch.uint8)


def equip(network: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Let a transformer compute as the recipe wants it: compiled steps, and what suits bfloat16 on CPUs."""
    if recipe.compile:
        use_kernels(network, InductorKernels())
    if recipe.dtype == "bfloat16" and device.type == "cpu":
        use_attention(network, PRODUCTS)


def noise_like(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Draw noise where the clips are: a GPU would wait for a CPU that draws millions of values.

    Args:
        generator: On the CPU; one on a GPU is seeded from it, so that a step is still a function of its seed.
    """
    if clean.device.type != "cpu":
        seed = int(torch.randint(1 << 62, (), generator=generator))
        generator = torch.Generator(clean.device).manual_seed(seed)
    return torch.randn(clean.shape, generator=generator, device=clean.device)


def soft_weights(sigma: Float[Tensor, " b"], soft: float) -> Float[Tensor, " b"]:
    """Weigh the velocity errors of items: none where the stream was given, less below the level `soft`."""
    return torch.where(sigma > 0, sigma.square() / (sigma.square() + soft * soft).clamp(min=1e-12), 0)


def weighted_mean(values: Float[Tensor, " b"], weights: Float[Tensor, " b"]) -> Tensor:
    """Average over the items that have a weight."""
    return (values * weights).sum() / (weights > 0).sum().clamp(min=1)


def _autoencoders(settings: Settings) -> tuple[VideoVAE, AudioVAE]:
    sections, tensors = read_component(Path(settings.video_vae))
    video = VideoVAE(VideoVAEConfig.from_header(sections["vae"]))
    video.load_state_dict({k.removeprefix("vae."): t for k, t in tensors.items() if k.startswith("vae.")})
    sections, tensors = read_component(Path(settings.audio_vae))
    audio = AudioVAE(AudioVAEConfig.from_header(sections["audio_vae"]))
    audio.load_state_dict(
        {k.removeprefix("audio_vae."): t for k, t in tensors.items() if k.startswith("audio_vae.")}
    )
    return video, audio
