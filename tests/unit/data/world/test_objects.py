"""Objects that roll, collide and hit walls: physics by numbers, moments in picture and sound."""

import itertools
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from soundstage.data.world.bounce import SIZES
from soundstage.data.world.kind import CLIP_SECONDS
from soundstage.data.world.objects import ACTIONS, APART, WALL, WALL_RESTITUTION, Objects, sample_objects
from soundstage.data.world.objects_caption import describe_objects, describe_silent_objects
from soundstage.data.world.objects_picture import render_objects
from soundstage.data.world.objects_sound import sound_objects

RATE = 24_000


def sample(seed, split="train", aspect=1.0):
    return sample_objects(random.Random(seed), split=split, duration=CLIP_SECONDS, aspect=aspect)


SCENES = [sample(seed) for seed in range(120)]
BY_ACTION = {action: [scene for scene in SCENES if scene.action == action] for action in ACTIONS}


def velocity(body, time):
    return (body.x(time + 1e-6) - body.x(time)) / 1e-6


def test_every_action_occurs_with_one_to_three_objects():
    assert all(len(scenes) > 8 for scenes in BY_ACTION.values())
    counts = Counter(len(scene.bodies) for scene in SCENES)
    assert set(counts) == {1, 2, 3}
    assert all(len({body.colour for body in scene.bodies}) == len(scene.bodies) for scene in SCENES)


def test_collisions_keep_momentum_and_energy():
    for scene in BY_ACTION["collide"]:
        for contact in scene.sideways:
            if contact.event.what == "collision":
                one, other = (scene.bodies[index] for index in contact.bodies)
                masses = one.radius**2, other.radius**2
                before, after = (
                    [velocity(body, contact.event.time + shift) for body in (one, other)]
                    for shift in (-1e-4, 1e-4)
                )
                for power in (1, 2):
                    totals = [
                        sum(mass * speed**power for mass, speed in zip(masses, speeds, strict=True))
                        for speeds in (before, after)
                    ]
                    assert totals[0] == pytest.approx(totals[1], abs=1e-6)
                assert contact.event.strength == pytest.approx(before[0] - before[1], abs=1e-6)


def test_objects_touch_when_they_collide_and_never_overlap():
    for scene in BY_ACTION["collide"]:
        for contact in scene.sideways:
            if contact.event.what == "collision":
                poses = [scene.bodies[index].pose(contact.event.time) for index in contact.bodies]
                radii = [scene.bodies[index].radius for index in contact.bodies]
                away = ((poses[0].x - poses[1].x) ** 2 + (poses[0].y - poses[1].y) ** 2) ** 0.5
                assert away == pytest.approx(sum(radii), abs=1e-6)
        for step, (one, other) in itertools.product(range(40), itertools.pairwise(scene.bodies)):
            gap = other.x(step / 16) - one.x(step / 16)
            assert gap >= 2 * (one.radius * other.radius) ** 0.5 - 1e-6


def test_walls_hold_what_rolls_and_slow_it():
    for scene in BY_ACTION["roll"]:
        (body,) = scene.bodies
        for step in range(40):
            assert WALL + body.radius - 1e-9 <= body.x(step / 16) <= 1 - WALL - body.radius + 1e-9
        first = scene.sideways[0].event
        after = abs(velocity(body, first.time + 1e-4))
        assert after == pytest.approx(WALL_RESTITUTION * first.strength, abs=1e-6)
        assert body.pose(0.0).y == pytest.approx(0.86 - body.foot)


def test_what_bounces_off_a_wall_hits_it_at_its_radius():
    for scene in BY_ACTION["rebound"]:
        (body,) = scene.bodies
        thuds = [contact.event for contact in scene.sideways]
        assert thuds
        for event in thuds:
            assert abs(event.x - body.x(event.time)) == pytest.approx(body.radius, abs=1e-6)
            assert event.x == pytest.approx(WALL if event.x < 0.5 else 1 - WALL)
        assert {event.sound for event in scene.events_before(2.0)} == {"thud", scene.floor}


def test_objects_side_by_side_keep_apart():
    for scene in BY_ACTION["several"]:
        for one, other in itertools.pairwise(scene.bodies):
            assert other.x(0.0) - one.x(0.0) > one.radius + other.radius


def test_events_are_far_enough_apart_to_be_told_apart():
    for scene in SCENES:
        times = [event.time for event in scene.events_before(CLIP_SECONDS)]
        assert all(later - earlier >= APART for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("action", ["roll", "collide"])
def test_every_contact_is_heard_at_its_time_to_a_millisecond(action):
    for scene in BY_ACTION[action][:6]:
        sound = sound_objects([scene], duration=CLIP_SECONDS, sample_rate=RATE)[0].abs().amax(0)
        for event in scene.events_before(CLIP_SECONDS - 0.05):
            start = round(event.time * RATE)
            before = sound[max(start - 240, 0) : start].max() if start else torch.tensor(0.0)
            assert sound[start : start + 24].max() > 3 * before + 0.001


def test_a_contact_is_heard_where_it_is_seen():
    for scene in BY_ACTION["roll"][:6]:
        event = scene.sideways[0].event
        start = round(event.time * RATE)
        left, right = sound_objects([scene], duration=event.time + 0.05, sample_rate=RATE)[0, :, start:]
        place = torch.atan2(right.norm(), left.norm()) / (torch.pi / 2)
        assert float(place) == pytest.approx(event.x, abs=0.01)


def test_the_picture_shows_the_touch_in_the_frame_of_the_collision():
    """Red and blue come closest in that frame: the gap between their pixels is gone."""
    for scene in BY_ACTION["collide"][:5]:
        event = next(contact for contact in scene.sideways if contact.event.what == "collision")
        colours = ["green"] * len(scene.bodies)
        for index, colour in zip(event.bodies, ("red", "blue"), strict=True):
            colours[index] = colour
        bodies = tuple(
            replace(body, colour=colour, shape="ball")
            for body, colour in zip(scene.bodies, colours, strict=True)
        )
        painted = replace(scene, bodies=bodies, background="mint", floor="glass", walls=())
        rate = 3 / event.event.time
        clip = render_objects([painted], num_frames=4, height=96, width=96, frame_rate=rate)[0]
        red = (clip[0] > clip[2] + 0.5) & (clip[0] > clip[1] + 0.5)
        blue = (clip[2] > clip[0] + 0.4) & (clip[2] > clip[1] + 0.4)
        columns = torch.arange(96)
        gaps = [
            int(columns[blue[frame].any(0)].min() - columns[red[frame].any(0)].max()) for frame in range(4)
        ]
        assert gaps[3] == min(gaps)
        assert gaps[3] <= 5  # dark rims, and the lower half of a disc beside a larger one
        assert gaps[1] > gaps[3]


def test_a_stripe_turns_as_far_as_the_ball_rolls():
    scene = BY_ACTION["roll"][0]
    (body,) = scene.bodies
    ball = replace(body, shape="ball", colour="white")
    scene = replace(scene, bodies=(ball,))
    clip = render_objects([scene], num_frames=12, height=64, width=64, frame_rate=Fraction(12))[0]
    angles = []
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    for frame in range(6):
        pose = ball.pose(frame / 12)
        dx, dy = columns - pose.x * 64, rows - pose.y * 64
        dark = (dx.square() + dy.square() < (0.7 * ball.radius * 64) ** 2) * (1 - clip[1, frame])
        # Twice the angle of a line, so that it and its opposite agree.
        angles.append(torch.atan2((dark * 2 * dx * dy).sum(), (dark * (dx**2 - dy**2)).sum()))
    turned = torch.stack(angles).diff()
    turned = torch.remainder(turned + torch.pi, 2 * torch.pi) - torch.pi
    wanted = 2 * torch.tensor([ball.x((f + 1) / 12) - ball.x(f / 12) for f in range(5)]) / ball.radius
    assert torch.allclose(turned, torch.remainder(wanted + torch.pi, 2 * torch.pi) - torch.pi, atol=0.2)


def test_captions_name_every_object_its_floor_and_true_sides():
    for seed, scene in enumerate(SCENES):
        caption = describe_objects(scene, random.Random(seed))
        assert all(body.colour in caption for body in scene.bodies)
        assert ("wall" in caption) <= bool(scene.walls) or "in front of" in caption
        if " on the left and " in caption and len(scene.bodies) == 2:
            named_left = caption.split(" on the left and ")[0]
            leftmost = min(scene.bodies, key=lambda body: body.x(0.0))
            assert leftmost.colour in named_left
        if "to the right" in caption or "from the left" in caption:
            assert scene.bodies[0].direction == "right"


def test_silent_captions_speak_of_no_sound():
    for seed, scene in enumerate(SCENES):
        caption = describe_silent_objects(scene, random.Random(seed))
        assert not any(word in caption for word in ("thud", "thump", "clack", "click", "clink", "clang"))


def test_a_wide_and_a_narrow_picture_hold_their_objects():
    for aspect in (0.75, 1.8):
        for seed in range(10):
            scene = sample(seed, aspect=aspect)
            assert isinstance(scene, Objects)
            assert all(0 < body.x(0.0) < aspect for body in scene.bodies)


def test_sizes_are_those_of_the_world():
    assert {body.size for scene in SCENES for body in scene.bodies} == set(SIZES)
