"""A plan: several recipes one after the other, until there is a whole model.

Each stage has a folder beside the others. A stage is done when its `model.safetensors` is there, so a plan
goes on where it was stopped, within a stage and between stages, in as many sessions as it takes.
"""

import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from soundstage.core.config import load_toml, nearest
from soundstage.core.errors import ConfigError
from soundstage.core.files import check_folder
from soundstage.training import distributed
from soundstage.training.export import assemble, write_component
from soundstage.training.loop import Trainer
from soundstage.training.recipe import Recipe
from soundstage.training.tasks.registry import build_task

RESULT = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One recipe of a plan."""

    name: str  # of its folder
    recipe: str  # file, relative to the plan's
    set: tuple[str, ...] = ()  # overrides of the recipe; `{name}` stands for the result of that stage


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Stages in order, and those whose results make up the model."""

    stages: tuple[Stage, ...]
    parts: tuple[str, ...]
    base: str = ""  # model whose parts have newer weights here, and whose others are kept; "" = none

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"two stages are called {twice!r}")
        for part in self.parts:
            if part not in names:
                raise ConfigError(f"parts: there is no stage {part!r}{nearest(part, names)}")


def is_plan(file: Path) -> bool:
    """Tell whether a file is a plan rather than the recipe of one run; one that cannot be read is not."""
    try:
        return "stages" in tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False


def run_plan(
    file: Path,
    out: Path,
    device: torch.device,
    *,
    overrides: Sequence[str] = (),
    max_seconds: float = float("inf"),
    on_log: Callable[[str], None],
) -> Path | None:
    """Train what is not trained yet, then join the parts.

    Args:
        out: Folder that gets one folder per stage, and the model.
        overrides: Of every stage's recipe, after the stage's own.
        max_seconds: Of this session.

    Returns:
        The model's file, or None where the session ended before it could be made.

    Raises:
        ConfigError: The plan or one of its recipes is wrong; all are read before anything is trained.
        RequestError: Nothing can be written to the folder.
    """
    plan = load_toml(Plan, file)
    started = time.monotonic()
    recipes = [_recipe(stage, plan, file, out, overrides) for stage in plan.stages]
    check_folder(out)
    for stage, recipe in zip(plan.stages, recipes, strict=True):
        folder = out / stage.name
        if (folder / RESULT).exists():
            continue
        if distributed.agree(time.monotonic() - started >= max_seconds):
            on_log(f"out of time before stage {stage.name}; the same command goes on")
            return None
        on_log(f"stage {stage.name}")
        trainer = Trainer(recipe, build_task(recipe, device), folder)
        trainer.resume()
        trainer.run(max_seconds=max_seconds - (time.monotonic() - started), on_log=on_log)
        if trainer.progress < 1:
            on_log(f"stage {stage.name} is {trainer.progress:.0%} done; the same command goes on")
            return None
        if trainer.rank == 0:
            write_component(folder / RESULT, *trainer.export())
        distributed.agree(value=False)  # the next stage reads what the first process writes
    model = out / RESULT
    if distributed.share()[0] == 0:
        parts = [out / part / RESULT for part in plan.parts]
        assemble(parts, model, torch.float16, base=Path(plan.base) if plan.base else None)
    return model


def _recipe(stage: Stage, plan: Plan, file: Path, out: Path, overrides: Sequence[str]) -> Recipe:
    results = {other.name: str(out / other.name / RESULT) for other in plan.stages}
    own = []
    for text in stage.set:
        try:
            own.append(text.format(**results))
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"stage {stage.name}: {text!r} names no stage; there are {', '.join(results)}"
            ) from error
    return load_toml(Recipe, file.parent / stage.recipe, [*own, *overrides])
