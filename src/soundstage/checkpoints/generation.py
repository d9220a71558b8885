"""What a model generation brings besides tensors: sampling defaults, text encoder, allowed gaps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ImageScaling = Literal["plain", "smooth"]


@dataclass(frozen=True, kw_only=True)
class StreamGuidance:
    """Guidance scales of one stream; the values here switch every term off."""

    guidance_scale: float = 1.0
    stg_scale: float = 0.0
    modality_scale: float = 1.0
    guidance_rescale: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """How to sample when the request does not say."""

    num_inference_steps: int
    schedule: str  # "shifted" or "distilled"
    sampler: str  # a name in SAMPLERS
    video: StreamGuidance = field(default_factory=StreamGuidance)
    audio: StreamGuidance = field(default_factory=StreamGuidance)
    stg_blocks: tuple[int, ...] = ()
    height: int = 512
    width: int = 768
    num_frames: int = 121
    frame_rate: float = 24.0
    longest: float = 20.0  # seconds after which no latent frame begins: how far positions reach


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generation of the model; everything that shapes a tensor is in the file's own header instead."""

    name: str  # "2.3"
    version: tuple[int, ...]  # the first `model_version` it applies to
    presets: Mapping[str, SamplingDefaults]  # "dev", "distilled", "hq"
    image_crf: int  # H.264 quality at which conditioning images are re-compressed
    image_scaling: ImageScaling = "plain"  # how they are brought to the size of the clip
    latents: str  # generations whose latents one VAE reads carry the same word here
    text_encoder: str  # where the text encoder comes from
    text_encoder_inside: bool = False  # part of the checkpoint itself
    reads_gemma_3: bool = True  # the only kind of text encoder that is implemented
    unused_tensors: tuple[str, ...] = ()  # may stand in the file, are not loaded; official names
    optional_tensors: tuple[str, ...] = ()  # may be absent from the file; official names

    @property
    def title(self) -> str:
        """Name for people."""
        return f"LTX-{self.name}" if self.version else self.name
