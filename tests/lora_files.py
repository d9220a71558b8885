"""Small random LoRAs, written in every form that is read.

`draw("2.3")` makes the factors of some layers of a tiny model, `write(path, factors, form)` spells them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import tiny
from soundstage.checkpoints.save import write_safetensors

FORMS = ("official", "ComfyUI", "diffusers", "PEFT", "kohya")

# Written out here once more, so that the tests share no table with the code.
DIFFUSERS = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single.": "time_embed.",
    "audio_adaln_single.": "audio_time_embed.",
    "prompt_adaln_single.": "prompt_adaln.",
    "av_ca_a2v_gate_adaln_single.": "av_cross_attn_video_a2v_gate.",
    "av_ca_v2a_gate_adaln_single.": "av_cross_attn_audio_v2a_gate.",
    "av_ca_video_scale_shift_adaln_single.": "av_cross_attn_video_scale_shift.",
    "av_ca_audio_scale_shift_adaln_single.": "av_cross_attn_audio_scale_shift.",
}
TARGETS = (
    "patchify_proj",
    "audio_proj_out",
    "adaln_single.emb.timestep_embedder.linear_2",
    "av_ca_a2v_gate_adaln_single.linear",
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.1.audio_attn2.to_out.0",
    "transformer_blocks.1.audio_to_video_attn.to_k",
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.1.audio_ff.net.2",
)


@dataclass(frozen=True)
class Factors:
    """What a LoRA says about one layer."""

    down: Tensor
    up: Tensor
    alpha: float | None = None
    magnitude: Tensor | None = None

    @property
    def product(self) -> Tensor:
        """Alpha over rank times up times down, in float64."""
        scale = 1.0 if self.alpha is None else self.alpha / len(self.down)
        return scale * (self.up.double() @ self.down.double())


def shapes(network: nn.Module | str) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of all linear layers of a network, or of a tiny model's transformer."""
    if isinstance(network, str):
        network = tiny.modules(network)["transformer"]
    linears = ((name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear))
    return {name: (m.out_features, m.in_features) for name, m in linears}


def draw(
    network: nn.Module | str | Mapping[str, tuple[int, int]],
    targets: Iterable[str] = TARGETS,
    *,
    rank: int = 3,
    seed: int = 0,
    alpha: float | None = None,
    size: float = 0.3,
    magnitudes: bool = False,
) -> dict[str, Factors]:
    """Draw the factors of some layers; the product is about `size` as large as a weight."""
    generator = torch.Generator().manual_seed(seed)
    given, drawn = network if isinstance(network, Mapping) else shapes(network), {}
    for name in targets:
        outputs, inputs = given[name]
        down = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        up = size * torch.randn(outputs, rank, generator=generator) / rank**0.5
        lengths = 1 + 0.2 * torch.rand(outputs, generator=generator) if magnitudes else None
        drawn[name] = Factors(down, up, alpha, lengths)
    return drawn


def write(path: Path, factors: Mapping[str, Factors], form: str = "official", **metadata: object) -> Path:
    """Write a LoRA."""
    tensors = {}
    for name, layer in factors.items():
        stem = spell(name, form)
        down, up, magnitude = {
            "official": ("lora_A.weight", "lora_B.weight", "dora_scale"),
            "ComfyUI": ("lora_down.weight", "lora_up.weight", "dora_scale"),
            "diffusers": ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
            "PEFT": (
                "lora_A.default.weight",
                "lora_B.default.weight",
                "lora_magnitude_vector.default.weight",
            ),
            "kohya": ("lora_down.weight", "lora_up.weight", "dora_scale"),
        }[form]
        tensors |= {f"{stem}.{down}": layer.down, f"{stem}.{up}": layer.up}
        if layer.alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(layer.alpha)
        if layer.magnitude is not None:
            column = layer.magnitude if form in ("diffusers", "PEFT") else layer.magnitude[:, None]
            tensors[f"{stem}.{magnitude}"] = column
    write_safetensors(path, tensors, {"format": "pt", **metadata})
    return path


def spell(name: str, form: str) -> str:
    if form == "kohya":
        return "lora_unet_" + name.replace(".", "_")
    if form == "diffusers":
        for ours, theirs in DIFFUSERS.items():
            if name == ours or (ours.endswith(".") and name.startswith(ours)):
                name = theirs + name[len(ours) :]
                break
        return f"transformer.{name}"
    return {"official": "diffusion_model.", "ComfyUI": "diffusion_model.", "PEFT": "base_model.model."}[
        form
    ] + name
