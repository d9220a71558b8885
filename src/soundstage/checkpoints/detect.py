"""Tell the generation of a checkpoint from its metadata."""

import re
from collections.abc import Mapping
from typing import Any

from soundstage.checkpoints.generation import Generation
from soundstage.checkpoints.versions.embedded import EMBEDDED, MARK, MARK_KEY
from soundstage.checkpoints.versions.ltx_2_0 import LTX_2_0
from soundstage.checkpoints.versions.ltx_2_3 import LTX_2_3
from soundstage.checkpoints.versions.ltx_2_5 import LTX_2_4, LTX_2_5
from soundstage.core.errors import CheckpointError

RELEASED = (LTX_2_0, LTX_2_3, LTX_2_4, LTX_2_5)  # ascending
GENERATIONS = {generation.name: generation for generation in (*RELEASED, EMBEDDED)}


def parse_version(text: str) -> tuple[int, ...]:
    """Read the numbers of a version: "2.4-rc2" and "2.4.rc2" are both (2, 4).

    Raises:
        CheckpointError: It does not begin with a number.
    """
    numbers: list[int] = []
    for component in text.strip().lstrip("v").replace("-", ".").split("."):
        if not re.fullmatch(r"[0-9]+", component):
            break
        numbers.append(int(component))
    if not numbers:
        raise CheckpointError(f"model_version={text!r} does not begin with a number such as 2.3")
    return tuple(numbers)


def detect_generation(metadata: Mapping[str, Any]) -> Generation:
    """Choose the newest known generation that is not newer than the file; without a version, the oldest.

    Raises:
        CheckpointError: The file is of a model before LTX-2.
    """
    if metadata.get(MARK_KEY) == MARK:
        return EMBEDDED
    text = str(metadata.get("model_version") or "")
    if not text:
        return LTX_2_0
    version = parse_version(text)
    if version < (2,):
        raise CheckpointError(
            f"model_version={text} is an LTX-Video model without sound; LTX-2.0 is the first"
        )
    known = [generation for generation in RELEASED if generation.version <= version]
    return known[-1] if known else LTX_2_0
