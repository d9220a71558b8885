"""Talking faces as plain data: who speaks, where, in which voice, and what; with captions for them."""

import random
from dataclasses import dataclass, replace
from typing import Any

from soundstage.data.world.bounce import BACKGROUNDS
from soundstage.data.world.bounce_caption import PLACE_WORDS
from soundstage.data.world.camera import STILL, Camera
from soundstage.data.world.face_speech import SYLLABLES, Utterance, most_syllables, spoken
from soundstage.data.world.kind import Event, Split, held_out, pan_of

FACE_COLOURS: dict[str, tuple[int, int, int]] = {
    "blue": (84, 124, 232),
    "green": (86, 184, 84),
    "yellow": (246, 214, 72),
    "orange": (246, 148, 58),
    "pink": (248, 158, 196),
    "purple": (160, 104, 212),
    "white": (240, 236, 230),
    "cyan": (78, 204, 214),
}
"""Bright enough for a dark mouth to stand out; red is left to the lips."""
HAIR_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (30, 26, 30),
    "red": (198, 44, 30),
    "brown": (116, 68, 36),
    "blond": (238, 200, 96),
    "white": (244, 244, 246),
}
HAIR_STYLES = ("short", "long", "curly", "bald")
VOICES: dict[str, tuple[float, float]] = {"low": (98.0, 132.0), "high": (205.0, 255.0)}
"""Pitch in Hz, from and to."""
TRACTS: dict[str, tuple[float, float]] = {"low": (0.96, 1.03), "high": (1.10, 1.17)}
"""Factor on the formants: who speaks higher also has a shorter vocal tract."""
PLACES = ("left", "middle", "right")

HALF_HEIGHT, HALF_WIDTH = 0.330, 0.245  # picture heights, of a head of scale 1
EDGE = 0.30  # picture heights from the edge to the middle of a face at the left or right

PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left", "on the left side"),
    "middle": ("in the middle", "in the middle", "in the centre"),
    "right": ("on the right", "on the right", "on the right side"),
}
VOICE_PHRASES: dict[str, tuple[str, ...]] = {
    "low": ("in a low voice", "in a low voice", "in a deep voice"),
    "high": ("in a high voice", "in a high voice", "in a bright voice"),
}
SENTENCES = (
    '{subject} says "{words}"',
    '{subject} says "{words}"',
    '{subject} says "{words}" {voice}',
    '{subject} {place} says "{words}"',
    '{subject} {place} says "{words}" {voice}',
    '{subject} is saying "{words}" {voice}',
    '{subject} speaks {voice}: "{words}"',
    '{subject} {place} speaks: "{words}"',
    '{place}, {subject} says "{words}" {voice}',
    '{voice}, {subject} says "{words}"',
    '"{words}", says {subject} {place}',
    '"{words}", says {subject} {voice}',
    '{subject} {scenery} says "{words}"',
    '{subject} {place} says "{words}" {scenery}',
    'a clip of {subject} saying "{words}"',
    'a clip of {subject} saying "{words}" {voice}, {place}',
)
TERSE = (
    '{bare}: "{words}"',
    '{bare}, {side}, "{words}"',
    '{bare}, {pitch} voice, "{words}"',
)
SILENT_SENTENCES = (
    "{subject} moves its lips",
    "{subject} speaks",
    "{subject} {place} speaks",
    "{subject} {place} moves its mouth",
    "{subject} {scenery} is speaking",
)
UNSEEN_SENTENCES = (
    '{scenery}, somebody out of sight says "{words}" {voice}',
    'somebody out of sight says "{words}" {scenery}, {voice}',
    'a {pitch} voice off-screen says "{words}" {scenery}',
    'off-screen, a {pitch} voice {place} says "{words}" {scenery}',
)
TERSE_SHARE, HAIR_SHARE, STYLE_SHARE = 0.15, 0.6, 0.4


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face that speaks once."""

    colour: str
    hair: str  # a colour; of no meaning where the style is bald
    style: str
    place: str
    voice: str
    utterance: Utterance
    x: float  # picture heights from the left edge, of the middle of the face
    y: float  # picture heights from the top
    scale: float
    blinks: tuple[float, ...]  # s
    gaze: float  # in [-1, 1], where the eyes look
    smile: float  # picture heights by which the corners of the mouth are raised
    background: str
    aspect: float  # picture width over height
    tint: tuple[float, float, float]  # added to the background's RGB in [0, 1]
    texture: float  # in [0, 1), shifts what the background shows
    pitch: float  # Hz
    tract: float  # factor on the formants
    phase: float  # turns
    noise: int
    flipped: bool = False

    @property
    def pan(self) -> float:
        """Stereo position of the voice: 0 = left edge, 1 = right edge."""
        return pan_of(self.x, self.aspect)

    @property
    def camera(self) -> Camera:
        """Faces are filmed from one place."""
        return STILL

    @property
    def words(self) -> str:
        """What is said, such as "ba mi lo"."""
        return " ".join(one.text for one in self.utterance.syllables)

    @property
    def events(self) -> tuple[Event, ...]:
        """Every syllable, at the moment when the mouth opens for its vowel."""
        return tuple(
            Event(
                time=one.release,
                x=self.x,
                y=self.y,
                strength=one.vowel.aperture,
                sound=one.text,
                what="syllable",
            )
            for one in self.utterance.syllables
        )

    def events_before(self, duration: float) -> tuple[Event, ...]:
        """Syllables within the first `duration` seconds."""
        return tuple(event for event in self.events if event.time < duration)

    def aperture(self, time: float) -> float:
        """How far the mouth is open at `time` seconds: 0 = closed, 1 = as in a."""
        return self.utterance.aperture.at(time)

    def mirrored(self) -> "Face":
        """Swap left and right in picture, sound and caption."""
        place = {"left": "right", "right": "left"}.get(self.place, self.place)
        return replace(self, x=self.aspect - self.x, place=place, gaze=-self.gaze, flipped=not self.flipped)

    def facts(self) -> dict[str, Any]:
        """Plain data for a JSON file beside the clip."""
        return {
            "colour": self.colour,
            "hair": self.style if self.style == "bald" else f"{self.style} {self.hair}",
            "place": self.place,
            "voice": self.voice,
            "pitch": self.pitch,
            "words": self.words,
            "syllables": [
                {"text": one.text, "start": one.start, "release": one.release, "end": one.end}
                for one in self.utterance.syllables
            ],
            "background": self.background,
        }


def is_held_out(face: Face) -> bool:
    """Whether a combination of face, hair and first syllable is kept from training."""
    return _is_held_out(face.colour, face.style, face.hair, face.utterance.syllables[0].text)


def _is_held_out(colour: str, style: str, hair: str, first: str) -> bool:
    return held_out("face", colour, "bald" if style == "bald" else hair, first)


def sample_face(rng: random.Random, *, split: Split, duration: float, aspect: float) -> Face:
    """Draw a face whose colours and first syllable belong to `split`.

    Args:
        duration: Length of the clip in seconds; all that is said fits in, if it is half a second or more.
        aspect: Picture width over height.
    """
    while True:
        colour, hair = rng.choice(list(FACE_COLOURS)), rng.choice(list(HAIR_COLOURS))
        style = rng.choice(HAIR_STYLES)
        count = rng.randint(1, most_syllables(duration))
        texts = [rng.choice(SYLLABLES) for _ in range(count)]
        if hair != colour and _is_held_out(colour, style, hair, texts[0]) == (split == "held_out"):
            break
    place, voice = rng.choice(PLACES), rng.choice(list(VOICES))
    x = {"left": EDGE, "middle": aspect / 2, "right": aspect - EDGE}[place]
    return Face(
        colour=colour,
        hair=hair,
        style=style,
        place=place,
        voice=voice,
        utterance=_sample_utterance(rng, texts, duration),
        x=x + rng.uniform(-0.02, 0.02),
        y=rng.uniform(0.515, 0.555),
        scale=rng.uniform(0.96, 1.05),
        blinks=tuple(rng.uniform(0.1, max(duration - 0.2, 0.2)) for _ in range(rng.choice((0, 1, 1)))),
        gaze=rng.uniform(-1, 1),
        smile=rng.uniform(0.0, 0.016),
        background=rng.choice(BACKGROUNDS),
        aspect=aspect,
        tint=(rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)),
        texture=rng.random(),
        pitch=rng.uniform(*VOICES[voice]),
        tract=rng.uniform(*TRACTS[voice]),
        phase=rng.random(),
        noise=rng.randrange(1 << 20),
        flipped=rng.random() < 0.5,
    )


def _sample_utterance(rng: random.Random, texts: list[str], duration: float) -> Utterance:
    """Lay the syllables out at a pace that lets them fit."""
    pace = [rng.uniform(0.20, 0.26) for _ in texts]
    gaps = [rng.uniform(0.04, 0.08) for _ in texts]
    length = spoken(texts, start=0.0, pace=pace, gaps=gaps).syllables[-1].end
    room = max(duration - 0.08 - length, 0.0)
    start = min(0.06, room) + rng.random() * min(max(room - 0.06, 0.0), 0.7)
    return spoken(texts, start=start, pace=pace, gaps=gaps)


def describe_face(face: Face, rng: random.Random) -> str:
    """Say what is seen and heard in one of many wordings; the words spoken are always among it."""
    bare = _look(face, rng)
    template = rng.choice(TERSE if rng.random() < TERSE_SHARE else SENTENCES)
    return template.format(
        bare=bare,
        subject=_with_article(bare),
        words=face.words,
        place=rng.choice(PLACE_PHRASES[face.place]),
        side=face.place,
        voice=rng.choice(VOICE_PHRASES[face.voice]),
        pitch=face.voice,
        scenery=rng.choice(PLACE_WORDS[face.background]),
    )


def describe_silent_face(face: Face, rng: random.Random) -> str:
    """Say what is seen; " in silence" will be added."""
    return rng.choice(SILENT_SENTENCES).format(
        subject=_with_article(_look(face, rng)),
        place=rng.choice(PLACE_PHRASES[face.place]),
        scenery=rng.choice(PLACE_WORDS[face.background]),
    )


def describe_unseen_face(face: Face, rng: random.Random) -> str:
    """Say what the empty place shows and what is heard."""
    return rng.choice(UNSEEN_SENTENCES).format(
        words=face.words,
        pitch=face.voice,
        voice=rng.choice(VOICE_PHRASES[face.voice]),
        place=rng.choice(PLACE_PHRASES[face.place]),
        scenery=rng.choice(PLACE_WORDS[face.background]),
    )


def _look(face: Face, rng: random.Random) -> str:
    """Name a face by its colour and perhaps its hair."""
    bare = f"{face.colour} face"
    if rng.random() >= HAIR_SHARE:
        return bare
    if face.style == "bald":
        return f"bald {bare}"
    style = f"{face.style} " if rng.random() < STYLE_SHARE else ""
    return f"{bare} with {style}{face.hair} hair"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
