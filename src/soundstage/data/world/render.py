"""Draw scenes of any kinds in one batch."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch

from soundstage.core.types import VideoPixels
from soundstage.data.world.ambience_picture import paint_layer
from soundstage.data.world.kind import Render
from soundstage.data.world.kinds import KINDS
from soundstage.data.world.scene import Scene


def render_video(
    scenes: Sequence[Scene],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: Fraction | float | int,
    device: torch.device | str = "cpu",
) -> VideoPixels:
    """Draw each scene as a clip; frame k shows time k / frame_rate.

    Positions are sub-pixel and edges are anti-aliased, so motion slower than a pixel a frame still shows.
    """
    pixels = torch.empty(len(scenes), 3, num_frames, height, width, device=device)
    for render, rows in _by_renderer(scenes):
        pixels[rows] = render(
            [scenes[row].subject for row in rows],
            num_frames=num_frames,
            height=height,
            width=width,
            frame_rate=frame_rate,
            device=device,
        )
    for row, scene in enumerate(scenes):
        if scene.layer is not None:
            paint_layer(pixels[row], scene.layer, frame_rate)
    return pixels


def _by_renderer(scenes: Sequence[Scene]) -> Iterator[tuple[Render, list[int]]]:
    """Each way of drawing with the scenes drawn so."""
    for kind in KINDS.values():
        for render, unseen in ((kind.render, False), (kind.render_unseen, True)):
            rows = [
                row
                for row, scene in enumerate(scenes)
                if scene.kind == kind.name and (scene.audibility == "off-screen") == unseen
            ]
            if rows:
                assert render is not None
                yield render, rows
