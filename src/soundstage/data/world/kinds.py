"""The kinds of scenes: what the world consists of."""

from collections.abc import Sequence

from soundstage.core.config import nearest
from soundstage.core.errors import ConfigError
from soundstage.data.world.ambience import is_held_out_ambience, sample_ambience
from soundstage.data.world.ambience_caption import describe_ambience, describe_silent_ambience
from soundstage.data.world.ambience_picture import render_ambience
from soundstage.data.world.ambience_sound import sound_ambience
from soundstage.data.world.bell import BELL
from soundstage.data.world.bounce import is_held_out, sample_filmed_bounce
from soundstage.data.world.bounce_caption import (
    describe_bounce,
    describe_silent_bounce,
    describe_unseen_bounce,
)
from soundstage.data.world.bounce_picture import render_bounces, render_stages
from soundstage.data.world.bounce_sound import sound_bounces
from soundstage.data.world.clock import CLOCK
from soundstage.data.world.face import describe_face, describe_silent_face, describe_unseen_face, sample_face
from soundstage.data.world.face import is_held_out as is_held_out_face
from soundstage.data.world.face_drawing import render_faces, render_places
from soundstage.data.world.kind import SceneKind
from soundstage.data.world.objects import is_held_out_objects, sample_objects
from soundstage.data.world.objects_caption import describe_objects, describe_silent_objects
from soundstage.data.world.objects_picture import render_objects
from soundstage.data.world.objects_sound import sound_objects
from soundstage.data.world.pad import PAD
from soundstage.data.world.voice import speak
from soundstage.data.world.xylophone import XYLOPHONE

BOUNCE = SceneKind(
    name="bounce",
    weight=3.2,
    sample=sample_filmed_bounce,
    describe=describe_bounce,
    render=render_bounces,
    synthesise=sound_bounces,
    is_held_out=lambda bounce: is_held_out(bounce.colour, bounce.shape, bounce.floor),
    describe_silent=describe_silent_bounce,
    describe_unseen=describe_unseen_bounce,
    render_unseen=render_stages,
)
FACE = SceneKind(
    name="face",
    weight=2.0,
    sample=sample_face,
    describe=describe_face,
    render=render_faces,
    synthesise=speak,
    is_held_out=is_held_out_face,
    describe_silent=describe_silent_face,
    describe_unseen=describe_unseen_face,
    render_unseen=render_places,
    takes_layers=False,  # rain before the mouth and noise in the voice would hide what is said
)
OBJECTS = SceneKind(
    name="objects",
    weight=1.6,
    sample=sample_objects,
    describe=describe_objects,
    render=render_objects,
    synthesise=sound_objects,
    is_held_out=is_held_out_objects,
    describe_silent=describe_silent_objects,
)
AMBIENCE = SceneKind(
    name="ambience",
    weight=0.8,
    sample=sample_ambience,
    describe=describe_ambience,
    render=render_ambience,
    synthesise=sound_ambience,
    is_held_out=is_held_out_ambience,
    describe_silent=describe_silent_ambience,
    takes_layers=False,
)

KINDS: dict[str, SceneKind] = {
    kind.name: kind for kind in (BOUNCE, OBJECTS, FACE, AMBIENCE, CLOCK, BELL, PAD, XYLOPHONE)
}


def chosen_kinds(names: Sequence[str]) -> tuple[SceneKind, ...]:
    """Look up kinds by name; no name stands for all of them.

    Raises:
        ConfigError: There is no such kind.
    """
    for name in names:
        if name not in KINDS:
            raise ConfigError(f"kind {name!r} is none of {', '.join(KINDS)}{nearest(name, KINDS)}")
    return tuple(KINDS[name] for name in names or KINDS)
