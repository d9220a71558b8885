"""A pendulum clock: the bob swings, and a tick sounds exactly when it turns round."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch

from soundstage.core.types import VideoPixels, Waveform
from soundstage.data.world.camera import STILL, Camera
from soundstage.data.world.damped_sines import Mode
from soundstage.data.world.instruments_drawing import (
    Canvas,
    Colour,
    box,
    disc,
    draw_stages,
    inks,
    per_clip,
    per_frame,
    render_stages,
    rod,
    round_light,
)
from soundstage.data.world.instruments_sound import Blow, mix, scaled
from soundstage.data.world.instruments_stage import (
    Stage,
    heard_only,
    sentence,
    swing_times,
)
from soundstage.data.world.kind import COLOURS, Event, SceneKind, Split, held_out

PACES: dict[str, tuple[float, float]] = {"quick": (0.26, 0.36), "steady": (0.42, 0.55), "slow": (0.66, 0.86)}
"""Pace to the seconds between two ticks."""
PACE_WORDS: dict[str, tuple[str, ...]] = {
    "quick": ("quickly", "quickly", "fast"),
    "steady": ("steadily", "evenly", ""),
    "slow": ("slowly", "slowly", "calmly"),
}
BOBS: dict[str, float] = {"small": 0.085, "medium": 0.108, "large": 0.135}
"""Size to the radius of the bob in picture heights."""
CASES: dict[str, Colour] = {"wooden": (132, 82, 44), "black": (38, 38, 44), "grey": (150, 154, 162)}
FACE, INK, BRASS = (246, 240, 222), (30, 28, 32), (206, 172, 92)

HUB = 0.21  # y of the middle of the face, from which the pendulum hangs
FACE_RADIUS, CASE_HALF, CASE_CORNER = 0.145, 0.185, 0.05
ROD_HALF = 0.014
MARGIN = 0.02  # between the bob and the edge of the picture
TICKS_A_TURN = 12  # of the long hand, which moves on with every tick

TICK = (
    Mode(640.0, 0.30, 0.030),
    Mode(1850.0, 0.34, 0.016),
    Mode(2950.0, 0.22, 0.012),
    Mode(4300.0, 0.14, 0.008),
)
TOCK_PITCH = 0.76  # the tick to the left is lower than that to the right
BOB_PITCH: dict[str, float] = {"small": 1.25, "medium": 1.0, "large": 0.82}
LEVEL = 0.8

SENTENCES = (
    "a clock with a {bob} ticks {pace}",
    "a clock with a {bob} ticks {pace} {side}",
    "a clock ticks {pace}, its {plain} swinging from side to side",
    "{clock} with a {bob} is ticking {pace} {side}",
    "{clock} ticks {pace}, a {bob} swings below it",
    "the {bob} of {clock} swings {pace} {side}, ticking",
    "a {bob} swings {pace} under {clock}, tick tock",
    "tick tock: {clock} with a {bob} {side}",
    "a pendulum clock ticks {pace} {side}, its pendulum is {colour}",
    "a {bob} swings {pace} and ticks at each end",
    "a clip of {clock} ticking {pace}, with a {bob}",
)
SILENT_SENTENCES = (
    "a clock with a {bob} that swings {pace} {side}",
    "the {bob} of a clock swings {pace} {side}",
    "a {bob} swings {pace} under a clock {side}",
)


@dataclass(frozen=True, kw_only=True)
class Clock:
    """One clock with a pendulum that swings like a cosine."""

    colour: str  # of the bob
    size: str  # of the bob
    pace: str
    case: str
    stage: Stage
    x: float  # picture heights, of the point from which the pendulum hangs
    length: float  # picture heights, from there to the middle of the bob
    swing: float  # radians to each side
    first_tick: float  # s, of the first turn to the right
    interval: float  # s between ticks
    hands: float  # turns of the short hand, and where the long one begins
    detune: float

    @property
    def aspect(self) -> float:
        """Picture width over height."""
        return self.stage.aspect

    @property
    def camera(self) -> Camera:
        """A camera that stands."""
        return STILL

    @property
    def reach(self) -> float:
        """How far the middle of the bob goes to each side."""
        return self.length * math.sin(self.swing)

    def angle(self, time: float) -> float:
        """Radians to the right at a time."""
        return self.swing * math.cos(math.pi * (time - self.first_tick) / self.interval)

    def ticks(self, time: float) -> int:
        """How many ticks there were since the first."""
        return math.floor((time - self.first_tick) / self.interval)

    def is_right(self, tick: float) -> bool:
        """Whether the pendulum turns round on the right at a tick."""
        return round((tick - self.first_tick) / self.interval) % 2 == 0

    def events_before(self, duration: float) -> tuple[Event, ...]:
        """Ticks within the first `duration` seconds."""
        low = HUB + self.length * math.cos(self.swing)
        return tuple(
            Event(
                time=time,
                x=self.x + (self.reach if self.is_right(time) else -self.reach),
                y=low,
                strength=1.0,
                sound="tick" if self.is_right(time) else "tock",
                what="tick",
            )
            for time in swing_times(self.first_tick, self.interval, duration)
        )

    def mirrored(self) -> "Clock":
        """Swap left and right; half a swing later it is the same clock, and it still ticks on the right."""
        later = self.first_tick + self.interval
        return replace(
            self,
            stage=self.stage.mirrored(),
            x=self.aspect - self.x,
            first_tick=later if later <= self.interval else self.first_tick - self.interval,
            hands=1 - self.hands,
        )

    def facts(self) -> dict[str, Any]:
        """Attributes as plain data."""
        return {
            "kind": "clock",
            "colour": self.colour,
            "size": self.size,
            "pace": self.pace,
            "case": self.case,
            "background": self.stage.background,
            "side": self.stage.side(self.x),
            "interval": self.interval,
        }


def sample_clock(
    rng: random.Random,
    *,
    split: Split,
    duration: float,  # noqa: ARG001 - the signature of all kinds
    aspect: float,
) -> Clock:
    """Draw a clock whose colour, pace and size belong to `split`."""
    while True:
        colour, pace, size = rng.choice(list(COLOURS)), rng.choice(list(PACES)), rng.choice(list(BOBS))
        if held_out("clock", colour, pace, size) == (split == "held_out"):
            break
    interval = rng.uniform(*PACES[pace])
    length = rng.uniform(0.46, 0.54)
    reach = min(rng.uniform(0.17, 0.26), aspect / 2 - BOBS[size] - MARGIN)
    room = max(reach + BOBS[size], CASE_HALF) + MARGIN
    return Clock(
        colour=colour,
        size=size,
        pace=pace,
        case=rng.choice(list(CASES)),
        stage=Stage.sample(rng, aspect),
        x=rng.uniform(room, max(aspect - room, room)),
        length=length,
        swing=math.asin(reach / length),
        first_tick=rng.uniform(-interval, interval),
        interval=interval,
        hands=rng.random(),
        detune=rng.uniform(0.97, 1.03),
    )


def describe_clock(subject: Clock, rng: random.Random) -> str:
    """Say one of many things that are true of a clock."""
    size = subject.size if subject.size != "medium" and rng.random() < 0.5 else ""
    noun = rng.choice(("pendulum", "pendulum", "bob"))
    case = subject.case if rng.random() < 0.5 else rng.choice(("pendulum", ""))
    return sentence(
        rng,
        SENTENCES,
        subject.stage,
        bob=f"{size} {subject.colour} {noun}",
        plain=f"{subject.colour} {noun}",
        colour=subject.colour,
        clock=f"a {case} clock",
        pace=rng.choice(PACE_WORDS[subject.pace]),
        side=subject.stage.side(subject.x) if rng.random() < 0.7 else "",
    )


def describe_silent_clock(subject: Clock, rng: random.Random) -> str:
    """Say only what is seen."""
    return sentence(
        rng,
        SILENT_SENTENCES,
        subject.stage,
        bob=f"{subject.colour} {rng.choice(('pendulum', 'bob'))}",
        pace=rng.choice(PACE_WORDS[subject.pace]),
        side=subject.stage.side(subject.x) if rng.random() < 0.7 else "",
    )


def describe_unseen_clock(subject: Clock, rng: random.Random) -> str:
    """Say that a clock is heard."""
    heard = rng.choice(("a clock ticks {pace}", "a clock is ticking {pace}", "the tick tock of a clock"))
    return heard_only(rng, subject.stage, heard.format(pace=rng.choice(PACE_WORDS[subject.pace])))


def render_clocks(
    subjects: Sequence[Clock],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: Fraction | float | int,
    device: torch.device | str,
) -> VideoPixels:
    """Draw each clock as a clip; frame k shows time k / frame_rate."""
    device = torch.device(device)
    still = draw_stages([clock.stage for clock in subjects], height, width, device)
    x = per_clip([clock.x for clock in subjects], device)
    left, right = float(x.min()) - CASE_HALF, float(x.max()) + CASE_HALF
    part = Canvas(still).region(left, HUB - CASE_HALF, right, HUB + CASE_HALF)
    off_x, off_y = part.x - x, part.y - HUB
    case = box(off_x, off_y, CASE_HALF, CASE_HALF, CASE_CORNER)
    part.paint(case, inks([CASES[clock.case] for clock in subjects], device))
    part.paint(disc(off_x, off_y, FACE_RADIUS), inks([FACE] * len(subjects), device))
    short = [math.tau * clock.hands for clock in subjects]
    hand = rod(
        off_x,
        off_y,
        per_clip([0.075 * math.sin(turn) for turn in short], device),
        per_clip([-0.075 * math.cos(turn) for turn in short], device),
        0.014,
    )
    part.paint(hand, inks([INK] * len(subjects), device))
    pixels = still.expand(-1, -1, num_frames, -1, -1).contiguous()
    times = [frame / float(frame_rate) for frame in range(num_frames)]
    _draw_long_hand(Canvas(pixels), subjects, times)
    _draw_pendulum(Canvas(pixels), subjects, times)
    return pixels


def sound_clocks(
    subjects: Sequence[Clock],
    *,
    duration: float,
    sample_rate: int,
    device: torch.device | str,
) -> Waveform:
    """Make the ticks, each from where the bob turns round."""
    blows = [
        Blow(
            row=row,
            time=event.time,
            pan=clock.stage.pan(event.x),
            level=LEVEL,
            modes=scaled(
                TICK,
                BOB_PITCH[clock.size] * clock.detune * (TOCK_PITCH if event.sound == "tock" else 1.0),
            ),
        )
        for row, clock in enumerate(subjects)
        for event in clock.events_before(duration)
    ]
    return mix(blows, len(subjects), duration=duration, sample_rate=sample_rate, device=device)


def _draw_long_hand(canvas: Canvas, clocks: Sequence[Clock], times: Sequence[float]) -> None:
    """Move the long hand on with every tick, at once."""
    device = canvas.pixels.device
    turns = [
        [math.tau * (clock.hands * 5 + clock.ticks(time) / TICKS_A_TURN) for time in times]
        for clock in clocks
    ]
    x = per_clip([clock.x for clock in clocks], device)
    angle = per_frame(turns, device)
    left, right = float(x.min()) - FACE_RADIUS, float(x.max()) + FACE_RADIUS
    part = canvas.region(left, HUB - FACE_RADIUS, right, HUB + FACE_RADIUS)
    hand = rod(part.x - x, part.y - HUB, 0.115 * torch.sin(angle), -0.115 * torch.cos(angle), 0.010)
    part.paint(hand, inks([INK] * len(clocks), device))


def _draw_pendulum(canvas: Canvas, clocks: Sequence[Clock], times: Sequence[float]) -> None:
    device = canvas.pixels.device
    angle = per_frame([[clock.angle(time) for time in times] for clock in clocks], device)
    x = per_clip([clock.x for clock in clocks], device)
    length = per_clip([clock.length for clock in clocks], device)
    radius = per_clip([BOBS[clock.size] for clock in clocks], device)
    reach = max(clock.reach + BOBS[clock.size] for clock in clocks)
    low = max(HUB + clock.length + BOBS[clock.size] for clock in clocks)
    part = canvas.region(float(x.min()) - reach, HUB + CASE_HALF, float(x.max()) + reach, low)
    bob_x, bob_y = length * torch.sin(angle), length * torch.cos(angle)
    off_x, off_y = part.x - x, part.y - HUB
    below_case = HUB + CASE_HALF - part.y
    arm = torch.maximum(rod(off_x, off_y, bob_x, bob_y, ROD_HALF), below_case)
    part.paint(arm, inks([BRASS] * len(clocks), device))
    bob = disc(off_x - bob_x, off_y - bob_y, radius)
    colours = inks([COLOURS[clock.colour] for clock in clocks], device)
    part.paint(bob, colours, light=round_light(bob, radius * 0.35))


CLOCK = SceneKind(
    name="clock",
    weight=1.0,
    sample=sample_clock,
    describe=describe_clock,
    render=render_clocks,
    synthesise=sound_clocks,
    is_held_out=lambda clock: held_out("clock", clock.colour, clock.pace, clock.size),
    describe_silent=describe_silent_clock,
    describe_unseen=describe_unseen_clock,
    render_unseen=render_stages,
)
