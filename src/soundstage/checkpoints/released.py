"""The configurations of the released models, for files that come without one and for plans without files.

They are what the official files say under their metadata key `config`; tensor names and shapes follow.
"""

import functools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

RELEASED_CONFIGS = Path(__file__).parent.parent / "assets" / "released_configs.json"
MODEL_VERSIONS: Mapping[str, str] = {"2.0": "2.0.0", "2.3": "2.3.0", "2.5": "2.5.0"}
# What 2.5 changes of the transformer of 2.3; its autoencoders and its vocoder are built alike.
_CHANGES_OF_2_5 = {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}


@functools.cache
def released_configs() -> Mapping[str, Mapping[str, Any]]:
    """Return the configurations by generation: "2.0" and "2.3"."""
    configs: dict[str, Mapping[str, Any]] = json.loads(RELEASED_CONFIGS.read_text(encoding="utf-8"))
    return configs


def planned_configs() -> Mapping[str, Mapping[str, Any]]:
    """Return all configurations that sizes follow from: the released ones, and what is known of "2.5"."""
    known = released_configs()
    before = known["2.3"]
    return {**known, "2.5": {**before, "transformer": {**before["transformer"], **_CHANGES_OF_2_5}}}


def generation_of(names: Collection[str]) -> str | None:
    """Tell the generation of a transformer by the names of its tensors; None if it is none of these."""
    if not any("transformer_blocks.47." in name for name in names):
        return None
    if any("keyframes_abs_pos_embedding" in name for name in names):
        return None  # 2.5
    return "2.3" if any("to_gate_logits" in name for name in names) else "2.0"
