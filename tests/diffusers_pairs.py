"""Our networks beside those of diffusers with the same weights: for parity tests and benchmarks.

diffusers names some parts differently, groups the blocks of one size in autoencoders under one name, and
leaves the latents' normalisation to its pipelines.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.inputs import StreamInput
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.vocoder.config import GeneratorConfig, VocoderConfig
from soundstage.models.vocoder.model import build_vocoder

# What a generation's header says beside the sizes.
GENERATIONS: dict[str, dict[str, Any]] = {
    "2.0": {"caption_channels": 20},
    "2.3": {
        "caption_proj_before_connector": True,
        "apply_gated_attention": True,
        "cross_attention_adaln": True,
    },
}
GENERATIONS["2.5"] = {**GENERATIONS["2.3"], "ff_bias": False, "use_keyframes_abs_pos_embedding": True}
# From our names to diffusers', in this order.
TRANSFORMER_NAMES = {
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
VOCODER_NAMES = {
    "ups": "upsamplers",
    "resblocks": "resnets",
    "conv_pre": "conv_in",
    "conv_post": "conv_out",
    "act_post": "act_out",
}


def transformer_pair(
    sizes: Mapping[str, Any], generation: str, *, std: float = 0.15, **changes: Any
) -> tuple[AVTransformer, Any]:
    """Build our transformer and diffusers' with the same random weights.

    Args:
        sizes: What both call by the same names.
        changes: Of the generation's header.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what diffusers warns of on import is not ours to judge
        from diffusers import LTX2VideoTransformer3DModel

    header = {**sizes, **GENERATIONS[generation], **changes}
    ours = AVTransformer(TransformerConfig.from_header(header))
    torch.manual_seed(0)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=std)
    newer = generation != "2.0"
    theirs = LTX2VideoTransformer3DModel(
        **sizes,
        caption_channels=header.get("caption_channels", 20),
        use_prompt_embeddings=not newer,
        gated_attn=newer,
        cross_attn_mod=newer,
        audio_gated_attn=newer,
        audio_cross_attn_mod=newer,
        perturbed_attn=True,
        ff_bias=header.get("ff_bias", True),
        use_keyframes_abs_pos_embedding=header.get("use_keyframes_abs_pos_embedding", False),
        rope_type="split",
    )
    theirs.load_state_dict({_renamed(k): v for k, v in ours.state_dict().items()})
    return ours.eval(), theirs.eval()


def call_transformer(
    theirs: Any, video: StreamInput, audio: StreamInput, *, one_level: bool = False, **options: Any
) -> tuple[Tensor, Tensor]:
    """Call diffusers' transformer, which wants noise levels multiplied already.

    Args:
        one_level: All tokens of an item have the first one's level; told once per item, that is faster.
    """
    scale = 1000
    levels = [s.timesteps[:, :1] if one_level else s.timesteps for s in (video, audio)]
    velocities: tuple[Tensor, Tensor] = theirs(
        hidden_states=video.latents,
        audio_hidden_states=audio.latents,
        encoder_hidden_states=video.context,
        audio_encoder_hidden_states=audio.context,
        timestep=levels[0] * scale,
        audio_timestep=levels[1] * scale,
        sigma=video.sigma * scale,
        audio_sigma=audio.sigma * scale,
        encoder_attention_mask=video.context_mask,
        audio_encoder_attention_mask=audio.context_mask,
        video_coords=video.positions,
        audio_coords=audio.positions,
        return_dict=False,
        **options,
    )
    return velocities


def video_vae_pair(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[VideoVAE, Any]:
    """Build both video VAEs with the same random weights; ours normalises with the identity.

    Args:
        ours: Section of a header.
        theirs: The same shape in diffusers' words.
    """
    from diffusers import AutoencoderKLLTX2Video

    torch.manual_seed(0)
    vae = VideoVAE(VideoVAEConfig.from_header(ours)).eval()
    vae.per_channel_statistics.get_buffer("mean-of-means").zero_()
    vae.per_channel_statistics.get_buffer("std-of-means").fill_(1)
    other = AutoencoderKLLTX2Video(**theirs).eval()
    names = other.state_dict()
    missing, unexpected = other.load_state_dict(
        {new: vae.state_dict()[old] for old, new in _vae_names(vae) if new in names}, strict=False
    )
    assert not unexpected
    assert all("latents_" in name for name in missing), missing
    return vae, other


def vocoder_pair(shape: Mapping[str, Any]) -> tuple[nn.Module, Any]:
    """Build both HiFi-GAN vocoders with the same random weights.

    Args:
        shape: Fields of our `GeneratorConfig`.
    """
    from diffusers.pipelines.ltx2 import LTX2Vocoder

    torch.manual_seed(0)
    ours = randomise(build_vocoder(VocoderConfig(generator=GeneratorConfig(**shape))))
    theirs = LTX2Vocoder(
        in_channels=2 * shape["num_mels"],
        hidden_channels=shape["upsample_initial_channel"],
        upsample_kernel_sizes=list(shape["upsample_kernel_sizes"]),
        upsample_factors=list(shape["upsample_rates"]),
        resnet_kernel_sizes=list(shape["resblock_kernel_sizes"]),
        resnet_dilations=[list(dilations) for dilations in shape["resblock_dilation_sizes"]],
    ).eval()
    theirs.load_state_dict(vocoder_names(ours))
    return ours, theirs


def randomise(module: nn.Module) -> nn.Module:
    """Move all weights off their initial values, so that no symmetry hides a mistake."""
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return module.eval()


def vocoder_names(module: nn.Module) -> dict[str, Tensor]:
    """Name the tensors of a vocoder as diffusers does."""
    tensors = {}
    for key, tensor in module.state_dict().items():
        parts = [VOCODER_NAMES.get(part, part) for part in key.split(".")]
        tensors[".".join(parts).replace("downsample.lowpass", "downsample")] = tensor
    return tensors


def _renamed(name: str) -> str:
    for ours, theirs in TRANSFORMER_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _vae_names(vae: VideoVAE) -> list[tuple[str, str]]:
    """Pair our names with diffusers': blocks of one size are one group, its change of size inside."""
    pairs = []
    for name in vae.state_dict():
        half, _, rest = name.partition(".")
        parts = rest.split(".")
        if parts[0] == "down_blocks":
            index = int(parts[1])
            group = "mid_block" if index == 8 else f"down_blocks.{index // 2}"
        elif parts[0] == "up_blocks":
            index = int(parts[1])
            group = "mid_block" if index == 0 else f"up_blocks.{(index - 1) // 2}"
        else:
            pairs.append((name, name))
            continue
        sampler = "downsamplers.0" if half == "encoder" else "upsamplers.0"
        inner = ".".join(parts[2:]).replace("res_blocks", "resnets")
        pairs.append((name, f"{half}.{group}.{inner if 'resnets' in inner else f'{sampler}.{inner}'}"))
    return pairs
