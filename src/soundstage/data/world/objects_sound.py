"""Sound of objects: blows on the floor, thuds of walls, clacks of two that meet."""

from collections.abc import Sequence

import torch

from soundstage.core.types import Waveform
from soundstage.data.world.bounce_sound import SIZE_PITCH, Blow, sound_blows
from soundstage.data.world.objects import Objects

SIDEWAYS_GAIN = 2.6  # what rolls is slower than what falls; its contacts shall be as loud


def sound_objects(
    scenes: Sequence[Objects],
    *,
    duration: float,
    sample_rate: int,
    device: torch.device | str = "cpu",
) -> Waveform:
    """Make the stereo sound of the first `duration` seconds of each scene."""
    blows = []
    for row, scene in enumerate(scenes):
        for contact in scene.contacts_before(duration):
            event = contact.event
            pitches = [SIZE_PITCH[scene.bodies[index].size] for index in contact.bodies]
            gain = 1.0 if event.sound == scene.floor else SIDEWAYS_GAIN
            blows.append(
                Blow(
                    row=row,
                    time=event.time,
                    pan=scene.pan(event.x),
                    strength=event.strength * gain,
                    material=event.sound,
                    pitch=sum(pitches) / len(pitches) * scene.detune,
                    noise=scene.noise,
                )
            )
    return sound_blows(blows, num_rows=len(scenes), duration=duration, sample_rate=sample_rate, device=device)
