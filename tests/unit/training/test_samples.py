"""The world as a source of training samples: chosen kinds, both sides alike, the recipe's own shape."""

import pytest
import torch

from soundstage.core.errors import ConfigError
from soundstage.data.world.kinds import KINDS
from soundstage.training.recipe import DataRecipe
from soundstage.training.samples import WorldSource

CPU = torch.device("cpu")


def source(**changes):
    fields = {"num_frames": 5, "height": 24, "width": 36, "frame_rate": 5.0} | changes
    return WorldSource(DataRecipe(**fields), CPU)


def test_all_kinds_are_drawn_unless_some_are_chosen():
    assert {scene.kind for scene in source().scenes(0, 120)} == set(KINDS)
    chosen = source(kinds=("bounce", "ambience")).scenes(0, 60)
    assert {scene.kind for scene in chosen} == {"bounce", "ambience"}


def test_a_seed_gives_the_same_samples():
    one, again = source().scenes(3, 6), source().scenes(3, 6)
    assert one == again
    assert source().captions(3, one) == source().captions(3, again)
    assert torch.equal(source().render(one), source().render(again))


def test_scenes_have_the_shape_of_the_recipe():
    scenes = source().scenes(1, 8)
    assert {scene.aspect for scene in scenes} == {1.5}
    assert source().render(scenes).shape == (8, 3, 5, 24, 36)
    assert source().sound(scenes, 8000, 0.1).shape == (8, 2, 8800)


def test_held_out_scenes_are_held_out():
    for scene in source().scenes(2, 30, "held_out"):
        assert KINDS[scene.kind].is_held_out(scene.subject)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'objects'"):
        source(kinds=("object",))
