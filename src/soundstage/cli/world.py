"""`soundstage world`: write sample clips of the procedural world, to look at and to listen to."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from soundstage.core.errors import RequestError
from soundstage.core.files import atomic_output

if TYPE_CHECKING:
    from soundstage.data.world.sample import WorldConfig

MAX_SECONDS = 60
CLIPS_AT_ONCE = 4  # bounds the memory of large pictures


@dataclass(frozen=True, kw_only=True)
class WorldCommand:
    """Write clips that models are trained on, with captions and the exact time and place of every event.

    Example: soundstage world --out samples -n 8 --seed 0
    """

    out: Path
    """Directory for the clips and `events.json`; made if it does not exist."""
    num_clips: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 8
    """How many clips."""
    seed: int = 0
    """Seed of the first clip; the others follow."""
    size: str = "64x64"
    """Width x height in pixels, such as 64x64."""
    duration: float = 2.04
    """Seconds of each clip, at most 60; a whole number of frames is made."""
    frame_rate: str = "24"
    """Frames per second, a number or a fraction such as 30000/1001."""
    sample_rate: Literal[16_000, 24_000, 48_000] = 24_000
    """Samples per second of the sound."""
    split: Literal["train", "held_out"] = "train"
    """Which combinations of attributes: those for training or those kept from it."""
    kinds: tuple[str, ...] = ()
    """Kinds of scenes, such as bounce; all kinds where none is named."""
    plain: bool = False
    """Only scenes that are seen and heard, with nothing laid over them and a camera that stands."""

    def run(self) -> int:
        """Write the clips, then their ground truth; the paths and captions go to stdout."""
        config = self._world_config()
        if self.num_clips < 1:
            raise RequestError(f"num_clips={self.num_clips} should be 1 or more")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"cannot make output folder {self.out}: {error.strerror or error}") from error
        records = []
        for record in self._write_clips(config):
            records.append(record)
            sys.stdout.write(f"{self.out / record['file']}  {record['caption']}\n")
        with atomic_output(self.out / "events.json") as path:
            path.write_text(json.dumps(records, indent=1) + "\n")
        return 0

    def _write_clips(self, config: "WorldConfig") -> Iterator[dict[str, Any]]:
        from soundstage.data.world.sample import World
        from soundstage.media.mux import write_clip

        world = World(config)
        seeds = range(self.seed, self.seed + self.num_clips)
        for first in range(0, len(seeds), CLIPS_AT_ONCE):
            group = seeds[first : first + CLIPS_AT_ONCE]
            batch = world.batch(group)
            for row, seed in enumerate(group):
                record = {
                    "file": f"{self.split}-{seed:05d}.mp4",
                    "seed": seed,
                    "split": self.split,
                    "caption": batch.captions[row],
                    **batch.scenes[row].to_dict(config.duration),
                }
                write_clip(
                    self.out / str(record["file"]),
                    batch.pixels[row],
                    batch.waveform[row],
                    frame_rate=config.frame_rate,
                    sample_rate=config.sample_rate,
                    metadata=record,
                )
                yield record

    def _world_config(self) -> "WorldConfig":
        from soundstage.data.world.sample import WorldConfig

        width, height = _parse_size(self.size)
        frame_rate = _parse_frame_rate(self.frame_rate)
        least = float(1 / frame_rate)
        if not least <= self.duration <= MAX_SECONDS:  # also refuses NaN
            raise RequestError(
                f"duration={self.duration} is not between {least:.3f} and {MAX_SECONDS} seconds"
            )
        return WorldConfig(
            num_frames=round(self.duration * frame_rate),
            height=height,
            width=width,
            frame_rate=frame_rate,
            sample_rate=self.sample_rate,
            split=self.split,
            kinds=self.kinds,
            plain=self.plain,
        )


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise RequestError(f"size={text!r} is not of the form WIDTHxHEIGHT, such as 64x64")
    return int(match[1]), int(match[2])


def _parse_frame_rate(text: str) -> Fraction:
    try:
        frame_rate = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise RequestError(f"frame_rate={text!r} is not a number such as 24 or 30000/1001") from error
    if frame_rate <= 0:
        raise RequestError(f"frame_rate={text} should be above 0, such as 24")
    return frame_rate
