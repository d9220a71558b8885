"""The table of released layers against the networks themselves, built full size without memory."""

import pytest
import torch
from torch import nn

import tiny
from soundstage.checkpoints.layer_table import GENERATIONS, all_names, released_layers
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.model import AVTransformer

# What tells the generations apart; where a configuration is silent, the reader fills in the released sizes.
SHAPING = (
    "caption_proj_before_connector",
    "apply_gated_attention",
    "cross_attention_adaln",
    "ff_bias",
    "use_keyframes_abs_pos_embedding",
)


def section(generation):
    config = tiny.config(generation)["transformer"]
    return {key: config[key] for key in SHAPING if key in config}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_names_and_shapes_are_those_of_the_full_size_network(generation):
    with torch.device("meta"):
        network = AVTransformer(TransformerConfig.from_header(section(generation)))
    linears = {n: tuple(m.weight.shape) for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    assert released_layers(generation) == linears


def test_names_without_dots_are_still_different():
    assert len({name.replace(".", "_") for name in all_names()}) == len(all_names())
