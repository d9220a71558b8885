"""The transformer against another implementation, diffusers, on the same tiny random weights."""

import warnings

import pytest
import torch
from torch import Tensor

from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.inputs import Perturbation, StreamInput
from soundstage.models.transformer.model import AVTransformer

HEADER = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 12,
    "audio_cross_attention_dim": 24,
    "num_layers": 3,
    "in_channels": 6,
    "out_channels": 6,
    "audio_in_channels": 8,
    "audio_out_channels": 8,
}
GENERATIONS = {
    "2.0": {"caption_channels": 20},
    "2.3": {
        "caption_proj_before_connector": True,
        "apply_gated_attention": True,
        "cross_attention_adaln": True,
    },
}
GENERATIONS["2.5"] = {**GENERATIONS["2.3"], "ff_bias": False, "use_keyframes_abs_pos_embedding": True}
# From our names to diffusers', in this order.
RENAMING = {
    "audio_patchify_proj": "audio_proj_in",
    "patchify_proj": "proj_in",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "prompt_adaln_single": "prompt_adaln",
    "adaln_single": "time_embed",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}  # float32, another order of operations


def rename(name: str) -> str:
    for ours, theirs in RENAMING.items():
        name = name.replace(ours, theirs)
    return name


def build_pair(generation: str):
    """Build our transformer and diffusers' with the same random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what diffusers warns of on import is not ours to judge
        from diffusers import LTX2VideoTransformer3DModel

    header = HEADER | GENERATIONS[generation]
    ours = AVTransformer(TransformerConfig.from_header(header))
    torch.manual_seed(0)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    newer = generation != "2.0"
    theirs = LTX2VideoTransformer3DModel(
        **HEADER,
        caption_channels=header.get("caption_channels", 20),
        use_prompt_embeddings=not newer,
        gated_attn=newer,
        cross_attn_mod=newer,
        audio_gated_attn=newer,
        audio_cross_attn_mod=newer,
        perturbed_attn=newer,
        ff_bias=header.get("ff_bias", True),
        use_keyframes_abs_pos_embedding=header.get("use_keyframes_abs_pos_embedding", False),
        rope_type="split",
    )
    theirs.load_state_dict({rename(k): v for k, v in ours.state_dict().items()})
    return ours.eval(), theirs.eval()


def make_inputs(generation: str) -> tuple[StreamInput, StreamInput]:
    torch.manual_seed(1)
    sigma = torch.tensor([0.83, 0.4])
    text = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    widths = (20, 20) if generation == "2.0" else (32, 24)
    streams = []
    for n, channels, width, axes in ((8, 6, widths[0], 3), (6, 8, widths[1], 1)):
        starts = torch.rand(2, axes, n, 1) * torch.tensor([4.0, 300, 300])[:axes, None, None]
        streams.append(
            StreamInput(
                latents=torch.randn(2, n, channels),
                timesteps=sigma[:, None].expand(2, n),
                sigma=sigma,
                positions=torch.cat([starts, starts + 1], dim=-1),
                context=torch.randn(2, 5, width),
                context_mask=text,
                keyframe_mask=torch.zeros(2, n, 1),  # diffusers stores keyframe embeddings without using them
            )
        )
    return streams[0], streams[1]


def call_theirs(model, video: StreamInput, audio: StreamInput, **kwargs) -> tuple[Tensor, Tensor]:
    scale = 1000  # diffusers wants noise levels multiplied already
    return model(
        hidden_states=video.latents,
        audio_hidden_states=audio.latents,
        encoder_hidden_states=video.context,
        audio_encoder_hidden_states=audio.context,
        timestep=video.timesteps * scale,
        audio_timestep=audio.timesteps * scale,
        sigma=video.sigma * scale,
        audio_sigma=audio.sigma * scale,
        encoder_attention_mask=video.context_mask,
        audio_encoder_attention_mask=audio.context_mask,
        video_coords=video.positions,
        audio_coords=audio.positions,
        return_dict=False,
        **kwargs,
    )


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.no_grad()
def test_velocities_equal_those_of_diffusers(generation: str):
    ours, theirs = build_pair(generation)
    video, audio = make_inputs(generation)
    velocities = ours(video, audio)
    expected = call_theirs(theirs, video, audio)
    torch.testing.assert_close(velocities.video, expected[0], **TOLERANCE)
    torch.testing.assert_close(velocities.audio, expected[1], **TOLERANCE)


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.no_grad()
def test_isolated_streams_equal_those_of_diffusers(generation: str):
    ours, theirs = build_pair(generation)
    video, audio = make_inputs(generation)
    velocities = ours(video, audio, [Perturbation(skip_a2v="all", skip_v2a="all")] * 2)
    expected = call_theirs(theirs, video, audio, isolate_modalities=True)
    torch.testing.assert_close(velocities.video, expected[0], **TOLERANCE)
    torch.testing.assert_close(velocities.audio, expected[1], **TOLERANCE)


@torch.no_grad()
def test_value_passthrough_equals_that_of_diffusers():
    ours, theirs = build_pair("2.3")
    video, audio = make_inputs("2.3")
    stg = Perturbation(skip_video_self_attention=frozenset([1]), skip_audio_self_attention=frozenset([1]))
    velocities = ours(video, audio, [stg, stg])
    expected = call_theirs(theirs, video, audio, spatio_temporal_guidance_blocks=[1])
    torch.testing.assert_close(velocities.video, expected[0], **TOLERANCE)
    torch.testing.assert_close(velocities.audio, expected[1], **TOLERANCE)
