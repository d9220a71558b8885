"""Drum pads that light up exactly when they are hit: one to three, each with its own colour and pitch."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.types import VideoPixels, Waveform
from soundstage.data.world.camera import STILL, Camera
from soundstage.data.world.damped_sines import Mode
from soundstage.data.world.instruments_drawing import (
    Canvas,
    Field,
    PerFrame,
    Region,
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
    COUNT_WORDS,
    Stage,
    heard_only,
    sentence,
)
from soundstage.data.world.kind import COLOURS, Event, SceneKind, Split, held_out

SHAPES = ("round", "square")
SIZES: dict[str, float] = {"small": 0.17, "medium": 0.22, "large": 0.28}
"""Size of a single pad to its half width in picture heights."""
HALF_OF: dict[int, float] = {2: 0.185, 3: 0.13}
"""Number of pads to their half width, where there are several."""
PITCHES: dict[str, float] = {"small": 262.0, "medium": 185.0, "large": 124.0}  # Hz, of a single pad
PITCHES_OF: dict[int, tuple[float, ...]] = {2: (139.0, 220.0), 3: (124.0, 185.0, 277.0)}
"""Number of pads to the pitch of each from left to right, where there are several: the left is the lowest."""

FIRST = (0.12, 0.40)  # s, when the first hit may be
BEAT = (0.21, 0.30)  # s, of the grid on which the hits lie
LEFT_AT_END = 0.25  # s after the last hit
MOST_HITS = 6
MIDDLE_Y = 0.53
RIM = 0.035  # of the dark frame around a pad
SQUARE_SHARE = 0.92  # half width of a square pad over that of a round one
HALO, HALO_SHARE = 0.14, 0.8  # how far the light of a pad reaches, and how much of it covers what is there
DIM, FLASH = 0.6, 0.6  # how bright a pad is at rest, how white it is when hit
GLOW_TIME = 0.15  # s to 1/e of the light
FRAME = (30, 30, 36)
MARGIN = 0.04

SKIN = (
    Mode(1.0, 0.50, 0.16),
    Mode(1.593, 0.22, 0.10),
    Mode(2.136, 0.14, 0.07),
    Mode(2.653, 0.08, 0.05),
)
"""The ideal membrane's lowest modes, relative to the first."""
SLAP = (Mode(1900.0, 0.10, 0.007), Mode(3300.0, 0.07, 0.005))  # Hz, of the stick
LEVEL = 0.85

SINGLE = (
    "a {pad} is hit {count}",
    "a {pad} is hit {count} {side}",
    "a {pad} flashes {count} as it is hit",
    "a {pad} lights up with every hit {side}",
    "a {pad} is struck {count} and flashes",
    "someone drums on a {pad} {side}",
    "a {pad} sounds and lights up {count}",
    "a clip of a {pad} that is hit {count}",
)
SINGLE_SILENT = (
    "a {pad} flashes {count}",
    "a {pad} lights up {count} {side}",
    "a {pad} blinks {side}",
)
SEVERAL = (
    "{pads} are played, {counts}",
    "{pads} are hit: {counts}",
    "drum pads flash with their hits, {counts}",
    "{pads} light up as they are hit",
    "a rhythm on {pads}, {counts}",
    "someone plays {pads}, in the order {order}",
    "{pads} flash in the order {order}",
    "drum pads are hit: {order}",
)
SEVERAL_SILENT = (
    "{pads} flash, {counts}",
    "{pads} light up in the order {order}",
)
UNSEEN_WORDS = ("a drum is hit {count}", "a drum sounds {count}", "someone hits a drum {count}")


@dataclass(frozen=True, kw_only=True)
class Pads:
    """Pads side by side, and when each is hit."""

    colours: tuple[str, ...]  # from left to right
    shape: str
    size: str  # of a single pad; "medium" where there are several
    hits: tuple[tuple[float, int], ...]  # s and which pad, in order
    stage: Stage
    x: float  # picture heights, of the middle of all pads
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
    def half(self) -> float:
        """Half width of a pad in picture heights."""
        return half_width(self.size, len(self.colours), self.aspect)

    def pad_x(self, index: int) -> float:
        """Middle of a pad, in picture heights."""
        return self.x + (index - (len(self.colours) - 1) / 2) * pad_step(self.half)

    @property
    def pitches(self) -> tuple[float, ...]:
        """Hz of each pad's lowest mode, from left to right."""
        several = PITCHES_OF.get(len(self.colours), (PITCHES[self.size],))
        return tuple(pitch * self.detune for pitch in several)

    @property
    def counts(self) -> tuple[int, ...]:
        """How often each pad is hit."""
        return tuple(sum(pad == index for _, pad in self.hits) for index in range(len(self.colours)))

    def glow(self, index: int, time: float) -> float:
        """How much of its light a pad still gives: 1 when it is hit."""
        struck = [at for at, pad in self.hits if pad == index and at <= time]
        return math.exp((max(struck) - time) / GLOW_TIME) if struck else 0.0

    def events_before(self, duration: float) -> tuple[Event, ...]:
        """Hits within the first `duration` seconds; the sound is the pad's colour."""
        return tuple(
            Event(
                time=time,
                x=self.pad_x(pad),
                y=MIDDLE_Y,
                strength=1.0,
                sound=self.colours[pad],
                what="strike",
            )
            for time, pad in self.hits
            if time < duration
        )

    def mirrored(self) -> "Pads":
        """Swap left and right; the lowest pad is on the left again."""
        last = len(self.colours) - 1
        return replace(
            self,
            stage=self.stage.mirrored(),
            x=self.aspect - self.x,
            colours=self.colours[::-1],
            hits=tuple((time, last - pad) for time, pad in self.hits),
        )

    def facts(self) -> dict[str, Any]:
        """Attributes as plain data."""
        return {
            "colours": list(self.colours),
            "shape": self.shape,
            "size": self.size,
            "background": self.stage.background,
            "side": self.stage.side(self.x) if len(self.colours) == 1 else "",
            "counts": list(self.counts),
            "order": [self.colours[pad] for _, pad in self.hits],
            "pitches": list(self.pitches),
        }


def half_width(size: str, num_pads: int, aspect: float) -> float:
    """Half width of a pad in picture heights; several share the picture's width."""
    half = HALF_OF.get(num_pads, SIZES[size])
    room = (aspect - 2 * MARGIN) / num_pads / 2 - RIM
    return min(half, room)


def pad_step(half: float) -> float:
    """Picture heights from pad to pad."""
    return 2 * (half + RIM) + 0.01


def sample_pads(rng: random.Random, *, split: Split, duration: float, aspect: float) -> Pads:
    """Draw pads whose colours and counts belong to `split`."""
    while True:
        num_pads = rng.choice((1, 1, 1, 2, 2, 3))
        colours = tuple(rng.sample(list(COLOURS), num_pads))
        shape, size = rng.choice(SHAPES), rng.choice(list(SIZES)) if num_pads == 1 else "medium"
        hits = _sample_hits(rng, num_pads, duration)
        if _is_held_out(colours, shape, len(hits)) == (split == "held_out"):
            break
    half = half_width(size, num_pads, aspect)
    extent = num_pads * pad_step(half) / 2
    room = min(extent + MARGIN, aspect / 2)
    return Pads(
        colours=colours,
        shape=shape,
        size=size,
        hits=hits,
        stage=Stage.sample(rng, aspect),
        x=rng.uniform(room, aspect - room),
        detune=rng.uniform(0.96, 1.04),
    )


def _sample_hits(rng: random.Random, num_pads: int, duration: float) -> tuple[tuple[float, int], ...]:
    """Draw hits on a grid of beats, some left out; every pad is hit where there is time for it."""
    first, beat = rng.uniform(*FIRST), rng.uniform(*BEAT)
    slots = max(int((duration - LEFT_AT_END - first) / beat) + 1, 1)
    most = min(slots, MOST_HITS)
    count = rng.randint(min(num_pads, most), most)
    chosen = sorted(rng.sample(range(slots), count))
    pads = [index % num_pads if index < num_pads else rng.randrange(num_pads) for index in range(count)]
    rng.shuffle(pads)
    return tuple((first + slot * beat, pad) for slot, pad in zip(chosen, pads, strict=True))


def _is_held_out(colours: tuple[str, ...], shape: str, count: int) -> bool:
    return held_out("pad", *sorted(colours), shape, str(count))


def describe_pads(subject: Pads, rng: random.Random) -> str:
    """Say one of many things that are true of the pads and their hits."""
    return _fill(SINGLE, SEVERAL, subject, rng)


def describe_silent_pads(subject: Pads, rng: random.Random) -> str:
    """Say only what is seen."""
    return _fill(SINGLE_SILENT, SEVERAL_SILENT, subject, rng)


def _fill(single: Sequence[str], several: Sequence[str], subject: Pads, rng: random.Random) -> str:
    noun = rng.choice(("drum pad", "drum pad", "pad"))
    shape = subject.shape if rng.random() < 0.5 else ""
    size = subject.size if rng.random() < 0.5 else ""
    says_side = rng.random() < 0.7
    if len(subject.colours) == 1:
        (colour,) = subject.colours
        pad = " ".join(word for word in (size, shape, colour, noun) if word)
        return sentence(
            rng,
            single,
            subject.stage,
            pad=pad,
            count=COUNT_WORDS[len(subject.hits)],
            side=subject.stage.side(subject.x) if says_side else "",
        )
    shown = [f"a {shape} {colour} {noun}" for colour in subject.colours]
    counts = [
        f"{colour} {COUNT_WORDS[count]}"
        for colour, count in zip(subject.colours, subject.counts, strict=True)
        if count
    ]
    return sentence(
        rng,
        several,
        subject.stage,
        pads=_listed(shown),
        counts=_listed(counts),
        order=" ".join(subject.colours[pad] for _, pad in subject.hits),
    )


def _listed(words: Sequence[str]) -> str:
    """Join words as in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def describe_unseen_pads(subject: Pads, rng: random.Random) -> str:
    """Say how often a drum is heard."""
    heard = rng.choice(UNSEEN_WORDS).format(count=COUNT_WORDS[len(subject.hits)])
    return heard_only(rng, subject.stage, heard)


def render_pads(
    subjects: Sequence[Pads],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: Fraction | float | int,
    device: torch.device | str,
) -> VideoPixels:
    """Draw the pads of each clip; frame k shows time k / frame_rate."""
    device = torch.device(device)
    still = draw_stages([pads.stage for pads in subjects], height, width, device)
    pixels = still.expand(-1, -1, num_frames, -1, -1).contiguous()
    times = [frame / float(frame_rate) for frame in range(num_frames)]
    for draw in (_draw_halo, _draw_pad):
        for index in range(max(len(pads.colours) for pads in subjects)):
            rows = [row for row, pads in enumerate(subjects) if index < len(pads.colours)]
            part = pixels if len(rows) == len(subjects) else pixels[rows]
            draw(Canvas(part), [subjects[row] for row in rows], times, index)
            if part is not pixels:
                pixels[rows] = part
    return pixels


def _draw_halo(canvas: Canvas, subjects: Sequence[Pads], times: Sequence[float], index: int) -> None:
    """Light up what is around a pad."""
    part, outline, glow, colours = _prepare(canvas, subjects, times, index)
    part.blend((1 - (outline - RIM).clamp_min(0) / HALO).clamp_min(0).square() * (HALO_SHARE * glow), colours)


def _draw_pad(canvas: Canvas, subjects: Sequence[Pads], times: Sequence[float], index: int) -> None:
    part, outline, glow, colours = _prepare(canvas, subjects, times, index)
    part.paint(outline - RIM, inks([FRAME] * len(subjects), colours.device))
    part.paint(outline, colours, light=DIM + (1 - DIM) * glow, whiteness=FLASH * glow)


def _prepare(
    canvas: Canvas, subjects: Sequence[Pads], times: Sequence[float], index: int
) -> tuple[Region, Field, PerFrame, Float[Tensor, "b 3"]]:
    """Where to paint a pad, the distance to its outline, how much it glows, and its colour."""
    device = canvas.pixels.device
    x = per_clip([pads.pad_x(index) for pads in subjects], device)
    half = per_clip([pads.half for pads in subjects], device)
    reach = float(half.max()) + HALO
    part = canvas.region(float(x.min()) - reach, MIDDLE_Y - reach, float(x.max()) + reach, MIDDLE_Y + reach)
    off_x, off_y = part.x - x, part.y - MIDDLE_Y
    square = per_clip([float(pads.shape == "square") for pads in subjects], device)
    side = half * SQUARE_SHARE
    outline = torch.lerp(disc(off_x, off_y, half), box(off_x, off_y, side, side, 0.04), square)
    glow = per_frame([[pads.glow(index, time) for time in times] for pads in subjects], device)
    return part, outline, glow, inks([COLOURS[pads.colours[index]] for pads in subjects], device)


def sound_pads(
    subjects: Sequence[Pads], *, duration: float, sample_rate: int, device: torch.device | str
) -> Waveform:
    """Make the hits, each from where its pad is."""
    blows = [
        Blow(
            row=row,
            time=time,
            pan=pads.stage.pan(pads.pad_x(pad)),
            level=LEVEL,
            modes=(*scaled(SKIN, pads.pitches[pad]), *SLAP),
        )
        for row, pads in enumerate(subjects)
        for time, pad in pads.hits
    ]
    return mix(blows, len(subjects), duration=duration, sample_rate=sample_rate, device=device)


PAD = SceneKind(
    name="pad",
    weight=1.0,
    sample=sample_pads,
    describe=describe_pads,
    render=render_pads,
    synthesise=sound_pads,
    is_held_out=lambda pads: _is_held_out(pads.colours, pads.shape, len(pads.hits)),
    describe_silent=describe_silent_pads,
    describe_unseen=describe_unseen_pads,
    render_unseen=render_stages,
)
