"""Questions about captions: what is asked, and that a context which holds the answers is read."""

import torch
import torch.nn.functional as F

from soundstage.core.types import AV
from soundstage.data.world.scene import Scene
from soundstage.training.reading import UNASKED, FactReader, answers_of

NUM_SCENES = 60
DIM = 16


def scenes(*kinds: str) -> list[Scene]:
    return [Scene.from_seed(seed, kinds=kinds) for seed in range(NUM_SCENES)]


def test_every_answer_is_a_fact_of_the_scene() -> None:
    for scene in scenes("bounce"):
        answers = answers_of(scene)
        assert answers["direction"] == scene.facts()["direction"]
        assert answers["shape"] == scene.subject.shape
        assert not any(name.startswith("events") for name in answers)


def test_a_phrase_is_asked_place_by_place_and_ends() -> None:
    for scene in scenes("face"):
        answers = answers_of(scene)
        words = scene.facts()["words"].split()
        assert [answers[f"words.{place}"] for place in range(len(words) + 1)] == [*words, ""]
        assert f"words.{len(words) + 1}" not in answers
        assert not any(name.startswith("syllables") for name in answers)


def test_objects_are_asked_about_one_by_one() -> None:
    for scene in scenes("objects"):
        answers = answers_of(scene)
        for place, thing in enumerate(scene.facts()["objects"]):
            assert answers[f"objects.{place}.colour"] == thing["colour"]


def test_what_a_scene_does_not_have_is_not_asked() -> None:
    mixed = [*scenes("bounce"), *scenes("face")]
    reader = FactReader(mixed, DIM, DIM)
    floor = list(reader.answers).index("floor")
    marks = reader.marks(mixed)
    assert (marks[:NUM_SCENES, floor] != UNASKED).all()
    assert (marks[NUM_SCENES:, floor] == UNASKED).all()


def test_a_question_has_several_answers() -> None:
    reader = FactReader(scenes("bounce"), DIM, DIM)
    assert "kind" not in reader.answers
    assert all(len(known) > 1 for known in reader.answers.values())


def test_an_unknown_answer_is_not_asked() -> None:
    known = [scene for scene in scenes("bounce") if scene.subject.colour != "red"]
    reader = FactReader(known, DIM, DIM)
    red = next(scene for scene in scenes("bounce") if scene.subject.colour == "red")
    assert reader.marks([red])[0, list(reader.answers).index("colour")] == UNASKED


def test_answers_are_learnt_where_the_context_holds_them_and_nowhere_else() -> None:
    torch.manual_seed(0)
    chosen = scenes("bounce")
    reader = FactReader(chosen, 2 * DIM, 2 * DIM)
    marks = reader.marks(chosen)
    shape, colour, direction = (list(reader.answers).index(name) for name in ("shape", "colour", "direction"))
    values = F.one_hot(marks[:, [shape, colour]], DIM).float()
    places = torch.eye(2, DIM).expand(
        NUM_SCENES, -1, -1
    )  # the first token says the shape, the second the colour
    tokens = torch.cat([values, places], dim=2)
    optimizer = torch.optim.Adam(reader.parameters(), lr=0.05)
    for _ in range(200):
        loss, _right = reader(AV(tokens, tokens), marks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (reader.streams["video"](tokens).argmax(-1) == marks).float().mean(0)
    assert right[shape] > 0.95
    assert right[colour] > 0.95
    assert right[direction] < 0.9
