"""The kinds of scenes: what the world consists of."""

from collections.abc import Sequence

from soundstage.core.config import nearest
from soundstage.core.errors import ConfigError
from soundstage.data.world.bell import BELL
from soundstage.data.world.bounce import is_held_out, sample_bounce
from soundstage.data.world.bounce_caption import describe_bounce
from soundstage.data.world.bounce_picture import render_bounces
from soundstage.data.world.bounce_sound import sound_bounces
from soundstage.data.world.clock import CLOCK
from soundstage.data.world.kind import SceneKind
from soundstage.data.world.pad import PAD
from soundstage.data.world.xylophone import XYLOPHONE

BOUNCE = SceneKind(
    name="bounce",
    weight=4.0,
    sample=sample_bounce,
    describe=describe_bounce,
    render=render_bounces,
    synthesise=sound_bounces,
    is_held_out=lambda bounce: is_held_out(bounce.colour, bounce.shape, bounce.floor),
)

KINDS: dict[str, SceneKind] = {kind.name: kind for kind in (BOUNCE, CLOCK, BELL, PAD, XYLOPHONE)}


def chosen_kinds(names: Sequence[str]) -> tuple[SceneKind, ...]:
    """Look up kinds by name; no name stands for all of them.

    Raises:
        ConfigError: There is no such kind.
    """
    for name in names:
        if name not in KINDS:
            raise ConfigError(f"kind {name!r} is none of {', '.join(KINDS)}{nearest(name, KINDS)}")
    return tuple(KINDS[name] for name in names or KINDS)
