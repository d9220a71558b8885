"""Layers that stay exact are named by patterns; a pattern that names none is an error."""

import pytest

from soundstage.core.errors import RequestError
from soundstage.runtime.quantization.skipping import skipped_layers

LAYERS = [
    f"transformer_blocks.{block}.{layer}"
    for block in range(12)
    for layer in ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj", "audio_ff.net.0.proj")
]


def skipped(*patterns):
    return skipped_layers(LAYERS, patterns, option="quantize_skip")


def test_nothing_is_skipped_unless_asked_for():
    assert skipped() == frozenset()


@pytest.mark.parametrize("pattern", ["transformer_blocks.1", "transformer_blocks.1.", "*_blocks.1"])
def test_a_block_is_all_its_layers_and_no_other_block(pattern):
    assert skipped(pattern) == {name for name in LAYERS if name.startswith("transformer_blocks.1.")}


@pytest.mark.parametrize(
    "pattern", ["transformer_blocks.3.attn1.to_q", "transformer_blocks.3.attn1.to_q.weight"]
)
def test_a_layer_is_named_as_it_or_its_weight_is(pattern):
    assert skipped(pattern) == {"transformer_blocks.3.attn1.to_q"}


def test_patterns_are_those_of_file_names_and_add_up():
    assert skipped("*.ff") == {name for name in LAYERS if ".ff." in name}
    assert len(skipped("transformer_blocks.[0-2]", "transformer_blocks.11.attn1")) == 3 * 4 + 2


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("transformer_blocks.48", r"did you mean 'transformer_blocks\.\d+'"),
        ("transformer_blocks.0.attn.to_q", r"did you mean 'transformer_blocks\.0\.attn1\.to_q'"),
        ("attn1", "names no layer that is quantised"),
        ("", "names no layer that is quantised"),
    ],
)
def test_a_pattern_that_names_nothing_is_an_error_with_the_nearest(pattern, hint):
    with pytest.raises(RequestError, match=hint):
        skipped("transformer_blocks.0", pattern)
