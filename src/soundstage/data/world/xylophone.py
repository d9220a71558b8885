"""A xylophone that plays the notes its caption names: low on the left, each note with its own colour."""

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
    round_light,
    slanted,
)
from soundstage.data.world.instruments_sound import Blow, mix, scaled
from soundstage.data.world.instruments_stage import Stage, heard_only, sentence
from soundstage.data.world.kind import COLOURS, Event, SceneKind, Split, held_out

NOTES: dict[str, float] = {"c": 523.251, "d": 587.330, "e": 659.255, "f": 698.456, "g": 783.991, "a": 880.0}
"""Note to Hz, in equal temperament from a = 440 Hz, an octave up; from left to right."""
BAR_COLOURS: dict[str, Colour] = {
    "c": (222, 28, 34),
    "d": (252, 128, 8),
    "e": (252, 222, 22),
    "f": (28, 160, 48),
    "g": (32, 64, 226),
    "a": (132, 36, 188),
}


@dataclass(frozen=True, kw_only=True)
class Make:
    """What a xylophone is made of."""

    pitch: float  # factor on every note
    modes: tuple[Mode, ...]  # relative to the note
    rails: Colour


MAKES: dict[str, Make] = {
    "wooden": Make(
        pitch=1.0,
        modes=(Mode(1.0, 0.62, 0.16), Mode(3.0, 0.20, 0.05), Mode(6.2, 0.08, 0.02)),
        rails=(112, 72, 40),
    ),
    "metal": Make(
        pitch=2.0,
        modes=(Mode(1.0, 0.56, 0.34), Mode(2.756, 0.20, 0.14), Mode(5.404, 0.08, 0.05)),
        rails=(128, 134, 144),
    ),
}
"""A bar that is tuned has its second mode at 3 times the first; a plain one at 2.756 times."""
KNOCK = (Mode(2350.0, 0.10, 0.006), Mode(3900.0, 0.06, 0.004))  # Hz, of the mallet
LEVEL = 0.8

MALLETS = ("red", "orange", "green", "cyan", "blue", "purple", "pink", "white")
TEMPI: dict[str, tuple[float, float]] = {"quick": (0.27, 0.33), "steady": (0.36, 0.46), "slow": (0.50, 0.62)}
"""Tempo to the seconds between two notes."""
TEMPO_WORDS: dict[str, tuple[str, ...]] = {
    "quick": ("quickly", "fast"),
    "steady": ("steadily", "evenly"),
    "slow": ("slowly", "calmly"),
}
FIRST = (0.14, 0.34)  # s, when the first note may be struck
LEFT_AT_END = 0.3  # s after the last note

BAR_STEP, BAR_SHARE = 0.155, 0.86  # picture heights from bar to bar, and how much of that is bar
TOP, SLOPE, BOTTOM = 0.42, 0.018, 0.90  # y of the first bar's ends; each next one is shorter at both
STRIKE_Y = 0.66  # where the mallet meets the bars
LIFT = 0.40  # how high the mallet goes between two notes that lie 0.4 s apart or more
HEAD = 0.074  # radius of the mallet's head
RIM = 0.016  # of the head, dark, so that it stands out from a bar of its colour
LEAN, STICK = 0.5, 0.6  # the stick goes up to the hand: how far aside for each height, and how high
STICK_COLOUR = (214, 184, 140)
GLOW_TIME = 0.16  # s to 1/e of a struck bar's glow
GLOW, DIP = 0.75, 0.03  # how white it gets, how far it goes down

SENTENCES = (
    'a xylophone plays "{notes}"',
    'a xylophone plays "{notes}" {tempo}',
    'a {make} xylophone plays "{notes}"',
    'a {make} xylophone plays "{notes}" {tempo}',
    'a {mallet} mallet plays "{notes}" on a xylophone',
    'a {mallet} mallet plays "{notes}" on a {make} xylophone',
    'a {mallet} mallet strikes the bars "{notes}" of a {make} xylophone {tempo}',
    'the notes "{notes}" on a {make} xylophone',
    'someone plays "{notes}" {tempo} on a xylophone with a {mallet} mallet',
    'a clip of a xylophone that plays "{notes}"',
    '"{notes}" played {tempo} on a {make} xylophone with a {mallet} mallet',
)
SILENT_SENTENCES = (
    'a {mallet} mallet strikes the bars "{notes}" of a xylophone',
    'a {mallet} mallet touches "{notes}" on a {make} xylophone {tempo}',
    'someone moves a {mallet} mallet over a {make} xylophone, "{notes}"',
)
UNSEEN_WORDS = ('a xylophone plays "{notes}"', 'a {make} xylophone plays "{notes}"')


@dataclass(frozen=True, kw_only=True)
class Xylophone:
    """One xylophone and the notes that a mallet strikes on it."""

    notes: tuple[str, ...]
    make: str
    mallet: str  # colour of its head
    tempo: str
    stage: Stage
    x: float  # picture heights, of the middle of the instrument
    is_left_hand: bool  # from which side the mallet is held
    first: float  # s
    interval: float  # s from note to note

    @property
    def aspect(self) -> float:
        """Picture width over height."""
        return self.stage.aspect

    @property
    def camera(self) -> Camera:
        """A camera that stands."""
        return STILL

    @property
    def step(self) -> float:
        """Picture heights from bar to bar."""
        return bar_step(self.aspect)

    def bar_x(self, note: str) -> float:
        """Middle of a bar, in picture heights."""
        return self.x + (list(NOTES).index(note) - (len(NOTES) - 1) / 2) * self.step

    @property
    def times(self) -> tuple[float, ...]:
        """When the notes are struck."""
        return tuple(self.first + index * self.interval for index in range(len(self.notes)))

    def events_before(self, duration: float) -> tuple[Event, ...]:
        """Notes within the first `duration` seconds."""
        return tuple(
            Event(time=time, x=self.bar_x(note), y=STRIKE_Y, strength=1.0, sound=note, what="strike")
            for time, note in zip(self.times, self.notes, strict=True)
            if time < duration
        )

    def glow(self, note: str, time: float) -> float:
        """How much a bar still glows: 1 when it is struck."""
        struck = [at for at, name in zip(self.times, self.notes, strict=True) if name == note and at <= time]
        return math.exp((max(struck) - time) / GLOW_TIME) if struck else 0.0

    def mallet_place(self, time: float) -> tuple[float, float]:
        """Middle of the mallet's head: it flies in arcs from bar to bar and touches each at its time."""
        beats = (time - self.first) / self.interval
        last = len(self.notes) - 1
        before = min(max(math.floor(beats), 0), last)
        after = min(before + 1, last) if beats >= 0 else 0
        share = min(max(beats - before, 0.0), 1.0)
        smooth = share * share * (3 - 2 * share)
        x = self.bar_x(self.notes[before]) * (1 - smooth) + self.bar_x(self.notes[after]) * smooth
        away = min(beats, 0.0) if beats < 0 else max(beats - last, 0.0) if beats > last else share
        high = LIFT * min(self.interval / 0.4, 1.0)
        if 0 <= beats <= last:
            return x, STRIKE_Y - high * 4 * away * (1 - away)
        away = min(abs(away), 0.5)  # comes from above, goes back there and stays
        return x, STRIKE_Y - high * 4 * away * (1 - away)

    def mirrored(self) -> "Xylophone":
        """Swap what can be swapped: place, background and hand; the low notes stay on the left."""
        return replace(
            self,
            stage=self.stage.mirrored(),
            x=self.aspect - self.x,
            is_left_hand=not self.is_left_hand,
        )

    def facts(self) -> dict[str, Any]:
        """Attributes as plain data."""
        return {
            "notes": list(self.notes),
            "make": self.make,
            "mallet": self.mallet,
            "tempo": self.tempo,
            "background": self.stage.background,
            "interval": self.interval,
            "pitches": [NOTES[note] * MAKES[self.make].pitch for note in self.notes],
        }


def bar_step(aspect: float) -> float:
    """Picture heights from bar to bar; less in a narrow picture."""
    return min(BAR_STEP, 0.96 * aspect / len(NOTES))


def sample_xylophone(rng: random.Random, *, split: Split, duration: float, aspect: float) -> Xylophone:
    """Draw a xylophone whose notes, or whose make, mallet and tempo, belong to `split`."""
    room = max(duration - FIRST[1] - LEFT_AT_END, 0.0)  # s from the first note to the last
    while True:
        make, mallet, tempo = rng.choice(list(MAKES)), rng.choice(MALLETS), rng.choice(list(TEMPI))
        interval = rng.uniform(*TEMPI[tempo])
        most = min(int(room / interval) + 1, 5)
        notes = tuple(rng.choice(list(NOTES)) for _ in range(rng.randint(min(2, most), most)))
        if _is_held_out(notes, make, mallet, tempo) == (split == "held_out"):
            break
    half = bar_step(aspect) * len(NOTES) / 2
    return Xylophone(
        notes=notes,
        make=make,
        mallet=mallet,
        tempo=tempo,
        stage=Stage.sample(rng, aspect),
        x=rng.uniform(half, aspect - half),
        is_left_hand=rng.random() < 0.5,
        first=rng.uniform(*FIRST),
        interval=interval,
    )


def _is_held_out(notes: tuple[str, ...], make: str, mallet: str, tempo: str) -> bool:
    return held_out("xylophone", *notes) or held_out("xylophone", make, mallet, tempo)


def describe_xylophone(subject: Xylophone, rng: random.Random) -> str:
    """Name the notes, and some of what else there is to say."""
    return _fill(SENTENCES, subject, rng)


def describe_silent_xylophone(subject: Xylophone, rng: random.Random) -> str:
    """Say only what is seen."""
    return _fill(SILENT_SENTENCES, subject, rng)


def _fill(wordings: tuple[str, ...], subject: Xylophone, rng: random.Random) -> str:
    return sentence(
        rng,
        wordings,
        subject.stage,
        notes=" ".join(subject.notes),
        make=subject.make,
        mallet=subject.mallet,
        tempo=rng.choice(TEMPO_WORDS[subject.tempo]),
    )


def describe_unseen_xylophone(subject: Xylophone, rng: random.Random) -> str:
    """Say which notes are heard."""
    heard = rng.choice(UNSEEN_WORDS).format(notes=" ".join(subject.notes), make=subject.make)
    return heard_only(rng, subject.stage, heard)


def render_xylophones(
    subjects: Sequence[Xylophone],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: Fraction | float | int,
    device: torch.device | str,
) -> VideoPixels:
    """Draw each xylophone as a clip; frame k shows time k / frame_rate."""
    device = torch.device(device)
    still = draw_stages([one.stage for one in subjects], height, width, device)
    _draw_rails(Canvas(still), subjects)
    pixels = still.expand(-1, -1, num_frames, -1, -1).contiguous()
    times = [frame / float(frame_rate) for frame in range(num_frames)]
    for index, note in enumerate(NOTES):
        _draw_bar(Canvas(pixels), subjects, times, index, note)
    _draw_mallet(Canvas(pixels), subjects, times)
    return pixels


def _draw_rails(canvas: Canvas, subjects: Sequence[Xylophone]) -> None:
    """Draw the two beams that carry the bars, nearer to each other at the short bars."""
    device = canvas.pixels.device
    part = canvas.region(0.0, TOP, canvas.width / canvas.height, BOTTOM)
    left = per_clip([one.bar_x("c") for one in subjects], device)
    slope = per_clip([SLOPE / one.step for one in subjects], device)
    half = per_clip([(len(NOTES) - 1) / 2 * one.step for one in subjects], device)
    along = part.x - left
    ink = inks([MAKES[one.make].rails for one in subjects], device)
    for y, tilt in ((TOP + 0.09, slope), (BOTTOM - 0.09, -slope)):
        part.paint(box(along - half, part.y - y - tilt * along, half + 0.06, 0.025, 0.02), ink)


def _draw_bar(
    canvas: Canvas, subjects: Sequence[Xylophone], times: Sequence[float], index: int, note: str
) -> None:
    device = canvas.pixels.device
    x = per_clip([one.bar_x(note) for one in subjects], device)
    half = per_clip([one.step * BAR_SHARE / 2 for one in subjects], device)
    glow = per_frame([[one.glow(note, time) for time in times] for one in subjects], device)
    top, bottom = TOP + index * SLOPE, BOTTOM - index * SLOPE
    widest = float(half.max())
    part = canvas.region(float(x.min()) - widest, top, float(x.max()) + widest, bottom + DIP)
    bar = box(part.x - x, part.y - (top + bottom) / 2 - DIP * glow, half, (bottom - top) / 2, 0.03)
    colours = inks([BAR_COLOURS[note]] * len(subjects), device)
    light = (0.86 + 0.14 * (part.y < (top + bottom) / 2))[None, None]
    part.paint(bar, colours, light=light, whiteness=GLOW * glow)


def _draw_mallet(canvas: Canvas, subjects: Sequence[Xylophone], times: Sequence[float]) -> None:
    device = canvas.pixels.device
    places = torch.tensor(
        [[one.mallet_place(time) for time in times] for one in subjects], dtype=torch.float32, device=device
    )
    x, y = places[..., None, None].unbind(2)
    part = canvas.region(0.0, 0.0, canvas.width / canvas.height, STRIKE_Y + HEAD)
    off_x, off_y = part.x - x, part.y - y
    lean = per_clip([-LEAN if one.is_left_hand else LEAN for one in subjects], device)
    stick = slanted(off_x, off_y, lean, STICK, 0.013)
    part.paint(stick, inks([STICK_COLOUR] * len(subjects), device))
    head = disc(off_x, off_y, HEAD)
    light = torch.where(head > -RIM, 0.12, round_light(head, HEAD * 0.6))
    part.paint(head, inks([COLOURS[one.mallet] for one in subjects], device), light=light)


def sound_xylophones(
    subjects: Sequence[Xylophone], *, duration: float, sample_rate: int, device: torch.device | str
) -> Waveform:
    """Make the notes, each from where its bar is."""
    blows = [
        Blow(
            row=row,
            time=event.time,
            pan=one.stage.pan(event.x),
            level=LEVEL,
            modes=(*scaled(MAKES[one.make].modes, NOTES[event.sound] * MAKES[one.make].pitch), *KNOCK),
        )
        for row, one in enumerate(subjects)
        for event in one.events_before(duration)
    ]
    return mix(blows, len(subjects), duration=duration, sample_rate=sample_rate, device=device)


XYLOPHONE = SceneKind(
    name="xylophone",
    weight=2.0,
    sample=sample_xylophone,
    describe=describe_xylophone,
    render=render_xylophones,
    synthesise=sound_xylophones,
    is_held_out=lambda one: _is_held_out(one.notes, one.make, one.mallet, one.tempo),
    describe_silent=describe_silent_xylophone,
    describe_unseen=describe_unseen_xylophone,
    render_unseen=render_stages,
)
