"""A bell that swings and rings: the clapper meets its side at a known moment, and there it sounds and shines.

Source of the partials: the bell founder's names and ratios, such as in Rossing & Perrin 1987, "Vibrations of
bells": hum, prime, tierce, quint, nominal.
"""

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
    box,
    disc,
    draw_stages,
    inks,
    per_clip,
    per_frame,
    render_stages,
)
from soundstage.data.world.instruments_sound import Blow, mix, scaled
from soundstage.data.world.instruments_stage import (
    Stage,
    heard_only,
    sentence,
    swing_times,
)
from soundstage.data.world.kind import COLOURS, Event, SceneKind, Split, held_out

PACES: dict[str, tuple[float, float]] = {"quick": (0.30, 0.40), "steady": (0.46, 0.60), "slow": (0.70, 0.90)}
"""Pace to the seconds between two strokes."""
PACE_WORDS: dict[str, tuple[str, ...]] = {
    "quick": ("quickly", "fast", "wildly"),
    "steady": ("steadily", "evenly", ""),
    "slow": ("slowly", "slowly", "calmly"),
}
SIZES: dict[str, float] = {"small": 0.34, "medium": 0.44, "large": 0.55}
"""Size to the height of the bell in picture heights."""
PITCHES: dict[str, float] = {"small": 740.0, "medium": 466.0, "large": 294.0}  # Hz of the prime
PITCH_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("high", "bright"),
    "medium": ("clear", ""),
    "large": ("deep", "low"),
}
BEAM, CLAPPER = (92, 62, 40), (44, 40, 44)

HANG = 0.13  # y of the axis
NECK = 0.10  # of the bell's height, from the axis to its crown
CLAPPER_DOWN, CLAPPER_ASIDE, CLAPPER_RADIUS = 1.16, 0.27, 0.12  # of the bell's height; aside at a stroke
RUSH = 1.7  # how late the clapper sets off; 1 = at a constant speed
SHINE, SHINE_TIME = 0.45, 0.15  # how much brighter a struck bell is, and the seconds to 1/e of it
LIP = 0.84  # share of the height where the darker lip begins
MARGIN = 0.03

PARTIALS = (
    Mode(0.5, 0.16, 1.10),
    Mode(1.0, 0.22, 0.70),
    Mode(1.2, 0.20, 0.60),
    Mode(1.5, 0.10, 0.40),
    Mode(2.0, 0.26, 0.45),
    Mode(3.0, 0.12, 0.22),
    Mode(4.2, 0.10, 0.12),
)
"""Hum, prime, tierce, quint, nominal, and two above; frequencies relative to the prime."""
CLANG = (Mode(2700.0, 0.14, 0.012), Mode(4100.0, 0.10, 0.008))  # Hz, of the clapper
LEVEL = 0.8

SENTENCES = (
    "a {bell} rings {pace}",
    "a {bell} swings and rings {pace} {side}",
    "a {bell} swings from side to side and rings {pace}",
    "a {bell} rings {side}",
    "the clapper of a {bell} strikes {pace}",
    "a {bell} tolls {pace} {side}",
    "a {bell} swings {pace}, ringing with a {pitch} sound",
    "a {plain} rings with a {pitch} tone {side}",
    "a clip of a {bell} ringing {pace}",
    "ding dong: a {bell} swings {pace} {side}",
)
SILENT_SENTENCES = (
    "a {bell} swings {pace} {side}",
    "a {bell} swings from side to side {pace}",
    "a clip of a swinging {bell} {side}",
)
UNSEEN_WORDS = (
    "a {pitch} bell rings {pace}",
    "a {pitch} bell tolls {pace}",
    "the ringing of a {pitch} bell",
)


@dataclass(frozen=True, kw_only=True)
class Bell:
    """One bell that swings like a cosine and is struck whenever it turns round."""

    colour: str
    size: str
    pace: str
    stage: Stage
    x: float  # picture heights, of the axis
    swing: float  # radians to each side
    first_stroke: float  # s, of the first turn to the right
    interval: float  # s between strokes
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
    def height(self) -> float:
        """Height of the bell in picture heights."""
        return bell_height(self.size, self.aspect)

    def angle(self, time: float) -> float:
        """Radians to the right at a time."""
        return self.swing * math.cos(math.pi * (time - self.first_stroke) / self.interval)

    def clapper(self, time: float) -> float:
        """Place of the clapper within the bell: 1 = at its right side, -1 = at its left."""
        strokes = (time - self.first_stroke) / self.interval
        since = strokes - math.floor(strokes)
        side = 1 if math.floor(strokes) % 2 == 0 else -1
        return float(side * (1 - 2 * since**RUSH))

    def shine(self, time: float) -> float:
        """How bright the bell still is from the last stroke: 1 at the stroke."""
        strokes = (time - self.first_stroke) / self.interval
        return math.exp(-(strokes - math.floor(strokes)) * self.interval / SHINE_TIME)

    def events_before(self, duration: float) -> tuple[Event, ...]:
        """Strokes within the first `duration` seconds, where the clapper meets the bell."""
        return tuple(self._event(time) for time in swing_times(self.first_stroke, self.interval, duration))

    def _event(self, time: float) -> Event:
        side = 1 if round((time - self.first_stroke) / self.interval) % 2 == 0 else -1
        down, aside = CLAPPER_DOWN * self.height, side * (CLAPPER_ASIDE + CLAPPER_RADIUS) * self.height
        turn = side * self.swing
        return Event(
            time=time,
            x=self.x + down * math.sin(turn) + aside * math.cos(turn),
            y=HANG + down * math.cos(turn) - aside * math.sin(turn),
            strength=1.0,
            sound="bell",
            what="strike",
        )

    def mirrored(self) -> "Bell":
        """Swap left and right."""
        later = self.first_stroke + self.interval
        return replace(
            self,
            stage=self.stage.mirrored(),
            x=self.aspect - self.x,
            first_stroke=later if later <= self.interval else self.first_stroke - self.interval,
        )

    def facts(self) -> dict[str, Any]:
        """Attributes as plain data."""
        return {
            "colour": self.colour,
            "size": self.size,
            "pace": self.pace,
            "background": self.stage.background,
            "side": self.stage.side(self.x),
            "interval": self.interval,
            "pitch": PITCHES[self.size] * self.detune,
        }


def bell_height(size: str, aspect: float) -> float:
    """Height of a bell in picture heights; less in a narrow picture."""
    return SIZES[size] * min(aspect, 1.0)


def sample_bell(
    rng: random.Random,
    *,
    split: Split,
    duration: float,  # noqa: ARG001 - the signature of all kinds
    aspect: float,
) -> Bell:
    """Draw a bell whose colour, size and pace belong to `split`."""
    while True:
        colour, size, pace = rng.choice(list(COLOURS)), rng.choice(list(SIZES)), rng.choice(list(PACES))
        if _is_held_out(colour, size, pace) == (split == "held_out"):
            break
    interval = rng.uniform(*PACES[pace])
    swing = rng.uniform(0.24, 0.36)
    reach = (
        bell_height(size, aspect) * (CLAPPER_DOWN * math.sin(swing) + CLAPPER_ASIDE + CLAPPER_RADIUS) + MARGIN
    )
    room = min(reach, aspect / 2)
    return Bell(
        colour=colour,
        size=size,
        pace=pace,
        stage=Stage.sample(rng, aspect),
        x=rng.uniform(room, aspect - room),
        swing=swing,
        first_stroke=rng.uniform(-interval, interval),
        interval=interval,
        detune=rng.uniform(0.94, 1.06),
    )


def _is_held_out(colour: str, size: str, pace: str) -> bool:
    return held_out("bell", colour, size, pace)


def describe_bell(subject: Bell, rng: random.Random) -> str:
    """Say one of many things that are true of a bell."""
    return _fill(SENTENCES, subject, rng)


def describe_silent_bell(subject: Bell, rng: random.Random) -> str:
    """Say only what is seen."""
    return _fill(SILENT_SENTENCES, subject, rng)


def _fill(wordings: tuple[str, ...], subject: Bell, rng: random.Random) -> str:
    size = subject.size if rng.random() < (0.3 if subject.size == "medium" else 0.6) else ""
    return sentence(
        rng,
        wordings,
        subject.stage,
        bell=f"{size} {subject.colour} bell",
        plain=f"{subject.colour} bell",
        pitch=rng.choice([word for word in PITCH_WORDS[subject.size] if word]),
        pace=rng.choice(PACE_WORDS[subject.pace]),
        side=subject.stage.side(subject.x) if rng.random() < 0.7 else "",
    )


def describe_unseen_bell(subject: Bell, rng: random.Random) -> str:
    """Say that a bell is heard."""
    heard = rng.choice(UNSEEN_WORDS).format(
        pitch=rng.choice(PITCH_WORDS[subject.size]), pace=rng.choice(PACE_WORDS[subject.pace])
    )
    return heard_only(rng, subject.stage, heard)


def render_bells(
    subjects: Sequence[Bell],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: Fraction | float | int,
    device: torch.device | str,
) -> VideoPixels:
    """Draw each bell as a clip; frame k shows time k / frame_rate."""
    device = torch.device(device)
    still = draw_stages([bell.stage for bell in subjects], height, width, device)
    x = per_clip([bell.x for bell in subjects], device)
    part = Canvas(still).region(0.0, 0.0, width / height, HANG)
    beam = torch.minimum(
        box(part.x - x, part.y - HANG / 2, 0.24, 0.035, 0.02), box(part.x - x, part.y, 0.05, HANG, 0.02)
    )
    part.paint(beam, inks([BEAM] * len(subjects), device))
    pixels = still.expand(-1, -1, num_frames, -1, -1).contiguous()
    _draw_bells(Canvas(pixels), subjects, [frame / float(frame_rate) for frame in range(num_frames)])
    return pixels


def _draw_bells(canvas: Canvas, bells: Sequence[Bell], times: Sequence[float]) -> None:
    device = canvas.pixels.device
    angle = per_frame([[bell.angle(time) for time in times] for bell in bells], device)
    clapper = per_frame([[bell.clapper(time) for time in times] for bell in bells], device)
    shine = per_frame([[bell.shine(time) for time in times] for bell in bells], device)
    x = per_clip([bell.x for bell in bells], device)
    tall = per_clip([bell.height for bell in bells], device)
    tallest = max(bell.height for bell in bells)
    low = HANG + tallest * (CLAPPER_DOWN + CLAPPER_RADIUS)
    part = canvas.region(float(x.min()) - tallest, HANG, float(x.max()) + tallest, low)
    off_x, off_y = (part.x - x) / tall, (part.y - HANG) / tall  # in heights of the bell
    sine, cosine = torch.sin(angle), torch.cos(angle)
    aside = off_x * cosine - off_y * sine  # from the bell's axis
    down = off_x * sine + off_y * cosine - NECK  # from its crown
    ball = disc(aside - CLAPPER_ASIDE * clapper, down + NECK - CLAPPER_DOWN, CLAPPER_RADIUS) * tall
    part.paint(ball, inks([CLAPPER] * len(bells), device))
    half = _half_width(down)
    outline = torch.maximum(aside.abs() - half, (down - 0.5).abs() - 0.5) * (0.9 * tall)
    around = 1.05 - 0.5 * (aside / half.clamp_min(0.05) + 0.25).abs().clamp_(max=1.2)
    lip = ((down - LIP) * 30).clamp_(0, 1)
    light = around * (1 - 0.3 * lip) * 0.88 * (1 + SHINE * shine)
    part.paint(outline, inks([COLOURS[bell.colour] for bell in bells], device), light=light)


def _half_width(down: torch.Tensor) -> torch.Tensor:
    """Half width of a bell of height 1: a dome, a slowly widening waist, a flaring lip."""
    dome = torch.sqrt((1 - (1 - (down / 0.25).clamp(0, 1)) ** 2).clamp_min(0))
    flare = ((down - 0.55) / 0.45).clamp(0, 1)
    return 0.25 * dome + 0.07 * down.clamp(0, 1) + 0.14 * flare**2


def sound_bells(
    subjects: Sequence[Bell], *, duration: float, sample_rate: int, device: torch.device | str
) -> Waveform:
    """Make the strokes, each from where the clapper meets the bell."""
    blows = [
        Blow(
            row=row,
            time=event.time,
            pan=bell.stage.pan(event.x),
            level=LEVEL,
            modes=(*scaled(PARTIALS, PITCHES[bell.size] * bell.detune), *CLANG),
        )
        for row, bell in enumerate(subjects)
        for event in bell.events_before(duration)
    ]
    return mix(blows, len(subjects), duration=duration, sample_rate=sample_rate, device=device)


BELL = SceneKind(
    name="bell",
    weight=1.0,
    sample=sample_bell,
    describe=describe_bell,
    render=render_bells,
    synthesise=sound_bells,
    is_held_out=lambda bell: _is_held_out(bell.colour, bell.size, bell.pace),
    describe_silent=describe_silent_bell,
    describe_unseen=describe_unseen_bell,
    render_unseen=render_stages,
)
