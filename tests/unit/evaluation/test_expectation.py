import random

import pytest

from soundstage.data.world.bounce import Bounce
from soundstage.data.world.bounce_caption import describe_bounce
from soundstage.evaluation.expectation import expected_of


def truth(scene):
    return {
        "kind": "bounce",
        "colour": scene.colour,
        "shape": scene.shape,
        "size": scene.size,
        "material": scene.floor,
        "direction": scene.direction,
    }


def test_everything_read_from_world_captions_is_true():
    for seed in range(400):
        scene = Bounce.from_seed(seed)
        caption = describe_bounce(scene, random.Random(seed))
        expected = expected_of(caption)
        assert expected.items() <= truth(scene).items(), caption


def test_colour_shape_and_material_are_always_read():
    for seed in range(200):
        caption = describe_bounce(Bounce.from_seed(seed), random.Random(seed))
        assert {"colour", "shape", "material"} <= expected_of(caption).keys(), caption


def test_size_and_direction_are_read_where_they_are_said():
    captions = [describe_bounce(Bounce.from_seed(seed), random.Random(seed)) for seed in range(300)]
    for name, words in (
        ("size", ("small ", "little ", "medium ", "large ")),
        ("direction", ("the left", "the right", "to left", "straight", "in one place", "from above")),
    ):
        for caption in captions:
            assert (name in expected_of(caption)) >= any(word in caption for word in words), caption


@pytest.mark.parametrize(
    ("caption", "absent"),
    [
        ("a red ball bounces on a big drum", "size"),
        ("a red ball bounces on a wooden floor", "size"),
        ("a red ball bounces on a wooden floor", "direction"),
        ("something happens", "colour"),
    ],
)
def test_what_is_not_said_is_not_expected(caption, absent):
    assert absent not in expected_of(caption)


def test_colour_of_the_room_is_not_the_colour_of_the_object():
    assert expected_of("in a green room, a pink star hops on a glass plate")["colour"] == "pink"


def test_ring_that_sounds_is_no_shape():
    assert expected_of("a white cube hits a metal floor with a metallic ring")["shape"] == "cube"


def test_any_prompt_can_be_read():
    assert expected_of("") == {}
    assert expected_of("A Small BLUE Sphere lands on steel floor") == {
        "kind": "bounce",
        "colour": "blue",
        "shape": "ball",
        "size": "small",
    }
