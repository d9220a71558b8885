"""From official files to ready networks: joins the checkpoint's header, its tensors and the model classes.

name or path ──▶ files ──▶ headers: generation, configuration ──▶ networks on `meta` ──▶ filled, one by one
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import Checkpoint, has_diffusion_decoder, open_checkpoint
from soundstage.checkpoints.converted import ConvertedWeights, converted_folder
from soundstage.checkpoints.generation import Generation, SamplingDefaults
from soundstage.checkpoints.load import KeepsShare, load_module
from soundstage.checkpoints.reading import Placement
from soundstage.checkpoints.releases import resolve
from soundstage.core.errors import CheckpointError, ConfigError
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.core.progress import OnProgress
from soundstage.core.types import AV
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.text.config import TextConfig
from soundstage.models.text.connectors import TextConnectors
from soundstage.models.text.gemma import GemmaTower
from soundstage.models.text.text_encoder import TextEncoder
from soundstage.models.transformer.config import STREAMS, Stream, TransformerConfig
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.upsampler.config import LatentUpsamplerConfig
from soundstage.models.upsampler.model import LatentUpsampler
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.models.vocoder.model import Vocoder, build_vocoder
from soundstage.pipelines.adaptation import BLOCKS, adaptation
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.text_source import text_source
from soundstage.runtime.residency import Residency

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

Component = Literal["transformer", "text", "connectors", "video_vae", "audio_vae", "vocoder"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
FOR_GENERATION: tuple[Component, ...] = ("transformer", "text", "video_vae", "audio_vae", "vocoder")
FOR_SOUND: tuple[Component, ...] = ("transformer", "text", "audio_vae", "vocoder")
PART_OF: dict[Component, str] = {
    "transformer": keymap.TRANSFORMER,
    "text": keymap.CONNECTORS,
    "connectors": keymap.CONNECTORS,
    "video_vae": keymap.VIDEO_VAE,
    "audio_vae": keymap.AUDIO_VAE,
    "vocoder": keymap.VOCODER,
}
AS_STORED = Placing()
SMALL_MODEL_BYTES = 4 * 10**9  # on a CPU, up to here float32 is affordable and faster


@dataclass(frozen=True, kw_only=True)
class Components:
    """The networks of one model, ready to run; what was not asked for is None."""

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype  # of the transformer, the text side and the video VAE; sound is always float32
    transformer: AVTransformer | None = None
    connectors: TextConnectors | None = None  # the text side without the text encoder
    text: TextEncoder | None = None  # the whole text side: tokenizer, text encoder, connectors
    video_vae: VideoVAE | None = None
    audio_vae: AudioVAE | None = None
    vocoder: Vocoder | None = None
    video_geometry: VideoGeometry
    audio_geometry: AudioGeometry
    residency: Residency | None = (
        None  # has the networks on the device when they are used; None = always there
    )
    decode_budget: int | None = None  # bytes that decoding the picture may take; None = by what is free then
    keep_texts: bool = True  # whether there is room to keep what the transformer's blocks read of texts

    @property
    def generation(self) -> Generation:
        """Which generation the files are of."""
        return self.checkpoint.generation

    @property
    def defaults(self) -> SamplingDefaults:
        """How to sample when the request does not say; a distilled file has its own."""
        presets = self.generation.presets
        return presets.get(self.checkpoint.variant, presets["dev"])

    @property
    def geometry(self) -> AV[VideoGeometry | AudioGeometry]:
        """Both size rules as a pair."""
        return AV(self.video_geometry, self.audio_geometry)


def load_components(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    components: Collection[Component] = FOR_GENERATION,
    streams: Sequence[Stream] = STREAMS,
    text_encoder: Path | None = None,
    placing: Placing = AS_STORED,
    on_progress: OnProgress | None = None,
) -> Components:
    """Load a model by name or path; memory holds what is asked for and little else.

    Args:
        name_or_path: "embedded", a release that `soundstage models` lists, a file, or a directory.
        dtype: Of the weights; float32 for small models on a CPU, bfloat16 otherwise.
        components: What to load; "text" includes the connectors.
        streams: Which streams of the transformer and the connectors; the other's weights are not read.
        text_encoder: Directory of the Gemma text encoder, for files without one; searched for when absent.
        placing: In which format weights are kept.

    Raises:
        CheckpointError: Something is missing, damaged, or of another kind; says what to do.
        ConfigError: The header describes a network that is not supported.
    """
    return load_checkpoint(
        open_checkpoint(resolve(name_or_path)),
        device=device,
        dtype=dtype,
        components=components,
        streams=streams,
        text_encoder=text_encoder,
        placing=placing,
        on_progress=on_progress,
    )


def load_checkpoint(
    checkpoint: Checkpoint,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    components: Collection[Component] = FOR_GENERATION,
    streams: Sequence[Stream] = STREAMS,
    text_encoder: Path | None = None,
    text_size: Mapping[str, int] | None = None,
    placing: Placing = AS_STORED,
    mapped: Collection[str] = (),
    shares: KeepsShare | None = None,
    on_progress: OnProgress | None = None,
) -> Components:
    """Load a model whose files are open already; see `load_components`.

    Args:
        text_size: `hidden_size` and `num_hidden_layers` of the text encoder that the connectors were made
            for, where neither the header nor a text encoder tells.
        mapped: Parts whose blocks stay on disk and are only mapped into memory.
        shares: What this process keeps of the transformer, if several share it.
    """
    if checkpoint.unknown:
        shown = ", ".join(checkpoint.unknown[:5]) + (" ..." if len(checkpoint.unknown) > 5 else "")
        raise CheckpointError(
            f"{checkpoint.label} has {len(checkpoint.unknown)} tensors of no part of the model: {shown}"
        )
    place = Placement(device=torch.device(device), dtype=dtype or default_dtype(device, checkpoint.num_bytes))
    loader = _Loader(checkpoint, place, on_progress, tuple(streams), placing, frozenset(mapped), shares)
    wanted = set(components)
    for component in (name for name in COMPONENTS if name in wanted):
        checkpoint.part(PART_OF[component])  # a LoRA is to be named as one, before a text encoder is missed
    video, audio = video_geometry(checkpoint), audio_geometry(checkpoint)
    text = loader.text(text_encoder) if "text" in wanted else None
    connectors = text.connectors if text is not None else None
    if connectors is None and "connectors" in wanted:
        connectors = loader.connectors(text_size)
    return Components(
        checkpoint=checkpoint,
        device=torch.device(device),
        dtype=place.dtype or torch.float32,
        transformer=loader.transformer() if "transformer" in wanted else None,
        connectors=connectors,
        text=text,
        video_vae=loader.video_vae() if "video_vae" in wanted else None,
        audio_vae=loader.audio_vae() if "audio_vae" in wanted else None,
        vocoder=loader.vocoder() if "vocoder" in wanted else None,
        video_geometry=video,
        audio_geometry=audio,
    )


def load_upsampler(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> LatentUpsampler:
    """Load a latent upsampler, which is a file of its own.

    Raises:
        CheckpointError: The file is something else.
    """
    checkpoint = open_checkpoint(resolve(path))
    place = Placement(device=torch.device(device), dtype=dtype or default_dtype(device, checkpoint.num_bytes))
    return _Loader(checkpoint, place, None).upsampler()


def default_dtype(device: str | torch.device, num_bytes: int) -> torch.dtype:
    """Choose float32 for small models on a CPU, where bfloat16 is slow; bfloat16 for everything else."""
    is_small_cpu = torch.device(device).type == "cpu" and num_bytes <= SMALL_MODEL_BYTES
    return torch.float32 if is_small_cpu else torch.bfloat16


def video_geometry(checkpoint: Checkpoint) -> VideoGeometry:
    """Size rules of the picture: compression from the VAE's block list, patches from the transformer.

    Raises:
        CheckpointError: VAE and transformer of the files do not fit each other.
    """
    geometry = VideoGeometry()
    if "vae" in checkpoint.config and not _is_diffusion_vae(checkpoint):
        geometry = _configured(checkpoint, "vae", VideoVAEConfig.from_header).geometry
    if "transformer" not in checkpoint.config:
        return geometry
    transformer = _configured(checkpoint, "transformer", TransformerConfig.from_header)
    geometry = replace(geometry, patch_size=transformer.patch_size)
    if "vae" in checkpoint.config and geometry.token_channels != transformer.video.in_channels:
        raise CheckpointError(
            f"{checkpoint.label}: the video VAE makes tokens of {geometry.token_channels} channels, the "
            f"transformer takes {transformer.video.in_channels}; they are of different models"
        )
    return geometry


def audio_geometry(checkpoint: Checkpoint) -> AudioGeometry:
    """Size rules of the sound, from the audio VAE and the vocoder.

    Raises:
        CheckpointError: Audio VAE and transformer of the files do not fit each other.
    """
    if "audio_vae" not in checkpoint.config:
        return AudioGeometry()
    geometry = _configured(checkpoint, "audio_vae", AudioVAEConfig.from_header).geometry()
    if "vocoder" in checkpoint.config:
        vocoder = _configured(checkpoint, "vocoder", VocoderConfig.from_header)
        geometry = replace(geometry, output_sample_rate=vocoder.sample_rate)
    if "transformer" in checkpoint.config:
        channels = _configured(checkpoint, "transformer", TransformerConfig.from_header).audio.in_channels
        if geometry.token_channels != channels:
            raise CheckpointError(
                f"{checkpoint.label}: the audio VAE makes tokens of {geometry.token_channels} channels, the "
                f"transformer takes {channels}; they are of different models"
            )
    return geometry


@dataclass(frozen=True)
class _Loader:
    """Builds the networks of one checkpoint."""

    checkpoint: Checkpoint
    place: Placement
    on_progress: OnProgress | None
    streams: tuple[Stream, ...] = STREAMS
    placing: Placing = AS_STORED
    mapped: frozenset[str] = frozenset()
    shares: KeepsShare | None = None  # of the transformer

    def transformer(self) -> AVTransformer:
        config = _configured(self.checkpoint, "transformer", TransformerConfig.from_header)
        transformer = self._part_of_module(
            keymap.TRANSFORMER, lambda: AVTransformer(config, self.streams), lambda: AVTransformer(config)
        )
        if keymap.TRANSFORMER not in self.mapped and self.shares is None:  # joining would read all of them
            transformer.join_projections()
        return transformer

    def connectors(self, text_size: Mapping[str, int] | None) -> TextConnectors:
        size = text_size or _text_size(self.checkpoint)
        config = _configured(self.checkpoint, "transformer", lambda s: TextConfig.from_header(s, size))
        return self._part_of_module(
            keymap.CONNECTORS, lambda: TextConnectors(config, self.streams), lambda: TextConnectors(config)
        )

    def text(self, directory: Path | None) -> TextEncoder:
        source, hf_config, tokenizer = text_source(self.checkpoint, directory)
        tower = self._module(keymap.TEXT_TOWER, lambda: GemmaTower.from_config(hf_config), source)
        size = {"hidden_size": tower.hidden_size, "num_hidden_layers": tower.num_states - 1}
        text = TextEncoder(tokenizer, tower.to(self.place.device), self.connectors(size))
        return text.eval()

    def video_vae(self) -> VideoVAE:
        if _is_diffusion_vae(self.checkpoint):
            raise CheckpointError(
                f"{self.checkpoint.label} has the diffusion decoder of LTX-2.5, which soundstage does not "
                "run; use vae/ltx-2.5-video-vae-conv-bf16.safetensors of the same release"
            )
        config = _configured(self.checkpoint, "vae", VideoVAEConfig.from_header)
        has = self._halves(keymap.VIDEO_VAE)
        return self._module(keymap.VIDEO_VAE, lambda: VideoVAE(config, encoder=has[0], decoder=has[1]))

    def audio_vae(self) -> AudioVAE:
        config = _configured(self.checkpoint, "audio_vae", AudioVAEConfig.from_header)
        has = self._halves(keymap.AUDIO_VAE)
        sound = replace(self.place, dtype=torch.float32)
        return self._module(
            keymap.AUDIO_VAE, lambda: AudioVAE(config, encoder=has[0], decoder=has[1]), place=sound
        )

    def vocoder(self) -> Vocoder:
        config = _configured(self.checkpoint, "vocoder", VocoderConfig.from_header)
        sound = replace(self.place, dtype=torch.float32)  # bfloat16 is audible
        return self._module(keymap.VOCODER, lambda: build_vocoder(config), place=sound)

    def upsampler(self) -> LatentUpsampler:
        self.checkpoint.part(keymap.UPSAMPLER)
        config = LatentUpsamplerConfig.from_header(self.checkpoint.config)
        return self._module(keymap.UPSAMPLER, lambda: LatentUpsampler(config))

    def _halves(self, part: str) -> tuple[bool, bool]:
        names = self.checkpoint.part(part)
        return any(n.startswith("encoder.") for n in names), any(n.startswith("decoder.") for n in names)

    def _part_of_module(self, part: str, build: Callable[[], M], whole: Callable[[], M]) -> M:
        """Load a network for the wanted streams; what the file holds for the other is passed over."""
        if self.streams == STREAMS:
            return self._module(part, build)
        with torch.device("meta"):
            names = whole().state_dict().keys()
        return self._module(part, build, unused=names)

    def _module(
        self,
        part: str,
        build: Callable[[], M],
        source: Checkpoint | None = None,
        place: Placement | None = None,
        unused: Collection[str] = (),
    ) -> M:
        checkpoint = source or self.checkpoint
        place = place or self.place
        if part in self.mapped:
            converted = ConvertedWeights(converted_folder())
            place = replace(place, mapped=f"{BLOCKS[part]}.", converted=converted)
        module = load_module(
            build,
            checkpoint.part(part),
            what=f"the {keymap.PART_TITLES[part]} of {checkpoint.label}",
            placement=place,
            unused={*checkpoint.allowed_unused(part), *unused},
            optional=checkpoint.allowed_missing(part),
            adapt=adaptation(part, self.placing),
            shares=self.shares if part == keymap.TRANSFORMER else None,
            on_progress=self.on_progress,
        )
        return module.eval().requires_grad_(False)


def _configured(checkpoint: Checkpoint, section: str, read: Callable[[Mapping[str, Any]], T]) -> T:
    """Read one section of the header; errors name the file."""
    try:
        return read(checkpoint.section(section))
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.label}: {error}") from error


def _text_size(checkpoint: Checkpoint) -> dict[str, int] | None:
    """Work out the text encoder's size from the projection: width × hidden states columns."""
    width = checkpoint.section("transformer").get("caption_channels")
    for name, tensor in checkpoint.parts.get(keymap.CONNECTORS, {}).items():
        if name.startswith("text_embedding_projection.") and len(tensor.entry.shape) == 2 and width:
            states, rest = divmod(tensor.entry.shape[1], width)
            return None if rest else {"hidden_size": width, "num_hidden_layers": states - 1}
    return None


def _is_diffusion_vae(checkpoint: Checkpoint) -> bool:
    section = checkpoint.config.get("vae")
    named = isinstance(section, Mapping) and section.get("_class_name") == "CausalDiffusionVAE"
    return named or any(has_diffusion_decoder(header) for header in checkpoint.headers)
