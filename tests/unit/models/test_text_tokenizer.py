"""Prompts to token ids: one `<bos>`, padding on the left, a warning when something is cut off."""

import json
import logging
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundstage.core.errors import CheckpointError, ConfigError
from soundstage.models.text.tokenizer import BOS, EOS, PAD, UNK, Tokenizer, train_tokenizer

CAPTIONS = [
    f"a {size} {colour} {shape} bounces on a {floor} floor, then rolls to the {side}"
    for size in ("small", "large")
    for colour in ("red", "blue", "yellow")
    for shape in ("ball", "cube")
    for floor in ("wooden", "metal", "glass")
    for side in ("left", "right")
]
CONTENT = train_tokenizer(CAPTIONS, 400)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(CONTENT, max_length=32)


def with_template(content: bytes) -> bytes:
    """Let the file itself put `<bos>` in front, and pad and truncate, as files on the Hub may do."""
    data = json.loads(content)
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": BOS, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [2], "tokens": [BOS]}},
    }
    data["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    data["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": PAD,
    }
    return json.dumps(data).encode()


def test_special_tokens_have_gemmas_ids():
    vocab = json.loads(CONTENT)["model"]["vocab"]
    assert [vocab[name] for name in (PAD, EOS, BOS, UNK)] == [0, 1, 2, 3]


def test_a_prompt_has_one_bos_no_eos_and_padding_on_the_left(tokenizer):
    tokens = tokenizer.tokenize(["a red ball", "a large blue cube bounces"])
    assert tokens.input_ids.shape == tokens.attention_mask.shape == (2, 32)
    for ids, mask in zip(tokens.input_ids, tokens.attention_mask, strict=True):
        words = int(mask.sum())
        assert mask.tolist() == [0] * (32 - words) + [1] * words
        assert (ids[: 32 - words] == tokenizer.pad_id).all()
        assert ids[32 - words] == tokenizer.bos_id
        assert not torch.isin(ids[33 - words :], torch.tensor([0, 1, 2])).any()


def test_files_with_and_without_a_bos_template_give_the_same_ids(tokenizer):
    other = Tokenizer.from_bytes(with_template(CONTENT), max_length=32)
    assert other.ids(CAPTIONS[0]) == tokenizer.ids(CAPTIONS[0])
    assert other.tokenize([""]).input_ids.tolist() == tokenizer.tokenize([""]).input_ids.tolist()


def test_a_bos_in_the_prompt_is_not_doubled(tokenizer):
    assert tokenizer.ids("<bos>a red ball") == tokenizer.ids("a red ball")


def test_the_empty_prompt_is_bos_alone(tokenizer):
    assert tokenizer.ids("") == tokenizer.ids(" \n\t ") == [tokenizer.bos_id]


def test_surrounding_whitespace_and_case_do_not_matter(tokenizer):
    assert tokenizer.ids("  A Red BALL\n") == tokenizer.ids("a red ball")


def test_frequent_words_are_single_tokens(tokenizer):
    assert len(tokenizer.ids("a red ball bounces on a metal floor")) == 9


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_text_encodes_without_unknown_tokens(text):
    tokenizer = Tokenizer.from_bytes(CONTENT)
    ids = tokenizer.ids(text)
    assert ids[0] == tokenizer.bos_id
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert 3 not in ids or UNK in text


def test_a_long_prompt_keeps_its_beginning_and_says_what_was_dropped(tokenizer, caplog):
    prompt = "word " * 2000
    whole = tokenizer.ids(prompt)
    with caplog.at_level(logging.WARNING):
        tokens = tokenizer.tokenize([prompt])
    assert tokens.input_ids[0].tolist() == whole[:32]
    assert tokens.attention_mask.all()
    assert f"{len(whole)} tokens" in caplog.text
    assert f"the last {len(whole) - 32} were dropped" in caplog.text


def test_a_prompt_that_just_fits_is_not_warned_about(tokenizer, caplog):
    short = Tokenizer.from_bytes(CONTENT, max_length=len(tokenizer.ids("a red ball")))
    assert short.tokenize(["a red ball"]).attention_mask.all()
    assert not caplog.records


def test_no_prompts_give_an_empty_batch(tokenizer):
    assert tokenizer.tokenize([]).input_ids.shape == (0, 32)


def test_training_is_deterministic():
    assert train_tokenizer(iter(CAPTIONS), 400) == CONTENT


def test_the_vocabulary_holds_every_byte_and_stays_in_its_limit():
    assert Tokenizer.from_bytes(train_tokenizer([], 260)).vocab_size == 260
    assert Tokenizer.from_bytes(CONTENT).vocab_size <= 400
    assert len(Tokenizer.from_bytes(train_tokenizer([], 260)).ids(string.printable.strip())) > 90


def test_a_vocabulary_without_room_for_bytes_is_an_error():
    with pytest.raises(ConfigError, match="vocab_size=200 is too small; at least 260"):
        train_tokenizer(CAPTIONS, 200)


def test_its_bytes_are_kept_as_they_were(tokenizer, tmp_path):
    assert tokenizer.to_bytes() == CONTENT
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    again = Tokenizer.from_directory(tmp_path)
    assert again.max_length == 1024
    assert again.ids(CAPTIONS[3]) == tokenizer.ids(CAPTIONS[3])


def test_a_directory_without_tokenizer_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_directory(tmp_path)


def test_bytes_that_are_no_tokenizer_are_an_error():
    with pytest.raises(CheckpointError, match=r"not a tokenizer\.json"):
        Tokenizer.from_bytes(b"\x00\x01")


def test_a_tokenizer_of_another_family_is_an_error():
    with pytest.raises(CheckpointError, match="no <bos> token; a Gemma tokenizer is needed"):
        Tokenizer.from_bytes(CONTENT.replace(b"<bos>", b"<cls>"))


def test_without_pad_token_eos_pads():
    assert Tokenizer.from_bytes(CONTENT.replace(b"<pad>", b"<fill>")).pad_id == 1


def test_a_length_without_room_for_text_is_an_error():
    with pytest.raises(ConfigError, match="max_length=1"):
        Tokenizer.from_bytes(CONTENT, max_length=1)
