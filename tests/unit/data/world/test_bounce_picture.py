"""Pictures: the object is where the motion says, in its colour, on its floor."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from soundstage.data.world.backdrop import SKIES, draw_backdrop
from soundstage.data.world.bounce import COLOURS, FLOOR_TOP, Bounce
from soundstage.data.world.bounce_picture import render_bounces

CPU = torch.device("cpu")
SCENES = [Bounce.from_seed(seed) for seed in range(24)]


def draw(scenes, num_frames=13, height=64, width=64, frame_rate=Fraction(24)):
    return render_bounces(scenes, num_frames=num_frames, height=height, width=width, frame_rate=frame_rate)


def still(scenes, height=64, width=64):
    return draw_backdrop(scenes, height=height, width=width, device=CPU) * 2 - 1


@pytest.fixture(scope="module")
def clips():
    return draw(SCENES)


def cover(clips, scenes):
    """Where each frame differs from the empty stage, without the faint shadow on the floor."""
    difference = (clips - still(scenes)[:, :, None]).abs().amax(1)
    return (difference > 0.35).float()


def test_pixels_are_in_range_and_finite(clips):
    assert clips.shape == (24, 3, 13, 64, 64)
    assert clips.dtype == torch.float32
    assert clips.min() >= -1
    assert clips.max() <= 1
    assert torch.isfinite(clips).all()


def test_the_object_is_drawn_where_the_motion_says():
    scene = replace(SCENES[8], shape="ball", colour="red", background="mint")
    scene = replace(scene, motion=replace(scene.motion, foot=scene.radius))
    clips = draw([scene], num_frames=20)
    mask = cover(clips, [scene])[0]
    mask[:, round(FLOOR_TOP * 64) :] = 0  # the shadow
    grid = torch.arange(64) + 0.5
    for frame in range(20):
        pose = scene.motion.pose(frame / 24)
        if pose.y + scene.radius < FLOOR_TOP - 0.02:
            weight = mask[frame]
            assert float((weight.sum(0) * grid).sum() / weight.sum()) == pytest.approx(pose.x * 64, abs=0.4)
            assert float((weight.sum(1) * grid).sum() / weight.sum()) == pytest.approx(pose.y * 64, abs=0.4)


def test_motion_below_a_pixel_changes_the_picture_smoothly():
    scene = replace(SCENES[8], motion=replace(SCENES[8].motion, velocity_x=0.0, start_x=0.5))
    moved = replace(scene, motion=replace(scene.motion, start_x=0.5 + 0.1 / 64))
    further = replace(scene, motion=replace(scene.motion, start_x=0.5 + 0.2 / 64))
    first, second, third = draw([scene, moved, further], num_frames=1)
    near, far = (second - first).abs().sum(), (third - first).abs().sum()
    assert near > 0
    assert far / near == pytest.approx(2.0, rel=0.3)


def test_edges_are_smooth():
    scene = replace(SCENES[8], background="night", colour="white")
    frame = draw([scene], num_frames=1)[0, :, 0]
    between = ((frame > -0.6) & (frame < 0.6)).float().mean()
    assert between > 0.01


@pytest.mark.parametrize("colour", list(COLOURS))
def test_the_middle_of_the_object_has_its_colour(colour):
    scene = replace(SCENES[8], shape="cube", colour=colour)
    pose = scene.motion.pose(0.0)
    middle = draw([scene], num_frames=1)[0, :, 0, int(pose.y * 64), int(pose.x * 64)]
    rgb = (middle + 1) * 127.5
    distance = {name: float((rgb - torch.tensor(value)).norm()) for name, value in COLOURS.items()}
    assert min(distance, key=distance.get) == colour


def test_colours_are_far_apart_and_far_from_every_background():
    values = {name: torch.tensor(value, dtype=torch.float32) for name, value in COLOURS.items()}
    for name, value in values.items():
        others = [float((value - other).norm()) for key, other in values.items() if key != name]
        assert min(others) > 90, name
        skies = torch.tensor(list(SKIES.values()), dtype=torch.float32).flatten(0, 1)
        assert float((skies - value).norm(dim=-1).min()) > 50, name


def test_the_object_lands_on_the_floor_at_each_event():
    scene = replace(SCENES[2], texture=0.0)
    event = scene.events[0]
    after = draw([scene], num_frames=2, frame_rate=1 / event.time)  # frame 1 is the instant of the impact
    mask = cover(after, [scene])[0, 1]
    lowest = int(mask.amax(1).nonzero().max()) + 1
    assert lowest / 64 == pytest.approx(event.y, abs=2.5 / 64)


def test_the_shadow_darkens_the_floor_most_at_contact():
    scene = SCENES[2]
    frames = draw([scene], num_frames=2, frame_rate=1 / scene.events[0].time)
    dark = (still([scene])[:, :, None] - frames)[0, :, :, 56:58].clamp_min(0).sum((0, 2, 3))
    assert dark[1] > dark[0]


def test_time_is_frames_over_frame_rate():
    scenes = SCENES[:3]
    slow, fast = draw(scenes, num_frames=5, frame_rate=12.0), draw(scenes, num_frames=9, frame_rate=24.0)
    assert torch.equal(slow, fast[:, :, ::2])


@pytest.mark.parametrize("frame_rate", [24, 24.0, Fraction(24)])
def test_a_frame_rate_may_be_any_number(clips, frame_rate):
    assert torch.allclose(draw(SCENES[:2], frame_rate=frame_rate), clips[:2], atol=1e-5)


def test_a_clip_does_not_depend_on_its_batch(clips):
    for row in (0, 5, 17):
        assert torch.allclose(draw([SCENES[row]])[0], clips[row], atol=1e-5)


def test_a_mirrored_scene_is_the_mirrored_picture(clips):
    mirrored = draw([scene.mirrored() for scene in SCENES])
    assert torch.allclose(mirrored, clips.flip(-1), atol=2e-3)


def test_nothing_but_the_object_and_its_shadow_moves(clips):
    changed = (clips - still(SCENES)[:, :, None]).abs().amax((1, 2)) > 1e-4
    assert changed.float().mean() < 0.6
    assert not changed[:, 62:].any()  # the lowest rows are below every object and shadow


@pytest.mark.parametrize("size", [(32, 32), (48, 96), (17, 16)])
def test_any_size_can_be_drawn(size):
    height, width = size
    scenes = [Bounce.from_seed(seed, aspect=width / height) for seed in range(10)]
    clips = draw(scenes, num_frames=3, height=height, width=width)
    assert clips.shape == (10, 3, 3, height, width)
    outside = (clips - still(scenes, height, width)[:, :, None]).abs().amax((1, 2, 3, 4))
    assert (outside > 0.3).all()  # there is an object in each


def test_a_larger_picture_shows_the_same_scene():
    scenes = SCENES[:4]
    small, large = draw(scenes, num_frames=2), draw(scenes, num_frames=2, height=128, width=128)
    shrunk = torch.nn.functional.avg_pool3d(large, (1, 2, 2))
    assert (shrunk - small).abs().mean() < 0.03
