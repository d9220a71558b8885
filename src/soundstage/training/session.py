"""One session of training: a recipe or a plan, for as long as there is time; alone, or one of several."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from soundstage.core.config import load_toml
from soundstage.core.errors import RequestError
from soundstage.core.files import check_folder
from soundstage.runtime.device import find_device
from soundstage.training import distributed
from soundstage.training.export import write_component, write_pieces
from soundstage.training.loop import Trainer
from soundstage.training.plan import RESULT, is_plan, run_plan
from soundstage.training.recipe import Recipe
from soundstage.training.tasks.registry import build_task


@dataclass(frozen=True, kw_only=True)
class Session:
    """What `soundstage train` and `python -m soundstage.training` are asked for."""

    recipe: Path  # of one run, or a plan
    out: Path
    overrides: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int = 0  # of the CPU; 0 leaves torch's choice
    max_minutes: float = float("inf")
    export_only: bool = False
    piece_mib: float = 0.0  # the result once more in files of at most so many MiB; 0 = not

    def run(self, on_log: Callable[[str], None]) -> None:
        """Train, then write the averaged weights.

        Raises:
            ConfigError: The recipe is wrong.
            RequestError: There is no such device, nothing can be written to the folder, or there is nothing
                to export.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        plan = is_plan(self.recipe)
        if plan and self.export_only:
            raise RequestError(
                f"--export-only takes the recipe of one stage, and {self.recipe} is a plan of several"
            )
        with distributed.joined(find_device(self.device)) as device:
            result = self._run_plan(device, on_log) if plan else self._run_recipe(device, on_log)
            if result is not None and distributed.share()[0] == 0:
                on_log(f"wrote {result}")
                if self.piece_mib:
                    pieces = write_pieces(result, self.out / "pieces", int(self.piece_mib * 2**20))
                    on_log(f"wrote {len(pieces)} pieces to {self.out / 'pieces'}")

    def _run_plan(self, device: torch.device, on_log: Callable[[str], None]) -> Path | None:
        return run_plan(
            self.recipe,
            self.out,
            device,
            overrides=self.overrides,
            max_seconds=60 * self.max_minutes,
            on_log=on_log,
        )

    def _run_recipe(self, device: torch.device, on_log: Callable[[str], None]) -> Path:
        recipe = load_toml(Recipe, self.recipe, self.overrides)
        if not self.export_only:
            check_folder(self.out)
        trainer = Trainer(recipe, build_task(recipe, device), self.out)
        if not trainer.resume() and self.export_only:
            raise RequestError(f"--export-only: {self.out} holds no state of a run; train there first")
        if not self.export_only:
            trainer.run(max_seconds=60 * self.max_minutes, on_log=on_log)
        if trainer.rank == 0:
            write_component(self.out / RESULT, *trainer.export())
        return self.out / RESULT


def report(line: str) -> None:
    """Write a line of progress for people; results are files."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
