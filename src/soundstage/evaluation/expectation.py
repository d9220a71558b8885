"""What a caption promises: the attributes it mentions, read back from its words.

Only what is said can be judged: a caption without a size may show any size. Reading the caption, instead of
asking the scene it was made from, works for any prompt that speaks of the world.
"""

import re
from collections.abc import Mapping

from soundstage.data.world.ambience_caption import LAYER_WORDS
from soundstage.data.world.ambience_caption import SENTENCES as AMBIENCES
from soundstage.data.world.ambience_caption import SILENT as SILENT_AMBIENCES
from soundstage.data.world.bounce_caption import (
    ENTRY_WORDS,
    FLOOR_WORDS,
    NOUNS,
    SIZE_WORDS,
    SOUND_WORDS,
    TRAVEL_WORDS,
)
from soundstage.data.world.camera import CAMERA_WORDS
from soundstage.data.world.caption import SILENT_WORDS
from soundstage.data.world.face import FACE_COLOURS, HAIR_COLOURS, PLACE_PHRASES, VOICE_PHRASES
from soundstage.data.world.face_speech import SYLLABLES
from soundstage.data.world.kind import COLOURS
from soundstage.data.world.xylophone import NOTES

Expected = Mapping[str, str]
"""Attribute to value: "kind" of scene (or "silent", "off-screen"), "colour", "shape", "material" ..."""


def _alternatives(words: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Each wording with the value it stands for, the longest first."""
    pairs = {wording: value for value, wordings in words.items() for wording in wordings}
    return dict(sorted(pairs.items(), key=lambda pair: -len(pair[0])))


_SIZES, _NOUNS = _alternatives(SIZE_WORDS), _alternatives(NOUNS)
_MATERIALS = _alternatives(FLOOR_WORDS) | {material: material for material in FLOOR_WORDS}
_SOUNDS = _alternatives(SOUND_WORDS)
_DIRECTIONS = _alternatives(TRAVEL_WORDS) | _alternatives(ENTRY_WORDS)
# "a big drum" is a floor and "in a green room" a place: size and colour belong to the noun that follows them.
_OBJECT = re.compile(
    rf"\b(?:({'|'.join(_SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(map(re.escape, _NOUNS))})\b"
)
_AMBIENCES = _alternatives(
    {
        f"{element} {level}": (*wordings, *SILENT_AMBIENCES[element][level])
        for element, levels in AMBIENCES.items()
        for level, wordings in levels.items()
    }
)
_LAYERS = _alternatives(
    {
        element: tuple(wording for wordings in levels.values() for wording in wordings)
        for element, levels in LAYER_WORDS.items()
    }
)
_BESIDES = re.compile(r"\b(rolls?|rolling|walls|(a|the|off a) wall|collide)\b")
_FACE = re.compile(rf"\b({'|'.join(FACE_COLOURS)}) face\b(?: with (?:\w+ )?({'|'.join(HAIR_COLOURS)}) hair)?")
_SAID = re.compile(rf'"((?:{"|".join(SYLLABLES)})(?: (?:{"|".join(SYLLABLES)}))*)"')
_VOICES = _alternatives(VOICE_PHRASES) | {f"{pitch} voice": pitch for pitch in VOICE_PHRASES}
_PLACES = _alternatives(PLACE_PHRASES) | {place: place for place in PLACE_PHRASES}
_INSTRUMENTS = {
    "clock": re.compile(r"\b(clock|tick tock|ticks at each end)\b"),
    "bell": re.compile(r"\bbell\b"),
    "pad": re.compile(r"\bpads?\b"),
    "xylophone": re.compile(r"\bxylophone\b"),
}
_NOTES = re.compile(rf'"([{"".join(NOTES)}](?: [{"".join(NOTES)}])*)"')
_COLOUR_OF_IT = re.compile(
    rf"\b(?:({'|'.join(COLOURS)}) (?:pendulum|bob|bell)|its pendulum is ({'|'.join(COLOURS)}))\b"
)
_PAD_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b(?! wall)")

_AUDIBILITY = {
    "silent": re.compile(rf"\b({'|'.join(SILENT_WORDS)})$"),
    "off-screen": re.compile(r"\b(out of sight|off[- ]screen|nothing but)\b"),
}


def expected_of(caption: str) -> Expected:
    """Read the attributes that a caption mentions."""
    text = caption.lower()
    expected: dict[str, str] = {}
    for turn, wordings in CAMERA_WORDS.items():
        for wording in wordings:
            if wording in text:  # "to the right" in it is not where the object goes
                expected["camera"] = turn
                text = text.replace(wording, "")
    matches = list(_OBJECT.finditer(text))
    if matches and (len(matches) > 1 or _BESIDES.search(text)):
        expected["kind"] = "objects"
        expected["colours"] = " ".join(sorted(match[2] for match in matches))
    elif matches:
        thing = matches[0]
        size, colour, noun = thing.groups()
        expected |= {"kind": "bounce", "colour": colour, "shape": _NOUNS[noun]}
        if size:
            expected["size"] = _SIZES[size]
        text = text.replace(thing[0], "it")
    if found := _first(text, _AMBIENCES):
        expected["element"], expected["level"] = found.split()
        expected.setdefault("kind", "ambience")
    if found := _first(text, _LAYERS):
        expected["layer"] = found
    for kind, pattern in _INSTRUMENTS.items():
        if pattern.search(text):
            expected["kind"] = kind
    if match := _NOTES.search(text):
        expected |= {"kind": "xylophone", "notes": match[1]}
    if expected.get("kind") in ("clock", "bell") and (match := _COLOUR_OF_IT.search(text)):
        expected["colour"] = match[1] or match[2]
    if expected.get("kind") == "pad" and (colours := {match[1] for match in _PAD_COLOUR.finditer(text)}):
        expected["colours"] = " ".join(sorted(colours))
    if expected.get("kind") == "bounce" and ("camera" in expected or "layer" in expected):
        expected["kind"] = "varied"
    if match := _SAID.search(text):  # whoever says it, a syllable is no other word
        expected |= {"kind": "face", "words": match[1]}
        text = text.replace(match[0], "it")
    if match := _FACE.search(text):
        colour, hair = match.groups()
        expected |= {"kind": "face", "colour": colour} | ({"hair": hair} if hair else {})
        text = text.replace(match[0], "it")
    if expected.get("kind") == "face":
        for name, phrases in (("voice", _VOICES), ("place", _PLACES)):
            if value := _first(text, phrases):
                expected[name] = value
    for kind, pattern in _AUDIBILITY.items():
        if pattern.search(text):
            expected["kind"] = kind
    material = _first(text, _MATERIALS) or _first(text, _SOUNDS)
    if material:
        expected["material"] = material
    direction = _first(text, _DIRECTIONS)
    if direction:
        expected["direction"] = direction
    return expected


def _first(text: str, wordings: Mapping[str, str]) -> str | None:
    for wording, value in wordings.items():
        if re.search(rf"\b{re.escape(wording)}\b", text):
            return value
    return None
