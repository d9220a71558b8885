"""`soundstage train`: train a part of a model by a recipe."""

import sys
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

    def run(self) -> int:
        """Train, then write the averaged weights."""
        import torch

        from soundstage.core.config import load_toml
        from soundstage.core.errors import RequestError
        from soundstage.training import distributed
        from soundstage.training.export import write_component
        from soundstage.training.loop import Trainer
        from soundstage.training.plan import is_plan, run_plan
        from soundstage.training.recipe import Recipe
        from soundstage.training.tasks.registry import build_task

        if self.threads:
            torch.set_num_threads(self.threads)
        if is_plan(self.recipe):
            if self.export_only:
                raise RequestError(
                    f"--export-only takes the recipe of one stage, and {self.recipe} is a plan of several"
                )
            model = run_plan(
                self.recipe,
                self.out,
                torch.device(self.device),
                overrides=self.set,
                max_seconds=60 * self.max_minutes,
                on_log=_report,
            )
            if model is not None:
                _report(f"wrote {model}")
            distributed.stop()
            return 0
        recipe = load_toml(Recipe, self.recipe, self.set)
        trainer = Trainer(recipe, build_task(recipe, torch.device(self.device)), self.out)
        trainer.resume()
        if not self.export_only:
            trainer.run(max_seconds=60 * self.max_minutes, on_log=_report)
        if trainer.rank == 0:
            write_component(self.out / "model.safetensors", *trainer.export())
            _report(f"wrote {self.out / 'model.safetensors'}")
        distributed.stop()
        return 0


def _report(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
