"""The whole text side on a tiny tower: contexts for prompts, for generation and for training."""

import copy
import logging

import pytest
import torch

from soundstage.core.errors import CheckpointError
from soundstage.models.text.config import TOKEN_RMS_KEYS, TextConfig
from soundstage.models.text.connectors import TextConnectors
from soundstage.models.text.gemma import GemmaTower, tiny_gemma_config
from soundstage.models.text.text_encoder import TextEncoder
from soundstage.models.text.tokenizer import Tokenizer, train_tokenizer

CAPTIONS = [
    f"a {colour} ball bounces on a {floor} floor"
    for colour in ("red", "blue")
    for floor in ("wooden", "metal")
]
HEADER = {
    **TOKEN_RMS_KEYS,
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 16,
    "connector_num_layers": 1,
    "connector_num_learnable_registers": 8,
    "connector_apply_gated_attention": True,
    "audio_connector_attention_head_dim": 8,
}


def parts(max_length=16, **gemma):
    tokenizer = Tokenizer.from_bytes(train_tokenizer(CAPTIONS, 300), max_length)
    config = tiny_gemma_config(tokenizer.vocab_size, hidden_size=32, num_layers=2, intermediate_size=32)
    torch.manual_seed(0)
    tower = GemmaTower.from_config(config | gemma)
    return tokenizer, tower, TextConnectors(TextConfig.from_header(HEADER, config))


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(*parts()).eval()


def test_each_prompt_becomes_one_context_per_stream(encoder):
    contexts = encoder.encode(CAPTIONS)
    assert contexts.video.shape == (4, 16, 32)
    assert contexts.audio.shape == (4, 16, 16)
    assert not contexts.video.requires_grad


def test_different_prompts_have_different_contexts(encoder):
    video = encoder.encode([*CAPTIONS, ""]).video
    for i in range(5):
        for j in range(i):
            assert (video[i] - video[j]).abs().max() > 1e-4


def test_a_context_depends_on_nothing_but_its_prompt(encoder):
    together = encoder.encode(CAPTIONS)
    alone = encoder.encode([CAPTIONS[2]])
    assert torch.equal(together.video[2:3], alone.video)
    assert torch.equal(together.audio[2:3], alone.audio)


def test_the_empty_prompt_is_legal(encoder):
    contexts = encoder.encode([""])
    assert contexts.video.isfinite().all()
    assert torch.equal(contexts.video, encoder.encode(["  "]).video)


def test_a_long_prompt_is_cut_with_a_warning(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        contexts = encoder.encode(["a red ball " * 700])
    assert contexts.video.shape == (1, 16, 32)
    assert "were dropped" in caplog.text


def test_training_on_padded_batches_sees_what_generation_sees(encoder):
    tokens = encoder.tokenizer.tokenize(CAPTIONS)
    batch = encoder(tokens.input_ids, tokens.attention_mask)
    contexts = encoder.encode(CAPTIONS)
    torch.testing.assert_close(batch.video, contexts.video, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batch.audio, contexts.audio, atol=1e-5, rtol=1e-5)


def test_tower_and_connectors_learn_together():
    encoder = TextEncoder(*parts())
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    tokens = encoder.tokenizer.tokenize(CAPTIONS)
    wanted = torch.tensor([1.0, -1.0, 1.0, -1.0])  # wooden or metal
    losses = []
    for _ in range(30):
        contexts = encoder(tokens.input_ids, tokens.attention_mask)
        said = contexts.video[..., 0].mean(1) + contexts.audio[..., 0].mean(1)
        loss = (said - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_it_runs_in_bfloat16(encoder):
    coarse = TextEncoder(*parts()).to(torch.bfloat16).eval()
    contexts = coarse.encode(CAPTIONS)
    assert contexts.video.dtype == contexts.audio.dtype == torch.bfloat16
    exact = encoder.encode(CAPTIONS)
    assert (contexts.video.float() - exact.video).abs().mean() < 0.02  # of unit size, with 8 bits


def test_a_bfloat16_tower_feeds_float32_connectors():
    tokenizer, tower, connectors = parts()
    contexts = TextEncoder(tokenizer, tower.to(torch.bfloat16), connectors).encode(CAPTIONS[:1])
    assert contexts.video.dtype == torch.float32


def test_a_tower_of_another_size_is_an_error_that_names_both():
    with pytest.raises(CheckpointError, match=r"4 hidden states of width 32; .* 3 of width 32"):
        TextEncoder(*parts(num_hidden_layers=3, layer_types=["full_attention"] * 3))


def test_a_tokenizer_with_more_tokens_than_the_tower_is_an_error():
    with pytest.raises(CheckpointError, match="the text encoder 100"):
        TextEncoder(*parts(vocab_size=100))


def test_a_text_length_that_registers_cannot_fill_is_an_error():
    with pytest.raises(CheckpointError, match="text length 20 is no multiple of the 8 registers"):
        TextEncoder(*parts(max_length=20))


def test_a_copy_encodes_the_same(encoder):
    assert torch.equal(copy.deepcopy(encoder).encode(CAPTIONS).video, encoder.encode(CAPTIONS).video)
