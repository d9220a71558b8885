"""Which tensor names belong to which part of the model: names of the official layout ↔ names of our modules.

Our modules carry the official names, so the map is a table of prefixes. A split file may drop its part's
prefix; then the part is told by names that only it has.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from soundstage.checkpoints.header import Header

TRANSFORMER = "transformer"
CONNECTORS = "connectors"
VIDEO_VAE = "video_vae"
AUDIO_VAE = "audio_vae"
VOCODER = "vocoder"
TEXT_TOWER = "text_tower"
TEXT_EXTRAS = "text_extras"  # image and sound towers of the text encoder: never used
TOKENIZER = "tokenizer"
DURATION_HEAD = "duration_head"
UPSAMPLER = "upsampler"
LORA = "lora"

PART_TITLES = {
    TRANSFORMER: "transformer",
    CONNECTORS: "text connectors and projection",
    VIDEO_VAE: "video VAE",
    AUDIO_VAE: "audio VAE",
    VOCODER: "vocoder",
    TEXT_TOWER: "text encoder",
    TEXT_EXTRAS: "unused towers of the text encoder",
    TOKENIZER: "tokenizer",
    DURATION_HEAD: "duration head",
    UPSAMPLER: "latent upsampler",
    LORA: "LoRA",
}

STREAM_TITLES = {"video": "video stream", "audio": "audio stream", "cross": "between the streams"}

_DIT = "model.diffusion_model."

# Prefix in the file, part, prefix inside the part. The first match counts.
PREFIXES: tuple[tuple[str, str, str], ...] = (
    (f"{_DIT}video_embeddings_connector.", CONNECTORS, "video_embeddings_connector."),
    (f"{_DIT}audio_embeddings_connector.", CONNECTORS, "audio_embeddings_connector."),
    ("text_embedding_projection.", CONNECTORS, "text_embedding_projection."),
    (_DIT, TRANSFORMER, ""),
    ("vae.", VIDEO_VAE, ""),
    ("audio_vae.", AUDIO_VAE, ""),
    ("vocoder.", VOCODER, ""),
    ("duration_head.", DURATION_HEAD, ""),
    ("model.language_model.", TEXT_TOWER, "model."),
    ("language_model.model.", TEXT_TOWER, "model."),
    ("language_model.lm_head.", TEXT_EXTRAS, "lm_head."),
    ("lm_head.", TEXT_EXTRAS, "lm_head."),
    ("model.layers.", TEXT_TOWER, "model.layers."),
    ("model.embed_tokens.", TEXT_TOWER, "model.embed_tokens."),
    ("model.norm.", TEXT_TOWER, "model.norm."),
    ("vision_model.", TEXT_EXTRAS, "vision_model."),
    ("vision_tower.", TEXT_EXTRAS, "vision_tower."),
    ("multi_modal_projector.", TEXT_EXTRAS, "multi_modal_projector."),
    ("audio_projector.", TEXT_EXTRAS, "audio_projector."),
    ("model.vision_embedder.", TEXT_EXTRAS, "vision_embedder."),
    ("model.embed_vision.", TEXT_EXTRAS, "embed_vision."),
    ("model.embed_audio.", TEXT_EXTRAS, "embed_audio."),
    ("tokenizer_json", TOKENIZER, "tokenizer_json"),
    ("hf_asset__", TOKENIZER, "hf_asset__"),
)

# For writing: the prefix of each part (of each child, for the connectors) in the single-file layout.
OFFICIAL_PREFIX: dict[str, tuple[tuple[str, str], ...]] = {
    TRANSFORMER: (("", _DIT),),
    CONNECTORS: (
        ("text_embedding_projection.", "text_embedding_projection."),
        ("", _DIT),
    ),
    VIDEO_VAE: (("", "vae."),),
    AUDIO_VAE: (("", "audio_vae."),),
    VOCODER: (("", "vocoder."),),
    TEXT_TOWER: (("", ""),),
    TOKENIZER: (("", ""),),
    DURATION_HEAD: (("", "duration_head."),),
    UPSAMPLER: (("", ""),),
}

# Names without a prefix that only one part has.
_BARE_MARKS = (
    ("bwe_generator.", VOCODER),
    ("conv_pre.", VOCODER),
    ("transformer_blocks.", TRANSFORMER),
    ("video_embeddings_connector.", CONNECTORS),
    ("initial_conv.", UPSAMPLER),
    ("attention_pooler.", DURATION_HEAD),
    ("layers.0.self_attn.", TEXT_TOWER),
)
_LORA_MARKS = (
    *(".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.down.", ".lora.up.", "lora_unet_"),
    *(".lokr_", ".hada_", ".oft_"),  # relatives, which are told by name
)
_DIFFUSERS_MARKS = ("audio_proj_in.weight", "time_embed.linear.weight", "latents_mean")

QUANTISATION_SUFFIXES = (".weight_scale", ".weight_scale_2", ".input_scale")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A file's tensors, sorted into parts."""

    parts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # part → our name → name in the file
    unknown: tuple[str, ...] = ()  # names that belong to no part
    is_diffusers: bool = False


def sort_tensors(header: Header) -> Contents:
    """Sort the tensors of one file into the parts of the model."""
    names = list(header.tensors)
    if any(mark in name for name in names for mark in _LORA_MARKS):
        return Contents(parts={LORA: {name: name for name in names}})
    if any(name in header.tensors for name in _DIFFUSERS_MARKS):
        return Contents(unknown=tuple(names), is_diffusers=True)
    bare = _bare_part(header)
    if bare is not None:
        return _sort_bare(names, bare)
    parts: dict[str, dict[str, str]] = {}
    unknown = []
    for name in names:
        located = locate(name)
        if located is None:
            unknown.append(name)
        else:
            part, local = located
            parts.setdefault(part, {})[local] = name
    return Contents(parts=parts, unknown=tuple(unknown))


def locate(name: str) -> tuple[str, str] | None:
    """Find the part and the name inside it of a name of the single-file layout."""
    for prefix, part, inner in PREFIXES:
        if name.startswith(prefix):
            return part, inner + name[len(prefix) :]
    return None


def official_name(part: str, local: str) -> str:
    """Spell a name of one part as the single-file layout does."""
    for inner, prefix in OFFICIAL_PREFIX[part]:
        if local.startswith(inner):
            return prefix + local[len(inner) :]
    raise AssertionError(f"{part} has no place for {local}")


def stream_of(local: str) -> str:
    """Tell which stream of the transformer a parameter serves: video, audio or cross (between the two)."""
    if "_ca_" in local or "audio_to_video_attn" in local or "video_to_audio_attn" in local:
        return "cross"
    names = local.split(".")
    leaf = names[2] if names[0] == "transformer_blocks" else names[0]
    return "audio" if leaf.startswith("audio_") else "video"


def _bare_part(header: Header) -> str | None:
    for mark, part in _BARE_MARKS:
        if any(name.startswith(mark) for name in header.tensors):
            return part
    for name in (
        "encoder.conv_in.conv.weight",
        "decoder.conv_in.conv.weight",
        "encoder.conv_out.conv.weight",
    ):
        if name in header.tensors:  # 3-D convolutions see video, 2-D ones spectrograms
            return VIDEO_VAE if len(header.tensors[name].shape) == 5 else AUDIO_VAE
    if any(name.startswith(("decoder.det_stages.", "decoder.conv_in_x_t.")) for name in header.tensors):
        return VIDEO_VAE
    return None


def _sort_bare(names: Iterable[str], part: str) -> Contents:
    parts: dict[str, dict[str, str]] = {}
    for name in names:
        prefixed = locate(name)
        if part == VOCODER or prefixed is None:
            home, local = part, name
            if part == TRANSFORMER and name.startswith(("video_embeddings_", "audio_embeddings_")):
                home = CONNECTORS
        else:
            home, local = prefixed
        if home == TEXT_TOWER and prefixed is None:
            local = f"model.{name}"
        parts.setdefault(home, {})[local] = name
    return Contents(parts=parts)
