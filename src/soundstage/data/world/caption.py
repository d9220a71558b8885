"""What one would say about a scene: several wordings that never mention what cannot be seen or heard."""

import random

from soundstage.data.world.ambience_caption import add_layer_words
from soundstage.data.world.kinds import KINDS
from soundstage.data.world.scene import Scene

SILENT_WORDS = ("in silence", "in silence", "silently", "without a sound")


def caption_of(scene: Scene, rng: random.Random) -> str:
    """Describe a scene in one of many wordings, in lower case."""
    kind = KINDS[scene.kind]
    if scene.audibility == "silent":
        assert kind.describe_silent is not None
        return f"{kind.describe_silent(scene.subject, rng)} {rng.choice(SILENT_WORDS)}"
    if scene.audibility == "off-screen":
        assert kind.describe_unseen is not None
        return kind.describe_unseen(scene.subject, rng)
    caption = kind.describe(scene.subject, rng)
    return caption if scene.layer is None else add_layer_words(caption, scene.layer, rng)
