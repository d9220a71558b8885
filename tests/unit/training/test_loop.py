"""The loop trains, stops, resumes on the same curve, and survives what happens to a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soundstage.core.errors import ConfigError
from soundstage.training.loop import Trainer
from soundstage.training.recipe import OptimRecipe, Recipe
from soundstage.training.state import load_state


class LineTask:
    """Fit y = 3 x - 1 from noisy points; counts batches in its memory."""

    def __init__(self, poisoned_step: int | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)
        self.modules: dict[str, nn.Module] = {"loss": self.model}
        self.seen = 0
        self.poisoned_step = poisoned_step

    def batch(self, seed: int) -> Tensor:
        self.seen += 1
        return torch.randn(32, 1, generator=torch.Generator().manual_seed(seed))

    def loss(self, phase: str, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        noise = 0.01 * torch.randn(batch.shape, generator=generator)
        loss = (self.model(batch) - (3 * batch - 1 + noise)).square().mean()
        if self.seen == self.poisoned_step:
            loss = loss * float("nan")
        return loss, {"bias": self.model.bias.item()}

    def validate(self) -> dict[str, float]:
        return {"weight_error": abs(self.model.weight[0, 0].item() - 3)}

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"line": {}}, dict(self.model.state_dict())

    def memory(self) -> dict[str, Tensor]:
        return {"seen": torch.tensor(self.seen)}

    def restore(self, memory: dict[str, Tensor]) -> None:
        self.seen = int(memory["seen"])


def recipe(num_steps: int = 60, **changes: Any) -> Recipe:
    optim = OptimRecipe(optimizer="adamw", lr=0.1, warmup_steps=1, schedule="constant", ema_decay=0.9)
    return Recipe(task="video_vae", model={}, optim=optim, num_steps=num_steps, **changes)


def trainer(directory: Path, num_steps: int = 60, **changes: Any) -> Trainer:
    return Trainer(recipe(num_steps, **changes), LineTask(), directory)


def quiet(line: str) -> None:
    assert line


def test_training_brings_the_loss_down(tmp_path: Path) -> None:
    figures = trainer(tmp_path, 150).run(on_log=quiet)
    assert figures["held_out.weight_error"] < 0.1


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run(on_log=quiet)
    trainer(tmp_path / "parts", 25).run(on_log=quiet)
    second = trainer(tmp_path / "parts")
    assert second.resume()
    assert second.step == 25
    second.run(on_log=quiet)
    for name, tensor in whole.export()[1].items():
        assert torch.equal(tensor, second.export()[1][name])


class MatrixTask(LineTask):
    """A matrix that both optimisers take, on any device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.model = self.modules["loss"] = nn.Linear(16, 16, device=device)

    def loss(self, phase: str, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.model(batch.expand(-1, 16)).square().mean(), {}


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_is_resumed_on_the_device_of_its_network(tmp_path: Path, optimizer: Any) -> None:
    plan = Recipe(task="video_vae", model={}, optim=OptimRecipe(optimizer=optimizer), num_steps=2)
    Trainer(plan, MatrixTask("cpu"), tmp_path).run(on_log=quiet)
    second = Trainer(plan, MatrixTask("meta"), tmp_path)  # stands for a GPU
    assert second.resume()
    for param in second.product.parameters():
        param.grad = torch.zeros_like(param)
    states = [state for each in second.optimizers["loss"] for state in each.state.values()]
    for each in second.optimizers["loss"]:
        each.step()
    second.ema.update(second.product, second.step)
    held = [(n, t) for tensors in (second.ema.weights, *states) for n, t in tensors.items()]
    assert len(held) >= 4
    assert all(tensor.is_meta for name, tensor in held if name != "step")  # AdamW counts on the CPU


def test_memory_of_the_task_survives(tmp_path: Path) -> None:
    trainer(tmp_path, 7).run(on_log=quiet)
    second = trainer(tmp_path, 9)
    second.resume()
    assert second.task.memory()["seen"] == 7


def test_a_session_ends_after_its_time_and_can_go_on(tmp_path: Path) -> None:
    first = trainer(tmp_path, 10_000)
    first.run(max_seconds=0.2, on_log=quiet)
    assert 0 < first.step < 10_000
    second = trainer(tmp_path, 10_000)
    second.resume()
    assert second.step == first.step


def test_a_time_budget_ends_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, 10**6, budget_minutes=0.005)
    run.run(on_log=quiet)
    assert run.step < 10**6
    assert run.progress == 1.0


def test_nothing_to_resume_is_not_an_error(tmp_path: Path) -> None:
    assert not trainer(tmp_path / "new").resume()


def test_a_state_of_another_task_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, 2).run(on_log=quiet)
    other = Trainer(Recipe(task="vocoder", model={}), LineTask(), tmp_path)
    with pytest.raises(ConfigError, match="'video_vae', not 'vocoder'"):
        other.resume()


def test_a_damaged_state_is_an_error_that_names_the_directory(tmp_path: Path) -> None:
    trainer(tmp_path, 2).run(on_log=quiet)
    (next(tmp_path.glob("state-*.safetensors"))).write_bytes(b"short")
    with pytest.raises(ConfigError, match="does not hold a whole training state"):
        load_state(tmp_path)


def test_a_gradient_that_is_not_finite_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Trainer(recipe(1), LineTask(poisoned_step=1), tmp_path)
    before = run.product.state_dict()["weight"].clone()
    run.run(on_log=quiet)
    assert torch.equal(before, run.product.state_dict()["weight"])
    assert "not finite" in caplog.text


def test_only_the_latest_state_is_kept(tmp_path: Path) -> None:
    run = trainer(tmp_path, 5, save_every_minutes=0.0)
    run.run(on_log=quiet)
    assert len(list(tmp_path.glob("state-*"))) == 1
    assert not list(tmp_path.glob(".*partial"))


def test_the_log_can_be_read_by_machines(tmp_path: Path) -> None:
    trainer(tmp_path, 20, log_every=10).run(on_log=quiet)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 20]
    assert {"loss", "bias", "seconds"} <= set(lines[0])


def test_curves_are_drawn_for_tensorboard_when_asked(tmp_path: Path) -> None:
    trainer(tmp_path, 20, log_every=10, tensorboard=True).run(on_log=quiet)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"held_out.weight_error" in events.read_bytes()
    assert b"grad_norm" in events.read_bytes()


def test_validation_uses_the_average_and_puts_the_weights_back(tmp_path: Path) -> None:
    run = trainer(tmp_path, 5)
    run.run(on_log=quiet)
    before = run.product.state_dict()["weight"].clone()
    assert run.export()[1]["weight"].item() != before.item()
    run.validate()
    assert torch.equal(before, run.product.state_dict()["weight"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_run_in_the_recipes_number_format(tmp_path: Path, dtype: str) -> None:
    run = trainer(tmp_path, 2, dtype=dtype)
    formats: list[torch.dtype] = []
    matrix = torch.ones(2, 2)
    plain_loss = run.task.loss

    def loss(*args: Any) -> Any:
        formats.append((matrix @ matrix).dtype)
        return plain_loss(*args)

    run.task.loss = loss  # type: ignore[method-assign]
    run.run(on_log=quiet)
    assert [str(one) for one in formats] == [f"torch.{dtype}"] * 2
    assert all(p.dtype == torch.float32 for p in run.product.parameters())
