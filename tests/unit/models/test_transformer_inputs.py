"""Perturbations: which items skip what in which block."""

import pytest
import torch
from jaxtyping import TypeCheckError

from soundstage.core.errors import RequestError
from soundstage.models.transformer.inputs import BlockSkips, Perturbation
from transformer_samples import config, stream_input


def test_nothing_is_skipped_without_perturbation():
    assert BlockSkips.of(Perturbation(), 0) == BlockSkips(False, False, False, False)


def test_skips_are_looked_up_by_block():
    isolated = Perturbation(skip_a2v="all", skip_v2a=frozenset([3]), skip_video_self_attention=frozenset([2]))
    assert BlockSkips.of(isolated, 3) == BlockSkips(False, False, True, True)
    assert BlockSkips.of(isolated, 2) == BlockSkips(True, False, True, False)


def test_block_that_does_not_exist_is_named():
    with pytest.raises(RequestError, match="skip_a2v: block 29 does not exist; blocks are 0 to 2"):
        Perturbation(skip_a2v=frozenset([1, 29])).check(3)


@pytest.mark.parametrize("blocks", [frozenset(), frozenset([0, 2]), "all"])
def test_blocks_that_exist_are_accepted(blocks: frozenset | str):
    Perturbation(skip_v2a=blocks).check(3)


def test_one_row_of_positions_serves_the_batch():
    made = stream_input(config("2.0"), "video", batch=3)
    assert made.positions.shape[0] == 1
    assert made.latents.shape[0] == 3


def test_streams_of_another_batch_size_do_not_fit():
    with pytest.raises(TypeCheckError):
        stream_input(config("2.0"), "video", batch=3, sigma=torch.rand(2))
