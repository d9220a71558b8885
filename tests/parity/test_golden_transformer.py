"""The transformer against recorded outputs of the reference, for both generations that have them."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from golden_cases import Case, cases, load_case, load_checkpoint
from soundstage.core.types import AV
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.inputs import Perturbation, StreamInput
from soundstage.models.transformer.model import AVTransformer

PREFIX = "model.diffusion_model."
SKIPS = {
    "skip_video_self_attn": "skip_video_self_attention",
    "skip_audio_self_attn": "skip_audio_self_attention",
    "skip_a2v_cross_attn": "skip_a2v",
    "skip_v2a_cross_attn": "skip_v2a",
}


@functools.cache
def load_transformer(checkpoint: str) -> AVTransformer:
    header, tensors = load_checkpoint(checkpoint, PREFIX)
    with torch.device("meta"):
        model = AVTransformer(TransformerConfig.from_header(header["transformer"]))
    own = {name: tensor for name, tensor in tensors.items() if "embeddings_connector" not in name}
    model.load_state_dict(own, assign=True)
    return model.eval()


def stream_input(case: Case, name: str) -> StreamInput | None:
    given = case.inputs
    if f"{name}_latent" not in given:
        return None
    return StreamInput(
        latents=given[f"{name}_latent"],
        timesteps=given[f"{name}_timesteps"],
        sigma=given[f"{name}_sigma"],
        positions=given[f"{name}_positions"],
        context=given[f"{name}_context"],
        context_mask=given.get("context_mask"),
        attention_weights=given.get(f"{name}_attention_mask"),
        enabled=case.params.get("enabled", {}).get(name, True),
    )


def perturbations(params: dict[str, Any]) -> list[Perturbation] | None:
    def blocks(value: str | list[int]):
        return value if value == "all" else frozenset(value)

    items = params.get("perturbations")
    return items and [Perturbation(**{SKIPS[k]: blocks(v) for k, v in item.items()}) for item in items]


def check(case: Case, velocities: AV[Tensor]) -> None:
    for name in ("video", "audio"):
        if f"{name}_velocity" not in case.outputs:
            assert getattr(velocities, name) is None
            continue
        velocity = getattr(velocities, name)
        case.check(f"{name}_velocity", velocity)
        denoised = case.inputs[f"{name}_latent"] - velocity * case.inputs[f"{name}_timesteps"].unsqueeze(-1)
        case.check(f"{name}_denoised", denoised)


@pytest.mark.parametrize("case_id", cases("transformer"))
def test_velocities_match_the_reference(case_id: str):
    case = load_case(case_id)
    model = load_transformer(case.spec["checkpoint"])
    with torch.no_grad():
        velocities = model(
            stream_input(case, "video"), stream_input(case, "audio"), perturbations(case.params)
        )
    check(case, velocities)
