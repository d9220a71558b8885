"""Say what a checkpoint is, what it can do and what it still needs, from its headers alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from soundstage.checkpoints.checkpoint import Checkpoint, StoredTensor, has_diffusion_decoder
from soundstage.checkpoints.detect import GENERATIONS
from soundstage.checkpoints.keymap import (
    AUDIO_VAE,
    CONNECTORS,
    DURATION_HEAD,
    LORA,
    PART_TITLES,
    QUANTISATION_SUFFIXES,
    STREAM_TITLES,
    TEXT_TOWER,
    TRANSFORMER,
    UPSAMPLER,
    VIDEO_VAE,
    VOCODER,
    stream_of,
)
from soundstage.checkpoints.lora_summary import LoraSummary, summarise_lora


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """One part of a checkpoint."""

    part: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]  # values per data type


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `soundstage inspect` prints."""

    files: tuple[str, ...]
    kind: str  # "model", "LoRA", "latent upsampler" ...
    generation: str  # "2.3", or "unknown"; of a LoRA, those it fits: "2.3 or 2.5"
    model_version: str
    variant: str
    bytes: int
    is_complete: bool  # the data are there, not only the header
    parts: tuple[PartSummary, ...]
    streams: Mapping[str, int] = field(default_factory=dict)  # transformer parameters
    quantisation: str = ""
    lora: LoraSummary | None = None
    unknown: tuple[str, ...] = ()
    can: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Values of all parts."""
        return sum(part.parameters for part in self.parts)


def summarise(checkpoint: Checkpoint) -> Summary:
    """Describe an opened checkpoint."""
    parts = [name for name in PART_TITLES if name in checkpoint.parts]
    kind = _kind(checkpoint)
    lora = summarise_lora(checkpoint) if LORA in parts else None
    known = bool(checkpoint.metadata.get("model_version")) or TRANSFORMER in parts
    generation = checkpoint.generation.name if known else "unknown"
    return Summary(
        files=tuple(str(header.path) for header in checkpoint.headers),
        kind=kind,
        generation=" or ".join(lora.fits) if lora and lora.fits else generation,
        model_version=str(checkpoint.metadata.get("model_version") or "not stated"),
        variant=checkpoint.variant if TRANSFORMER in parts else "",
        bytes=checkpoint.num_bytes,
        is_complete=all(header.file_bytes == header.expected_bytes for header in checkpoint.headers),
        parts=tuple(_summarise_part(name, checkpoint.parts[name]) for name in parts),
        streams=_streams(checkpoint.parts.get(TRANSFORMER, {})),
        quantisation=_quantisation(checkpoint),
        lora=lora,
        unknown=checkpoint.unknown,
        can=tuple(_abilities(checkpoint)),
        needs=tuple(_needs(checkpoint)),
        notes=tuple(_notes(checkpoint)),
    )


def _summarise_part(name: str, tensors: Mapping[str, StoredTensor]) -> PartSummary:
    dtypes: dict[str, int] = {}
    for tensor in tensors.values():
        dtypes[tensor.entry.dtype] = dtypes.get(tensor.entry.dtype, 0) + tensor.entry.num_elements
    return PartSummary(
        part=name,
        tensors=len(tensors),
        parameters=sum(dtypes.values()),
        bytes=sum(tensor.entry.num_bytes for tensor in tensors.values()),
        dtypes=dict(sorted(dtypes.items(), key=lambda item: -item[1])),
    )


def _streams(tensors: Mapping[str, StoredTensor]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        if not name.endswith(QUANTISATION_SUFFIXES):
            stream = stream_of(name)
            counts[stream] = counts.get(stream, 0) + tensor.entry.num_elements
    return {stream: counts[stream] for stream in STREAM_TITLES if stream in counts}


def _kind(checkpoint: Checkpoint) -> str:
    parts = set(checkpoint.parts)
    for special in (LORA, UPSAMPLER):
        if special in parts:
            return PART_TITLES[special]
    if TRANSFORMER in parts:
        return "model" if {VIDEO_VAE, AUDIO_VAE} & parts else "part of a split model"
    if parts:
        return "part of a split model"
    return "unknown"


def _quantisation(checkpoint: Checkpoint) -> str:
    kept = [checkpoint.parts.get(part, {}) for part in (TRANSFORMER, TEXT_TOWER)]  # others are converted
    dtypes = {tensor.entry.dtype for part in kept for tensor in part.values()}
    names = [n for part in checkpoint.parts.values() for n in part]
    if any(name.endswith(".weight_scale_2") for name in names):
        return "NVFP4 (4 bits), not readable by soundstage"
    if dtypes & {"F8_E4M3", "F8_E5M2"}:
        return "fp8, kept as it is"
    return ""


def _abilities(checkpoint: Checkpoint) -> list[str]:
    """List what the files can do once what they need is there."""
    parts = set(checkpoint.parts)
    encodes = {part for part in (VIDEO_VAE, AUDIO_VAE) if _has(checkpoint, part, "encoder.")}
    decodes = {part for part in (VIDEO_VAE, AUDIO_VAE) if _has(checkpoint, part, "decoder.")}
    if VIDEO_VAE in decodes and any(has_diffusion_decoder(header) for header in checkpoint.headers):
        decodes.discard(VIDEO_VAE)
    hears = AUDIO_VAE in decodes and VOCODER in parts
    abilities = []
    if {TRANSFORMER, CONNECTORS} <= parts:
        if VIDEO_VAE in decodes and hears:
            abilities.append("text to video with sound (T2AV)")
            if VIDEO_VAE in encodes:
                abilities.append("image to video with sound (I2AV)")
            if AUDIO_VAE in encodes:
                abilities.append("sound to video (A2V)")
        elif VIDEO_VAE in decodes:
            abilities.append("text to video without sound (T2V)")
        if hears:
            abilities.append("text to sound (T2A)")
    if TRANSFORMER not in parts:
        abilities += _codec_abilities(parts, encodes, decodes)
    elif not abilities:
        abilities.append("denoise latents, given text features")
    if UPSAMPLER in parts:
        abilities.append(_upsampling(checkpoint.config))
    if LORA in parts:
        abilities.append("adapt a transformer of the generation it was trained on")
    return abilities


def _codec_abilities(parts: set[str], encodes: set[str], decodes: set[str]) -> list[str]:
    listed = [f"encode {'pictures' if part == VIDEO_VAE else 'sound'}" for part in sorted(encodes)]
    listed += [f"decode {'pictures' if part == VIDEO_VAE else 'sound'}" for part in sorted(decodes)]
    if TEXT_TOWER in parts and CONNECTORS in parts:
        listed.append("encode prompts")
    if DURATION_HEAD in parts:
        listed.append("estimate how long a clip should be (not used by soundstage)")
    return listed


def _needs(checkpoint: Checkpoint) -> list[str]:
    """List what must be added before prompts can become clips."""
    parts, generation = set(checkpoint.parts), checkpoint.generation
    if LORA in parts:
        return ["a model with these layers, in these shapes"]
    if UPSAMPLER in parts:
        return ["a model whose video latents it enlarges, for its statistics"]
    needs = []
    if TRANSFORMER not in parts:
        needs.append("a transformer file, to generate")
    if TEXT_TOWER not in parts and TRANSFORMER in parts:
        needs.append(f"the text encoder: {generation.text_encoder}")
    if TRANSFORMER in parts:
        for part in (CONNECTORS, VIDEO_VAE, AUDIO_VAE, VOCODER):
            if part not in parts:
                needs.append(f"the {PART_TITLES[part]}, in a file of its own")
        if CONNECTORS in parts and not _has(checkpoint, CONNECTORS, "text_embedding_projection."):
            needs.append("the text projection, in the text encoder's file")
        if not checkpoint.config.get("transformer"):
            needs.append("its configuration: the header's metadata has no 'config'")
    return needs


def _notes(checkpoint: Checkpoint) -> list[str]:
    notes = []
    if any(has_diffusion_decoder(header) for header in checkpoint.headers):
        notes.append(
            "the video decoder is the diffusion one, which soundstage does not run; take the conv file"
        )
    if TRANSFORMER in checkpoint.parts and checkpoint.generation is not GENERATIONS["embedded"]:
        notes.append(
            f"two-stage generation also wants the x2 latent upsampler of {checkpoint.generation.title}"
        )
    if checkpoint.unknown:
        notes.append(f"{len(checkpoint.unknown)} tensors belong to no known part")
    return notes


def _upsampling(config: Mapping[str, object]) -> str:
    if config.get("temporal_upsample"):
        return "double the frame rate of video latents"
    return f"enlarge video latents by {config.get('spatial_scale', 2.0)}"


def _has(checkpoint: Checkpoint, part: str, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in checkpoint.parts.get(part, {}))
