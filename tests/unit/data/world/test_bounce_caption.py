"""Captions name what is there, in many ways, and nothing else."""

import random
import re
from dataclasses import replace

import pytest

from soundstage.data.world.bounce import BACKGROUNDS, COLOURS, FLOORS, SHAPES, SIZES, Bounce
from soundstage.data.world.bounce_caption import (
    ENTRY_WORDS,
    FLOOR_WORDS,
    NOUNS,
    PLACE_WORDS,
    SENTENCES,
    SIZE_WORDS,
    SOUND_WORDS,
    TERSE,
    TRAVEL_WORDS,
    describe_bounce,
)

SCENES = [Bounce.from_seed(seed) for seed in range(300)]
CAPTIONS = [(scene, describe_bounce(scene, random.Random(seed))) for seed, scene in enumerate(SCENES)]


def words_of(caption):
    return re.findall(r"[a-z]+", caption)


def test_every_attribute_has_words():
    assert set(NOUNS) == set(SHAPES)
    assert set(SIZE_WORDS) == set(SIZES)
    assert set(FLOOR_WORDS) == set(FLOORS) == set(SOUND_WORDS)
    assert set(PLACE_WORDS) == set(BACKGROUNDS)
    assert set(TRAVEL_WORDS) == set(ENTRY_WORDS) == {"left", "right", "down"}


def test_colour_shape_and_floor_are_always_named():
    for scene, caption in CAPTIONS:
        assert scene.colour in words_of(caption)
        assert any(noun in words_of(caption) for noun in NOUNS[scene.shape]), caption
        assert any(floor in caption for floor in (*FLOOR_WORDS[scene.floor], scene.floor)), caption


@pytest.mark.parametrize("table", [NOUNS, SIZE_WORDS, SOUND_WORDS], ids=["shape", "size", "sound"])
def test_no_other_value_of_an_attribute_is_named(table):
    attribute = {id(NOUNS): "shape", id(SIZE_WORDS): "size", id(SOUND_WORDS): "floor"}[id(table)]
    for scene, caption in CAPTIONS:
        others = {
            word for value, words in table.items() if value != getattr(scene, attribute) for word in words
        }
        named = [word for word in others if re.search(rf"\b{word}\b", caption)]
        assert not named or (attribute == "size" and "big drum" in caption), caption


def test_no_other_colour_is_named_but_of_the_wall():
    for scene, caption in CAPTIONS:
        without_place = caption
        for place in PLACE_WORDS[scene.background]:
            without_place = without_place.replace(place, "")
        assert set(words_of(without_place)) & set(COLOURS) == {scene.colour}


def test_motion_is_named_with_the_right_side():
    for scene, caption in CAPTIONS:
        if scene.direction == "down":
            assert not {"left", "right"} & set(words_of(caption))
        for direction in {"left", "right", "down"} - {scene.direction}:
            assert not any(re.search(rf"\b{phrase}$", caption) for phrase in TRAVEL_WORDS[direction])


def test_a_mirrored_scene_gets_the_mirrored_caption():
    swap = {"left": "right", "right": "left"}
    for seed, (scene, caption) in enumerate(CAPTIONS):
        expected = re.sub(r"\b(left|right)\b", lambda match: swap[match[0]], caption)
        assert describe_bounce(scene.mirrored(), random.Random(seed)) == expected


def test_the_article_fits_the_word_after_it():
    orange = replace(SCENES[0], colour="orange")
    for seed in range(200):
        caption = describe_bounce(orange, random.Random(seed))
        assert "a orange" not in caption
        assert not re.search(r"\ban [^aeiou]", caption)


def test_there_are_many_wordings():
    assert len(set(SENTENCES)) >= 12
    assert len(set(TERSE)) >= 3
    assert len({describe_bounce(SCENES[0], random.Random(seed)) for seed in range(300)}) > 80


def test_the_example_prompt_is_one_of_them():
    scene = replace(SCENES[0], colour="red", shape="ball", floor="wood")
    captions = {describe_bounce(scene, random.Random(seed)) for seed in range(3000)}
    assert "a red ball bounces on a wooden floor" in captions
    assert "red ball, wood" in captions


def test_the_vocabulary_is_small_and_lower_case():
    text = " ".join(caption for _, caption in CAPTIONS)
    assert text == text.lower()
    assert len(set(words_of(text))) < 120
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz ,:")


def test_wording_depends_only_on_the_generator():
    assert describe_bounce(SCENES[5], random.Random(1)) == describe_bounce(SCENES[5], random.Random(1))
