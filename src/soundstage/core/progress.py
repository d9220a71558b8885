"""The progress event: what long work reports to whoever asked for it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One event of a long job; raising `Cancelled` from the callback stops the job cleanly."""

    stage: str  # "load", "encode_prompt", "denoise", "decode_video", "decode_audio", "write" ...
    step: int  # steps done in this stage
    num_steps: int
    seconds: float  # since the stage began
    bytes: int = 0

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the mean time of the steps so far; None before the first."""
        return None if self.step == 0 else self.seconds / self.step * (self.num_steps - self.step)


OnProgress = Callable[[Progress], None]
