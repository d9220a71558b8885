"""`soundstage train`: train a part of a model by a recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a part of a model, or a whole one; stop it at any time and call it again to continue.

    Example: soundstage train recipes/video_vae.toml --out runs/video_vae --set optim.lr=1e-3
    """

    recipe: Annotated[Path, tyro.conf.Positional]
    """TOML file that defines the run, or a plan: the runs that make a whole model."""
    out: Path
    """Directory of the log, the state to resume from, and the result `model.safetensors`; of a plan, with a
    directory for each of its stages."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Overrides of the recipe, such as optim.lr=1e-3."""
    device: str = "cpu"
    """Where to train: cpu or cuda."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    max_minutes: float = float("inf")
    """End this session after so many minutes, resumable."""
    export_only: bool = False
    """Write the result from the saved state without training."""
    piece_mib: float = 0.0
    """Write the result once more, to `pieces` in the directory, in files of at most so many MiB; 0 = not."""

    def run(self) -> int:
        """Train, then write the averaged weights."""
        from soundstage.training.session import Session, report

        Session(
            recipe=self.recipe,
            out=self.out,
            overrides=self.set,
            device=self.device,
            threads=self.threads,
            max_minutes=self.max_minutes,
            export_only=self.export_only,
            piece_mib=self.piece_mib,
        ).run(report)
        return 0
