"""Make the sound of scenes of any kinds in one batch."""

from collections.abc import Sequence

import torch

from soundstage.core.types import Waveform
from soundstage.data.world.ambience_sound import sound_ambience
from soundstage.data.world.kinds import KINDS
from soundstage.data.world.limiter import limit
from soundstage.data.world.scene import Scene


def synthesise(
    scenes: Sequence[Scene],
    *,
    duration: float,
    sample_rate: int,
    device: torch.device | str = "cpu",
) -> Waveform:
    """Make the stereo sound of the first `duration` seconds of each scene.

    A duration past the end of the clip is welcome: what happens there sounds too, so that a window cut from
    the result has no silence that the world would not have.
    """
    waveform = torch.zeros(len(scenes), 2, round(duration * sample_rate), device=device)
    for kind in KINDS.values():
        rows = [
            row
            for row, scene in enumerate(scenes)
            if scene.kind == kind.name and scene.audibility != "silent"
        ]
        if rows:
            subjects = [scenes[row].subject for row in rows]
            waveform[rows] = kind.synthesise(
                subjects, duration=duration, sample_rate=sample_rate, device=device
            )
    covered = [row for row, scene in enumerate(scenes) if scene.layer is not None]
    if covered:
        layers = [layer for scene in scenes if (layer := scene.layer) is not None]
        waveform[covered] += sound_ambience(layers, duration=duration, sample_rate=sample_rate, device=device)
    return limit(waveform)
