"""Tiny checkpoints in the official layouts, with random weights.

`write_model(path, "2.3")` writes the single file of a generation, `write_pack(folder)` the split files of
2.5, `write_embedded(path)` a model with its own text encoder. The same call gives the same bytes.
"""

import copy
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soundstage.checkpoints import keymap
from soundstage.checkpoints.save import save_checkpoint, write_safetensors
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.text.config import TextConfig
from soundstage.models.text.connectors import TextConnectors
from soundstage.models.text.gemma import GemmaTower, tiny_gemma_config
from soundstage.models.text.tokenizer import train_tokenizer
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.upsampler.config import LatentUpsamplerConfig
from soundstage.models.upsampler.model import LatentUpsampler
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.models.vocoder.model import build_vocoder

VERSIONS = {"2.0": "2.0.0", "2.3": "2.3.0", "2.5": "2.5.0"}
TEXT_SIZE = {"hidden_size": 12, "num_hidden_layers": 2}
CAPTIONS = ("a red ball bounces on a wooden floor", "a small blue cube falls on metal")
MAX_LENGTH = 64  # text positions of the embedded kind

_TRANSFORMER = {
    "_class_name": "AVTransformer3DModel",
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "audio_in_channels": 16,
    "audio_out_channels": 16,
    "caption_channels": 12,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "audio_positional_embedding_max_pos": [20],
    "frequencies_precision": "float64",
    "rope_type": "split",
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 6,
    "connector_num_layers": 1,
    "connector_num_learnable_registers": 16,
    "connector_positional_embedding_max_pos": [4096],
}
_SINCE_2_3 = {
    "apply_gated_attention": True,
    "connector_apply_gated_attention": True,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
    "connector_learnable_registers_std": 1,
    "text_encoder_norm_type": "per_token_rms",
    "connector_attention_head_dim": 12,
    "audio_connector_num_attention_heads": 2,
    "audio_connector_attention_head_dim": 8,
}
_RES = ["res_x", {"num_layers": 1}]
_VAE = {
    "_class_name": "CausalVideoAutoencoder",
    "latent_channels": 4,
    "patch_size": 4,
    "norm_layer": "pixel_norm",
    "latent_log_var": "uniform",
    "timestep_conditioning": False,
    "encoder_base_channels": 4,
    "decoder_base_channels": 4,
    "encoder_blocks": [
        _RES,
        ["compress_all_res", {"multiplier": 2}],
        ["compress_all_res", {"multiplier": 1}],
        ["compress_all_res", {"multiplier": 1}],
    ],
    "decoder_blocks": [
        _RES,
        ["compress_all", {"multiplier": 1, "residual": True}],
        ["compress_all", {"multiplier": 1, "residual": True}],
        ["compress_all", {"multiplier": 2, "residual": True}],
    ],
}
_SMALL_VAE = {  # 8 x 8 pixels, 8 frames
    "encoder_blocks": [
        _RES,
        ["compress_all_res", {"multiplier": 2}],
        ["compress_time_res", {"multiplier": 1}],
        ["compress_time_res", {"multiplier": 1}],
    ],
    "decoder_blocks": [
        _RES,
        ["compress_all", {"multiplier": 2}],
        ["compress_time", {"multiplier": 1}],
        ["compress_time", {"multiplier": 1}],
    ],
}
_AUDIO_VAE = {
    "model": {
        "params": {
            "sampling_rate": 16000,
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 1,
                "in_channels": 2,
                "out_ch": 2,
                "ch": 4,
                "ch_mult": [1, 1, 2],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
        }
    },
    "preprocessing": {
        "audio": {"sampling_rate": 16000, "stereo": True, "causal_padding": 3},
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
    },
}
_GENERATOR = {
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3, 5]],
    "stereo": True,
}
_VOCODER_2_0 = {
    **_GENERATOR,
    "resblock": "1",
    "upsample_rates": [6, 5, 2, 2, 2],
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
}
_AMP = {
    **_GENERATOR,
    "resblock": "AMP1",
    "activation": "snakebeta",
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}
_VOCODER_2_3 = {
    "vocoder": {**_AMP, "upsample_rates": [5, 4, 4, 2], "upsample_kernel_sizes": [11, 8, 8, 4]},
    "bwe": {
        **_AMP,
        "upsample_rates": [6, 5, 4, 2],
        "upsample_kernel_sizes": [12, 11, 8, 4],
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 128,
        "win_size": 128,
        "num_mels": 64,
    },
}


def config(generation: str, *, decodes: bool = False, num_layers: int = 2) -> dict[str, Any]:
    """Make the header's `config` of a generation: "2.0", "2.3", "2.5" or "embedded".

    Args:
        decodes: Make the video VAE wide enough to decode, too; from 2 x 2 latents on.
        num_layers: Of the transformer.
    """
    transformer, vae = _TRANSFORMER | {"num_layers": num_layers}, copy.deepcopy(_VAE)
    if generation != "2.0":
        transformer |= _SINCE_2_3
        vae["spatial_padding_mode"] = "zeros"
    if generation == "2.5":
        transformer |= {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
    if decodes:
        vae["decoder_base_channels"] = 8
    sections = {"transformer": transformer, "vae": vae, "audio_vae": copy.deepcopy(_AUDIO_VAE)}
    sections["vocoder"] = copy.deepcopy(_VOCODER_2_3 if generation in ("2.3", "2.5") else _VOCODER_2_0)
    sections["scheduler"] = {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000}
    if generation == "embedded":
        transformer |= {"patch_size": 2, "in_channels": 16, "out_channels": 16}
        vae |= copy.deepcopy(_SMALL_VAE)
        sections["text_encoder"] = {"max_length": MAX_LENGTH}
    return sections


@functools.cache
def modules(generation: str, *, decodes: bool = False, num_layers: int = 2) -> dict[str, nn.Module]:
    """Build the networks of a generation with random weights, by part."""
    sections = config(generation, decodes=decodes, num_layers=num_layers)
    size = TEXT_SIZE if generation != "embedded" else _text_size()
    parts: dict[str, nn.Module] = {
        keymap.TRANSFORMER: AVTransformer(TransformerConfig.from_header(sections["transformer"])),
        keymap.CONNECTORS: TextConnectors(TextConfig.from_header(sections["transformer"], size)),
        keymap.VIDEO_VAE: VideoVAE(VideoVAEConfig.from_header(sections["vae"])),
        keymap.AUDIO_VAE: AudioVAE(AudioVAEConfig.from_header(sections["audio_vae"])),
        keymap.VOCODER: build_vocoder(VocoderConfig.from_header(sections["vocoder"])),
    }
    if generation == "embedded":
        parts[keymap.TEXT_TOWER] = GemmaTower.from_config(gemma_config())
    for part, module in parts.items():
        randomise(module, f"{generation}/{part}")
    return {part: module.eval().requires_grad_(False) for part, module in parts.items()}


@torch.no_grad()
def randomise(module: nn.Module, seed: str) -> None:
    """Fill every tensor with reproducible noise of a size that keeps activations near one."""
    for name, tensor in module.state_dict().items():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "little"))
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("std-of-means"):
            tensor.copy_(1 + 0.1 * noise.abs())
        elif "norm" in name and tensor.ndim == 1 and name.endswith("weight"):
            tensor.copy_(1 + 0.1 * noise)
        elif tensor.ndim > 1:
            tensor.copy_(noise / max(tensor[0].numel(), 1) ** 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(0.1 * noise)


def gemma_config() -> dict[str, Any]:
    return tiny_gemma_config(vocab_size=320, hidden_size=32, num_layers=2, intermediate_size=48)


@functools.cache
def tokenizer_bytes() -> bytes:
    return train_tokenizer(CAPTIONS * 2, vocab_size=300)


def write_model(
    path: Path,
    generation: str,
    *,
    dtype: torch.dtype | None = None,
    decodes: bool = False,
    **metadata: Any,
) -> Path:
    """Write the single file of a generation, as 2.0 and 2.3 are published."""
    save_checkpoint(
        path,
        modules(generation, decodes=decodes),
        config=config(generation, decodes=decodes),
        model_version=VERSIONS[generation],
        metadata=metadata,
        dtype=dtype,
    )
    return path


def write_embedded(path: Path, *, dtype: torch.dtype | None = None, num_layers: int = 2) -> Path:
    """Write a model with its own text encoder and tokenizer in one file."""
    content = torch.frombuffer(bytearray(tokenizer_bytes()), dtype=torch.uint8)
    save_checkpoint(
        path,
        {**modules("embedded", num_layers=num_layers), keymap.TOKENIZER: {"tokenizer_json": content}},
        config=config("embedded", num_layers=num_layers),
        model_version="2.3.0",
        metadata={"soundstage_model": "embedded", "gemma_config": gemma_config()},
        dtype=dtype,
    )
    return path


def write_gemma(folder: Path, seed: str = "gemma") -> Path:
    """Write a text encoder of the size that the tiny official models were made for."""
    folder.mkdir(parents=True)
    config = tiny_gemma_config(vocab_size=320, hidden_size=12, num_layers=2, intermediate_size=16)
    config |= {"num_attention_heads": 1, "head_dim": 12}
    tower = GemmaTower.from_config(config)
    randomise(tower, seed)
    state = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    write_safetensors(folder / "model.safetensors", state, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(tokenizer_bytes())
    return folder


def write_pack(folder: Path, *, bare_vae: bool = True, decodes: bool = False) -> Path:
    """Write the split files of 2.5, the VAE without its prefix as some are; return the transformer's file."""
    parts, sections = modules("2.5", decodes=decodes), config("2.5", decodes=decodes)
    connectors = parts[keymap.CONNECTORS].state_dict()
    projections = {n: t for n, t in connectors.items() if n.startswith("text_embedding_projection.")}
    vae = parts[keymap.VIDEO_VAE].state_dict()
    files: dict[str, tuple[tuple[str, ...], dict[str, Tensor]]] = {
        "diffusion_models/ltx-2.5-22b-dev-transformer-bf16": (
            ("transformer", "scheduler"),
            official(keymap.TRANSFORMER, parts[keymap.TRANSFORMER].state_dict())
            | official(keymap.CONNECTORS, {n: t for n, t in connectors.items() if n not in projections}),
        ),
        "text_encoders/gemma4-12b-with-proj-ltx-2.5-bf16": ((), official(keymap.CONNECTORS, projections)),
        "vae/ltx-2.5-video-vae-conv-bf16": (
            ("vae",),
            dict(vae) if bare_vae else official(keymap.VIDEO_VAE, vae),
        ),
        "vae/ltx-2.5-audio-vae-bf16": (
            ("audio_vae", "vocoder"),
            official(keymap.AUDIO_VAE, parts[keymap.AUDIO_VAE].state_dict())
            | official(keymap.VOCODER, parts[keymap.VOCODER].state_dict()),
        ),
    }
    for name, (names, tensors) in files.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata: dict[str, Any] = {"model_version": VERSIONS["2.5"]}
        if names:
            metadata["config"] = {name: sections[name] for name in names}
        write_safetensors(path, tensors, metadata)
    return folder / "diffusion_models" / "ltx-2.5-22b-dev-transformer-bf16.safetensors"


def write_lora(path: Path, rank: int = 2) -> Path:
    """Write a LoRA of two layers, as the official ones are laid out."""
    stem = "diffusion_model.transformer_blocks.0.attn1.to_q"
    tensors = {f"{stem}.lora_A.weight": torch.ones(rank, 24), f"{stem}.lora_B.weight": torch.ones(24, rank)}
    write_safetensors(path, tensors, {"format": "pt"})
    return path


def write_upsampler(path: Path, *, channels: int = 4, **options: Any) -> Path:
    """Write a latent upsampler for the tiny models, x2 in space unless `options` say otherwise."""
    given = {"in_channels": channels, "mid_channels": 32, "num_blocks_per_stage": 1, **options}
    config = LatentUpsamplerConfig(**given)
    network = LatentUpsampler(config)
    randomise(network, f"upsampler/{sorted(options.items())}")
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    write_safetensors(path, tensors, {"config": config.to_header()})
    return path


def official(part: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Spell the names of a state dict as the single file does."""
    return {keymap.official_name(part, name): tensor for name, tensor in state.items()}


def _text_size() -> dict[str, int]:
    text = gemma_config()
    return {"hidden_size": text["hidden_size"], "num_hidden_layers": text["num_hidden_layers"]}
