"""What there is to see and hear in one clip: a subject of some kind, as plain data."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from soundstage.core.errors import RequestError
from soundstage.data.world.ambience import Ambience, sample_ambience
from soundstage.data.world.kind import (
    CLIP_SECONDS,
    MIN_ASPECT,
    Audibility,
    Event,
    Split,
    Subject,
)

if TYPE_CHECKING:
    from soundstage.data.world.kind import SceneKind

SILENT_SHARE, UNSEEN_SHARE = 0.06, 0.06  # of the scenes of kinds that can be so
LAYER_SHARE = 0.12  # of the scenes of kinds that take them, if seen and heard


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A subject, and whether it is seen and heard."""

    kind: str  # name in `kinds.KINDS`
    subject: Any  # a `Subject` of that kind
    audibility: Audibility = "normal"
    layer: Ambience | None = None  # rain or wind over it, seen and heard

    @classmethod
    def from_seed(
        cls,
        seed: int,
        split: Split = "train",
        *,
        duration: float = CLIP_SECONDS,
        aspect: float = 1.0,
        kinds: Sequence[str] = (),
        plain: bool = False,
    ) -> "Scene":
        """Draw the scene that `seed` stands for in `split`; the same on every machine.

        Args:
            duration: Length of the clip in seconds; things stay in the picture a little longer.
            aspect: Picture width over height, at least `MIN_ASPECT`.
            kinds: Names of the kinds to draw from; none = all.
            plain: Whether to draw only scenes that are seen and heard, with nothing laid over them, filmed by
                a camera that stands.
        """
        from soundstage.data.world.kinds import chosen_kinds  # not above: the kinds need torch

        if duration <= 0:
            raise RequestError(f"duration={duration} should be positive, such as {CLIP_SECONDS:.2f} seconds")
        if aspect < MIN_ASPECT:
            raise RequestError(
                f"aspect={aspect:.2f} (width over height) is below {MIN_ASPECT}; use a wider picture"
            )
        options = chosen_kinds(kinds)
        rng, subject_rng = random.Random(f"kind:{split}:{seed}"), random.Random(f"{split}:{seed}")
        kind = rng.choices(options, [option.weight for option in options])[0]
        while True:
            subject = kind.sample(subject_rng, split=split, duration=duration, aspect=aspect)
            audibility = _sample_audibility(kind, rng)
            layer = None
            if kind.takes_layers and audibility == "normal" and rng.random() < LAYER_SHARE:
                layer = sample_ambience(rng, split=split, duration=duration, aspect=aspect, is_layer=True)
            scene = cls(kind=kind.name, subject=subject, audibility=audibility, layer=layer)
            if scene.is_plain or not plain:
                return scene

    @property
    def is_plain(self) -> bool:
        """Whether it is seen and heard, with nothing laid over it, filmed by a camera that stands."""
        is_still = self._subject.camera.turn == "still"
        return is_still and self.audibility == "normal" and self.layer is None

    @property
    def aspect(self) -> float:
        """Picture width over height."""
        return self._subject.aspect

    @property
    def _subject(self) -> Subject:
        subject: Subject = self.subject
        return subject

    def events_before(self, duration: float) -> tuple[Event, ...]:
        """Events of the first `duration` seconds, in order, each with whether it is seen and heard."""
        events = self._subject.events_before(duration)
        if self.audibility == "silent":
            return tuple(replace(event, heard=False) for event in events)
        if self.audibility == "off-screen":
            return tuple(replace(event, seen=False) for event in events)
        return events

    def mirrored(self) -> "Scene":
        """Swap left and right in picture, sound and, with the same random generator, caption."""
        layer = self.layer and self.layer.mirrored()
        return replace(self, subject=self._subject.mirrored(), layer=layer)

    def facts(self) -> dict[str, Any]:
        """Plain data about what it is, without what happens when."""
        return {
            "kind": self.kind,
            "audibility": self.audibility,
            "camera": self._subject.camera.turn,
            "layer": self.layer and self.layer.facts(),
            **self._subject.facts(),
        }

    def to_dict(self, duration: float) -> dict[str, Any]:
        """Plain data about the first `duration` seconds, for a JSON file beside the clip."""
        return {**self.facts(), "events": [asdict(event) for event in self.events_before(duration)]}


def _sample_audibility(kind: "SceneKind", rng: random.Random) -> Audibility:
    draw = rng.random()
    if kind.describe_silent is not None and draw < SILENT_SHARE:
        return "silent"
    if kind.describe_unseen is not None and draw > 1 - UNSEEN_SHARE:
        return "off-screen"
    return "normal"
