"""The text side against `diffusers`, a black box here, on random weights of other sizes than the fixtures."""

import pytest
import torch

from soundstage.models.text.config import TOKEN_RMS_KEYS, TextConfig
from soundstage.models.text.connectors import TextConnectors

TEXT = {"hidden_size": 12, "num_hidden_layers": 4}
SIZES = {
    "connector_num_attention_heads": 3,
    "connector_attention_head_dim": 4,
    "connector_num_layers": 3,
    "connector_num_learnable_registers": 16,
    "connector_positional_embedding_max_pos": [64],
}
NEWER = {
    **SIZES,
    **TOKEN_RMS_KEYS,
    "connector_attention_head_dim": 8,
    "connector_apply_gated_attention": True,
    "audio_connector_num_attention_heads": 2,
    "audio_connector_attention_head_dim": 10,
}
RENAMED = {
    "video_embeddings_connector": "video_connector",
    "audio_embeddings_connector": "audio_connector",
    "transformer_1d_blocks": "transformer_blocks",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
    "text_embedding_projection.aggregate_embed": "text_proj_in",
    "text_embedding_projection.video_aggregate_embed": "video_text_proj_in",
    "text_embedding_projection.audio_aggregate_embed": "audio_text_proj_in",
}


def reference(model: TextConnectors) -> torch.nn.Module:
    """Build the `diffusers` module with the weights of `model`."""
    connectors = pytest.importorskip("diffusers.pipelines.ltx2.connectors")
    config = model.config
    streams = {
        f"{stream}_connector_{name}": value
        for stream, part in (("video", config.video), ("audio", config.audio))
        for name, value in (
            ("num_attention_heads", part.num_heads),
            ("attention_head_dim", part.head_dim),
            ("num_layers", part.num_layers),
            ("num_learnable_registers", part.num_registers),
        )
    }
    newer = config.features == "token_rms"
    module = connectors.LTX2TextConnectors(
        caption_channels=config.hidden_size,
        text_proj_in_factor=config.num_states,
        **streams,
        video_gated_attn=config.video.gated,
        audio_gated_attn=config.audio.gated,
        connector_rope_base_seq_len=int(config.video.max_position),
        rope_type="split",
        per_modality_projections=newer,
        video_hidden_dim=config.video.dim,
        audio_hidden_dim=config.audio.dim,
        proj_bias=newer,
    )
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    module.load_state_dict(state)
    return module.eval()


@pytest.mark.parametrize("header", [SIZES, NEWER], ids=["2.0", "2.3"])
@torch.no_grad()
def test_contexts_equal_those_of_diffusers(header):
    torch.manual_seed(0)
    model = TextConnectors(TextConfig.from_header(header, TEXT)).eval()
    states = torch.randn(3, 32, 12, 5) * torch.tensor([1.0, 2.0, 5.0, 0.5, 1.0]) + 0.3
    mask = (torch.arange(32) >= torch.tensor([[0], [13], [30]])).long()
    video, audio, _ = reference(model)(states, mask, padding_side="left")
    contexts = model(states, mask)
    torch.testing.assert_close(contexts.video, video, atol=2e-5, rtol=2e-5)  # another order of operations
    torch.testing.assert_close(contexts.audio, audio, atol=2e-5, rtol=2e-5)
