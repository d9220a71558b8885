"""What holds for every kind of scene, whatever it shows."""

import json
import random
import re
import time
from fractions import Fraction

import pytest
import torch

from soundstage.core.errors import ConfigError, RequestError
from soundstage.data.world.caption import SILENT_WORDS, caption_of
from soundstage.data.world.kind import CLIP_SECONDS, Subject
from soundstage.data.world.kinds import KINDS, chosen_kinds
from soundstage.data.world.render import render_video
from soundstage.data.world.sample import World, WorldConfig
from soundstage.data.world.scene import Scene
from soundstage.data.world.synth import synthesise

RATE = 8000
SWAP = {"left": "right", "right": "left"}
SPLITS = ("train", "held_out")


def scenes_of(kind, count=6, split="train", audibility=None):
    """Scenes of one kind, of one audibility if asked; empty where the kind has none such."""
    found = []
    for seed in range(120):
        scene = Scene.from_seed(seed, split, kinds=(kind,))
        if audibility in (None, scene.audibility):
            found.append(scene)
        if len(found) == count:
            break
    return found


def draw(scenes, num_frames=9, size=32, frame_rate=Fraction(6)):
    return render_video(scenes, num_frames=num_frames, height=size, width=size, frame_rate=frame_rate)


def hear(scenes, duration=1.0, rate=RATE):
    return synthesise(scenes, duration=duration, sample_rate=rate)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_always_gives_the_same_scene(kind):
    assert scenes_of(kind) == scenes_of(kind)
    assert len({repr(scene) for scene in scenes_of(kind)}) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_subjects_have_what_the_world_asks_of_them(kind):
    for scene in scenes_of(kind):
        assert isinstance(scene.subject, Subject)
        assert scene.kind == kind
        data = json.loads(json.dumps(scene.to_dict(1.0)))
        assert data["kind"] == kind
        times = [event["time"] for event in data["events"]]
        assert times == sorted(times)
        assert all(0 <= moment < 1.0 for moment in times)


@pytest.mark.parametrize("kind", KINDS)
def test_splits_share_no_combination(kind):
    is_held_out = KINDS[kind].is_held_out
    for seed in range(50):
        assert not is_held_out(Scene.from_seed(seed, kinds=(kind,)).subject)
        assert is_held_out(Scene.from_seed(seed, "held_out", kinds=(kind,)).subject)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_does_not_depend_on_its_batch(kind):
    scenes = scenes_of(kind, 3)
    pixels, waveform = draw(scenes), hear(scenes)
    assert torch.allclose(draw(scenes[1:2])[0], pixels[1], atol=1e-5)
    assert torch.allclose(hear(scenes[1:2])[0], waveform[1], atol=1e-5)


MIRRORED_IN_MEANING = ("clock", "bell", "pad", "xylophone")
"""Low notes stay on the left, hands turn clockwise; `test_instruments` says what is mirrored."""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in MIRRORED_IN_MEANING])
def test_a_mirrored_scene_swaps_the_sides_of_picture_sound_and_words(kind):
    scenes = scenes_of(kind)
    mirrored = [scene.mirrored() for scene in scenes]
    # A hash of a sine and a window's rounding may differ by a pixel's edge.
    assert (draw(scenes).flip(-1) - draw(mirrored)).abs().mean() < 2e-3
    assert torch.allclose(hear(scenes).flip(1), hear(mirrored), atol=1e-4)
    for seed, (scene, other) in enumerate(zip(scenes, mirrored, strict=True)):
        caption = caption_of(scene, random.Random(seed))
        swapped = re.sub(r"\b(left|right)\b", lambda match: SWAP[match[0]], caption)
        assert caption_of(other, random.Random(seed)) == swapped
        for event, opposite in zip(scene.events_before(1.0), other.events_before(1.0), strict=True):
            assert opposite.time == pytest.approx(event.time)
            assert opposite.x == pytest.approx(scene.aspect - event.x)


@pytest.mark.parametrize("kind", KINDS)
def test_sound_stays_below_full_scale_and_goes_on_after_the_clip(kind):
    scenes = scenes_of(kind, 12)
    short, long = hear(scenes, 1.0), hear(scenes, 2.3)
    assert torch.isfinite(long).all()
    assert float(long.abs().max()) <= 0.9
    assert torch.allclose(short, long[..., : short.shape[-1]], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(20, 24), (40, 72)])
def test_any_size_gives_valid_pixels(kind, size):
    height, width = size
    scenes = [Scene.from_seed(seed, kinds=(kind,), aspect=width / height) for seed in range(4)]
    pixels = render_video(scenes, num_frames=3, height=height, width=width, frame_rate=Fraction(3))
    assert pixels.shape == (4, 3, 3, height, width)
    assert pixels.abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_many_plain_and_lower_case(kind):
    captions = {caption_of(scene, random.Random(seed)) for seed, scene in enumerate(scenes_of(kind, 60))}
    assert len(captions) > 25
    assert set("".join(captions)) <= set("abcdefghijklmnopqrstuvwxyz ,:;\"'-")
    assert not any("  " in caption or "{" in caption or caption.endswith(" ") for caption in captions)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.describe_silent])
def test_silent_scenes_are_seen_as_before_and_not_heard(kind):
    scenes = scenes_of(kind, 2, audibility="silent")
    assert scenes
    assert hear(scenes, 2.0).abs().max() == 0
    for scene in scenes:
        normal = Scene(kind=kind, subject=scene.subject)
        assert torch.equal(draw([scene]), draw([normal]))
        caption = caption_of(scene, random.Random(0))
        assert any(caption.endswith(words) for words in SILENT_WORDS)
        assert all(event.seen and not event.heard for event in scene.events_before(2.0))


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.describe_unseen])
def test_what_is_off_screen_is_heard_as_before_and_leaves_the_place_still(kind):
    scenes = scenes_of(kind, 2, audibility="off-screen")
    assert scenes
    for scene in scenes:
        normal = Scene(kind=kind, subject=scene.subject)
        assert torch.equal(hear([scene]), hear([normal]))
        assert all(event.heard and not event.seen for event in scene.events_before(2.0))
        empty, full = draw([scene])[0], draw([normal])[0]
        assert not torch.equal(empty, full)
        if scene.subject.camera.turn == "still":
            assert torch.equal(empty, empty[:, :1].expand_as(empty))


def test_a_mixed_batch_gives_each_scene_what_it_gets_alone():
    scenes = [Scene.from_seed(seed) for seed in range(40)]
    chosen = list({(scene.kind, scene.audibility, scene.layer is None): scene for scene in scenes}.values())
    pixels, waveform = draw(chosen), hear(chosen)
    for row, scene in enumerate(chosen):
        assert torch.allclose(draw([scene])[0], pixels[row], atol=1e-5)
        assert torch.allclose(hear([scene])[0], waveform[row], atol=1e-5)


def test_kinds_can_be_chosen_and_all_occur_by_default():
    drawn = [Scene.from_seed(seed) for seed in range(150)]
    assert {scene.kind for scene in drawn} == set(KINDS)
    assert {scene.audibility for scene in drawn} == {"normal", "silent", "off-screen"}
    assert {Scene.from_seed(seed, kinds=("bounce",)).kind for seed in range(20)} == {"bounce"}
    assert chosen_kinds(()) == tuple(KINDS.values())


def test_plain_scenes_have_nothing_added():
    for seed in range(80):
        scene = Scene.from_seed(seed, plain=True)
        assert scene.audibility == "normal"
        assert scene.layer is None
        assert scene.subject.camera.turn == "still"


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'bounce'"):
        WorldConfig(kinds=("bounse",))


def test_a_narrow_picture_or_no_duration_is_refused():
    with pytest.raises(RequestError, match=r"below 0\.75"):
        Scene.from_seed(0, aspect=0.5)
    with pytest.raises(RequestError, match="positive"):
        Scene.from_seed(0, duration=0.0)


def test_the_world_is_cheap_enough_to_train_on():
    """24 clips of 49 frames of 64 x 64 with sound in half a second of processor time, the best of three."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        world = World(WorldConfig())
        spent = []
        for _ in range(3):
            start = time.process_time()
            world.batch(range(24))
            spent.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(spent) < 0.5
    assert WorldConfig().duration == pytest.approx(CLIP_SECONDS)
