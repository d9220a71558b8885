"""Everything that is measured, in the order of the report: `METRICS`, and `FINDINGS` for each single clip."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from soundstage.evaluation.detectors.ambience import find_heard_ambience, find_seen_ambience
from soundstage.evaluation.detectors.contacts import find_contacts
from soundstage.evaluation.detectors.floor import find_floor
from soundstage.evaluation.detectors.impacts import find_impacts
from soundstage.evaluation.detectors.motion import find_direction
from soundstage.evaluation.detectors.mouth import find_face_colour, find_face_place, find_mouth
from soundstage.evaluation.detectors.notes import find_notes
from soundstage.evaluation.detectors.notes_bars import find_struck_bars
from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.detectors.panning import find_pans
from soundstage.evaluation.detectors.presence import find_presence
from soundstage.evaluation.detectors.silhouette import find_colour, find_shape, find_size
from soundstage.evaluation.detectors.speech import find_lip_sync, find_voice
from soundstage.evaluation.detectors.speech_syllables import find_syllables
from soundstage.evaluation.detectors.strikes import find_bell_strikes, find_pad_hits
from soundstage.evaluation.detectors.ticks import find_turns
from soundstage.evaluation.detectors.timbre import find_timbre
from soundstage.evaluation.metrics import (
    adherence,
    container,
    correspondence,
    placement,
    playing,
    presence,
    sound_level,
    steadiness,
    synchrony,
    talking,
    weather,
)
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import Observation

METRICS: dict[str, Metric] = {
    **synchrony.METRICS,
    **adherence.METRICS,
    **placement.METRICS,
    **playing.METRICS,
    **presence.METRICS,
    **weather.METRICS,
    **talking.METRICS,
    **correspondence.METRICS,
    **steadiness.METRICS,
    **sound_level.METRICS,
    **container.METRICS,
}


@dataclass(frozen=True)
class Finding:
    """What is written down about each clip: plain values, tuples or frozen dataclasses of them."""

    detector: Callable[[Observation], Any]
    kinds: tuple[str, ...] = ()  # of scenes that it makes sense for; none = any clip

    def speaks_of(self, kind: str | None) -> bool:
        """Whether it makes sense for a clip of that kind."""
        return not self.kinds or kind in self.kinds


BOUNCE, FACE = ("bounce", "varied"), ("face",)

FINDINGS: dict[str, Finding] = {
    "colour": Finding(find_colour, BOUNCE),
    "shape": Finding(find_shape, BOUNCE),
    "size": Finding(find_size, BOUNCE),
    "floor": Finding(find_floor, BOUNCE),
    "timbre": Finding(find_timbre, BOUNCE),
    "direction": Finding(find_direction, BOUNCE),
    "impacts": Finding(find_impacts, BOUNCE),
    "contacts": Finding(find_contacts, ("objects",)),
    "onsets": Finding(find_onsets),
    "pans": Finding(find_pans),
    "ambience seen": Finding(find_seen_ambience, ("ambience",)),
    "ambience heard": Finding(find_heard_ambience, ("ambience",)),
    "presence": Finding(find_presence, ("silent", "off-screen")),
    "turns": Finding(find_turns, ("clock",)),
    "strikes": Finding(find_bell_strikes, ("bell",)),
    "hits": Finding(find_pad_hits, ("pad",)),
    "notes": Finding(find_notes, ("xylophone", "off-screen")),
    "bars": Finding(find_struck_bars, ("xylophone",)),
    "face colour": Finding(find_face_colour, FACE),
    "face place": Finding(find_face_place, FACE),
    "mouth": Finding(find_mouth, FACE),
    "lip sync": Finding(find_lip_sync, FACE),
    "voice": Finding(find_voice, FACE),
    "syllables": Finding(find_syllables, FACE),
}
