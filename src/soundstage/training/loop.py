"""The training loop: one for every task, resumable, alike on CPU and GPU and over several processes."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from soundstage.core.config import to_dict
from soundstage.core.errors import ConfigError
from soundstage.core.rng import named_seed
from soundstage.training import distributed
from soundstage.training.ema import EMA
from soundstage.training.export import warm_start
from soundstage.training.optim import build_optimizers, lr_share
from soundstage.training.recipe import Recipe
from soundstage.training.state import load_state, pack_optimizer, save_state, unpack_optimizer

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


@runtime_checkable
class Task(Protocol):
    """What a trainable part tells the loop."""

    modules: dict[str, nn.Module]  # phase name -> what that phase trains; the first is the product

    def batch(self, seed: int) -> Any:
        """Make one batch; equal seeds give equal batches."""
        ...

    def loss(self, phase: str, batch: Any, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Compute the loss that the phase minimises, and what to log beside it."""
        ...

    def validate(self) -> Metrics:
        """Measure on held-out samples, with the averaged weights in place."""
        ...

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return header sections and tensors under their official names."""
        ...

    def memory(self) -> dict[str, Tensor]:
        """Return what must survive a stop besides weights, such as a pool of rendered clips."""
        ...

    def restore(self, memory: dict[str, Tensor]) -> None:
        """Take back what `memory` returned."""
        ...


class Trainer:
    """A run: a recipe, its task, and a directory that holds log, state and result."""

    def __init__(self, recipe: Recipe, task: Task, directory: Path) -> None:
        self.recipe, self.task, self.directory = recipe, task, directory
        self.rank, _ = distributed.share()
        in_half = recipe.dtype == "bfloat16"
        self.optimizers = {
            name: build_optimizers(module, recipe.optim, in_half) for name, module in task.modules.items()
        }
        self.product = next(iter(task.modules.values()))
        if recipe.init:
            warm_start(task.export()[1], Path(recipe.init))
        for module in task.modules.values():
            distributed.broadcast(module.state_dict().values())
        self.ema = EMA(self.product, recipe.optim.ema_decay)
        self._writer: Any = None  # TensorBoard's
        self.step = 0
        self.seconds = 0.0  # spent training, over all sessions

    def resume(self) -> bool:
        """Continue from the directory's state, if there is one.

        Raises:
            ConfigError: The state belongs to another recipe, or is damaged.
        """
        loaded = load_state(self.directory)
        if loaded is None:
            return False
        tensors, plain = loaded
        if plain["task"] != self.recipe.task:
            raise ConfigError(
                f"{self.directory} holds a run of task {plain['task']!r}, not {self.recipe.task!r}"
            )
        for name, module in self.task.modules.items():
            try:
                module.load_state_dict(_below(tensors, f"module.{name}"))
            except RuntimeError as error:
                raise ConfigError(f"{self.directory} holds a run of another network: {error}") from error
            for index, optimizer in enumerate(self.optimizers[name]):
                unpack_optimizer(f"optim.{name}.{index}", optimizer, tensors)
        self.ema.load(_below(tensors, "ema"))
        self.task.restore(_below(tensors, "memory"))
        self.step, self.seconds = plain["step"], plain["seconds"]
        return True

    def run(
        self, *, max_seconds: float = float("inf"), on_log: Callable[[str], None] = logger.info
    ) -> Metrics:
        """Train to the end of the recipe, or for at most `max_seconds` of this session.

        Returns:
            The last validation's figures.
        """
        started = last_saved = time.monotonic()
        seconds_before = self.seconds
        sums: Metrics = {}
        count = 0
        if self.recipe.init and self.step == 0:
            self._log(self.validate(), on_log)  # what the given weights are worth
        while self.progress < 1:
            metrics = self._train_step()
            self.step += 1
            self.seconds = seconds_before + time.monotonic() - started
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value
            count += 1
            if self.step % self.recipe.log_every == 0:
                self._log({key: value / count for key, value in sums.items()}, on_log)
                sums, count = {}, 0
            if self.step % self.recipe.validate_every == 0:
                self._log(self.validate(), on_log)
            now = time.monotonic()
            if distributed.agree(now - started > max_seconds):
                break
            if distributed.agree(now - last_saved > 60 * self.recipe.save_every_minutes):
                self.save()
                last_saved = now
        self.save()
        figures = self.validate()
        self._log(figures, on_log)
        return figures

    @property
    def progress(self) -> float:
        """How far the run is, 0 to 1, by steps or by time, whichever is further."""
        by_steps = self.step / self.recipe.num_steps
        budget = 60 * self.recipe.budget_minutes
        reached = max(by_steps, self.seconds / budget if budget else 0.0)
        return 1.0 if distributed.agree(reached >= 1) else reached

    def validate(self) -> Metrics:
        """Measure the averaged weights on held-out samples."""
        self.ema.swap(self.product)
        self.product.eval()
        with torch.no_grad():
            figures = self.task.validate()
        self.product.train()
        self.ema.swap(self.product)
        return {f"held_out.{key}": value for key, value in figures.items()}

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return header sections and averaged weights under their official names."""
        self.ema.swap(self.product)
        sections, tensors = self.task.export()
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        self.ema.swap(self.product)
        return sections, tensors

    def save(self) -> None:
        """Write the state; only the first process does."""
        if self.rank != 0:
            return
        tensors = {f"ema.{name}": t for name, t in self.ema.weights.items()}
        tensors |= {f"memory.{name}": t for name, t in self.task.memory().items()}
        for name, module in self.task.modules.items():
            tensors |= {f"module.{name}.{key}": t for key, t in module.state_dict().items()}
            for index, optimizer in enumerate(self.optimizers[name]):
                tensors |= pack_optimizer(f"optim.{name}.{index}", optimizer)
        plain = {"step": self.step, "seconds": self.seconds, "task": self.recipe.task}
        save_state(self.directory, tensors, {**plain, "recipe": to_dict(self.recipe)})

    def _train_step(self) -> Metrics:
        seed = named_seed(self.recipe.seed, f"train.{self.step}.{self.rank}")
        generator = torch.Generator().manual_seed(seed)
        batch = self.task.batch(seed)
        share = lr_share(self.recipe.optim, self.step, self.progress)
        metrics: Metrics = {}
        for phase, module in self.task.modules.items():
            module.zero_grad(set_to_none=True)
            with self._precision():
                loss, logged = self.task.loss(phase, batch, generator)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            params = [p for p in module.parameters() if p.grad is not None]
            distributed.average_gradients(params)
            norm = nn.utils.clip_grad_norm_(params, self.recipe.optim.grad_clip or float("inf"))
            if not torch.isfinite(norm):
                logger.warning("step %d: %s gradient is not finite; the update is skipped", self.step, phase)
                continue
            for optimizer in self.optimizers[phase]:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * share
                optimizer.step()
            metrics |= {phase: loss.item(), f"{phase}.grad_norm": norm.item(), **logged}
        self.ema.update(self.product, self.step)
        return metrics

    def _precision(self) -> torch.autocast:
        """Let products of matrices run in the recipe's number format; weights and sums stay float32."""
        device = next(self.product.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16")

    def _log(self, figures: Mapping[str, float], on_log: Callable[[str], None]) -> None:
        if self.rank != 0:
            return
        shown = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        rate = self.seconds / max(self.step, 1)
        left = (self.recipe.num_steps - self.step) * rate
        if self.recipe.budget_minutes:
            left = min(left, 60 * self.recipe.budget_minutes - self.seconds)
        on_log(f"step {self.step}  {shown}  {rate:.3g} s/step  {max(left, 0) / 60:.0f} min left")
        self.directory.mkdir(parents=True, exist_ok=True)
        line = {"step": self.step, "seconds": round(self.seconds, 1), **figures}
        with (self.directory / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.recipe.tensorboard:
            self._draw(figures)

    def _draw(self, figures: Mapping[str, float]) -> None:
        """Write the figures as TensorBoard's curves.

        Raises:
            ConfigError: TensorBoard is not installed.
        """
        if self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError(
                    "tensorboard=true needs the package: pip install soundstage[train]"
                ) from error
            self._writer = SummaryWriter(str(self.directory / "tensorboard"))
        for key, value in figures.items():
            self._writer.add_scalar(key, value, self.step)
        self._writer.flush()


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) + 1 :]: t for key, t in tensors.items() if key.startswith(f"{prefix}.")}
