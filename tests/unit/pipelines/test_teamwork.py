"""What goes together when several processes make a clip, and who does what."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from soundstage.core.errors import RequestError
from soundstage.core.types import AV
from soundstage.pipelines import opening
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.teamwork import TeamDenoiser
from soundstage.runtime.distributed import Group, Team

PASSES = ("cond", "uncond", "perturbed", "isolated", "cond")
SHARDED = Team(shards_weights=True)


class Alike(Group):
    """A group in which everybody else has what this process has."""

    def gather(self, x: Tensor, dim: int, lengths: Any = None) -> Tensor:
        return torch.cat([x] * self.size, dim)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize(
    ("rank", "count", "runs"),
    [
        (0, 3, [("cond", "perturbed")]),
        (1, 3, [("uncond",)]),  # and not its last one again
        (1, 4, [("uncond", "isolated")]),
        (0, 1, [("cond",)]),
    ],
)
def test_every_process_runs_its_own_passes_once(
    shards: bool, rank: int, count: int, runs: list[tuple[str, ...]]
) -> None:
    done = []

    def make(streams: AV[Any], rows_at_once: int | None) -> Any:
        def denoise(noisy: AV[Tensor], sigma: float, passes: Any) -> list[AV[Tensor]]:
            done.append(tuple(passes))
            return [noisy for _ in passes]

        return denoise

    team = Team(guidance=Alike(size=2, rank=rank), shards_weights=shards)
    denoiser = TeamDenoiser(make, tiny.modules("2.3")["transformer"], AV(None, None), team)
    noisy = AV(None, torch.zeros(1, 2, 3))
    assert len(denoiser(noisy, 0.5, PASSES[:count])) == count
    assert done == runs


def test_where_weights_are_gathered_a_process_without_a_pass_runs_along() -> None:
    """The others would wait for its share of the weights."""
    done = {False: 0, True: 0}
    for shards in done:

        def make(streams: AV[Any], rows_at_once: int | None, shards: bool = shards) -> Any:
            def denoise(noisy: AV[Tensor], sigma: float, passes: Any) -> list[AV[Tensor]]:
                done[shards] += 1
                return [noisy for _ in passes]

            return denoise

        team = Team(guidance=Alike(size=2, rank=1), shards_weights=shards)
        denoiser = TeamDenoiser(make, tiny.modules("2.3")["transformer"], AV(None, None), team)
        assert len(denoiser(AV(None, torch.zeros(1, 2, 3)), 0.5, ("cond",))) == 1
    assert done == {False: 0, True: 1}


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from soundstage.checkpoints.checkpoint import open_checkpoint
    from soundstage.checkpoints.reading import read_tensors
    from soundstage.checkpoints.save import write_safetensors

    folder = tmp_path_factory.mktemp("fp8")
    checkpoint = open_checkpoint(tiny.write_embedded(folder / "plain.safetensors"))
    stored = {tensor.name: tensor for part in checkpoint.parts.values() for tensor in part.values()}
    tensors = {name: value.clone() for name, value in read_tensors(stored).items()}
    name = next(n for n in tensors if n.endswith("transformer_blocks.0.ff.net.2.weight"))
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    write_safetensors(folder / "fp8.safetensors", tensors, dict(checkpoint.metadata))
    return folder / "fp8.safetensors"


@pytest.mark.parametrize(
    ("placing", "message"),
    [
        ({"quantize": "int8"}, "quantize=int8 does not go with sharded weights"),
        ({"offload": "stream"}, "offload=stream does not go with sharded weights"),
        ({}, "has weights in F8_E4M3.*use quantize=none to widen them"),
    ],
)
def test_what_does_not_go_with_sharded_weights_is_said_before_anything_is_loaded(
    placing: dict[str, Any], message: str, fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "load_checkpoint", _refuse)
    with pytest.raises(RequestError, match=message):
        Pipeline.load(fp8, device="cpu", placing=Placing(**placing), team=SHARDED)


def test_loras_are_refused_before_weights_that_are_shared_are_loaded(
    fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "load_checkpoint", _refuse)
    request = GenerationRequest(prompt="a ball", loras=("style.safetensors",))
    placing = Placing(quantize="none")
    with pytest.raises(RequestError, match="LoRAs do not go with sharded weights"):
        Pipeline.load(fp8, device="cpu", placing=placing, team=SHARDED, requests=[request])
    with pytest.raises(AssertionError, match="loaded"):  # without it they are
        Pipeline.load(fp8, device="cpu", placing=placing, team=SHARDED)


def test_weights_that_were_loaded_whole_are_not_sharded_later(tiny_model: Path) -> None:
    pipeline = Pipeline.load(tiny_model, device="cpu")
    with pytest.raises(RequestError, match=r"give the team to Pipeline\.load"):
        pipeline.share(SHARDED)


def _refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("weights were loaded")
