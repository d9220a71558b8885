"""Every recipe trains, and what it trains becomes a model that generates."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from soundstage.core.config import load_toml
from soundstage.core.errors import CheckpointError
from soundstage.training.export import assemble, read_component, write_component
from soundstage.training.loop import Trainer
from soundstage.training.recipe import Recipe
from soundstage.training.tasks.registry import TASKS, build_task

RECIPES = Path(__file__).parents[2] / "recipes"
QUICK = (
    "num_steps=2",
    "batch_size=2",
    "settings.num_validation_clips=2",
    "budget_minutes=0.0",
    "compile=false",
)
STATISTICS = "settings.num_statistics_clips=4"
SMALLER = {
    "video_vae": (
        STATISTICS,
        "settings.principal_start_clips=4",
        "model.vae.latent_channels=16",
        "model.vae.encoder_base_channels=8",
        "model.vae.decoder_base_channels=8",
    ),
    "audio_vae": (STATISTICS, "model.audio_vae.model.params.ddconfig.ch=8"),
    "vocoder": ("model.vocoder.upsample_initial_channel=64",),
    "transformer": (
        "settings.num_tokenizer_captions=200",
        "settings.reading=0.1",
        "settings.num_read_captions=4",
        "model.transformer.num_layers=2",
        "model.transformer.in_channels=64",
        "model.transformer.out_channels=64",
    ),
    "distil": ("settings.rank=4", "settings.levels=[1.0, 0.5, 0.0]", "settings.teacher_steps=1"),
}


PARTS = ("video_vae", "audio_vae", "vocoder", "transformer")


def small_recipe(task: str, files: dict[str, Path]) -> Recipe:
    """Read a recipe for two small steps, with the files that its task needs."""
    paths = [f'settings.{kind}="{files[kind]}"' for kind in ("video_vae", "audio_vae")]
    teacher = [f'settings.teacher="{files["teacher"]}"']
    needed = {"vocoder": paths[1:], "transformer": paths, "distil": teacher}.get(task, [])
    return load_toml(Recipe, RECIPES / f"{task}.toml", [*QUICK, *SMALLER[task], *needed])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train each part for two steps, in the order of their needs, then a student of them all."""
    root = tmp_path_factory.mktemp("runs")
    files = {task: root / task / "model.safetensors" for task in (*TASKS, "teacher")}
    for task in (*PARTS, "distil"):
        if task == "distil":
            files["teacher"].parent.mkdir()
            assemble([files[part] for part in PARTS], files["teacher"], torch.float16)
        recipe = small_recipe(task, files)
        trainer = Trainer(recipe, build_task(recipe, torch.device("cpu")), files[task].parent)
        figures = trainer.run(on_log=lambda line: None)
        assert all(value == value for value in figures.values()), figures
        write_component(files[task], *trainer.export())
    return files


def test_there_is_a_recipe_for_every_task() -> None:
    assert {path.stem for path in RECIPES.glob("*.toml")} >= set(TASKS)


def test_weights_to_begin_with_bring_their_tokenizer(parts: dict[str, Path]) -> None:
    recipe = small_recipe("transformer", parts)
    other = replace(recipe, init=str(parts["transformer"]), data=replace(recipe.data, kinds=("bounce",)))
    task = build_task(other, torch.device("cpu"))
    assert torch.equal(
        task.export()[1]["tokenizer_json"], read_component(parts["transformer"])[1]["tokenizer_json"]
    )


def test_a_pool_of_other_scenes_is_not_resumed_with_their_captions(parts: dict[str, Path]) -> None:
    recipe = small_recipe("transformer", parts)

    def resumed(**changes: object) -> int:
        wanted = replace(recipe, data=replace(recipe.data, **changes))  # type: ignore[arg-type]
        trainer = Trainer(wanted, build_task(wanted, torch.device("cpu")), parts["transformer"].parent)
        assert trainer.resume()
        return len(trainer.task.clips.pool)  # type: ignore[attr-defined]

    kept = resumed()
    assert kept > 0
    assert resumed(reuse=3) == kept
    assert resumed(frame_rate=12.0) == 0


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_task_continues_from_its_state(task: str, parts: dict[str, Path]) -> None:
    recipe = small_recipe(task, parts)
    trainer = Trainer(recipe, build_task(recipe, torch.device("cpu")), parts[task].parent)
    assert trainer.resume()
    assert trainer.step == 2
    saved = read_component(parts[task])[1]
    for name, tensor in trainer.export()[1].items():
        assert torch.equal(tensor, saved[name]), name


def test_the_same_seed_makes_the_same_batch(parts: dict[str, Path]) -> None:
    recipe = load_toml(
        Recipe, RECIPES / "vocoder.toml", [*QUICK, *SMALLER["vocoder"], 'settings.audio_vae=""']
    )
    task = build_task(recipe, torch.device("cpu"))
    first, again, other = task.batch(5), task.batch(5), task.batch(6)
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_parts_assemble_into_a_model_that_generates(parts: dict[str, Path], tmp_path: Path) -> None:
    from soundstage import Pipeline

    model = tmp_path / "model.safetensors"
    assemble([parts[part] for part in PARTS], model, torch.float16)
    clip = Pipeline.load(model)("a red ball bounces on a drum", seed=1, num_inference_steps=2)
    assert clip.frames.shape == (49, 64, 64, 3)
    assert clip.waveform.shape == (2, 49_000)
    assert clip.waveform.isfinite().all()


def test_assembling_keeps_values_and_stores_silent_kernels_in_a_byte(tmp_path: Path) -> None:
    part, model = tmp_path / "part.safetensors", tmp_path / "model.safetensors"
    tensors = {
        "vae.a.weight": torch.randn(4, 4),
        "vae.silent.weight": torch.zeros(4, 4),
        "vae.bias": torch.randn(4),
    }
    write_component(part, {"vae": {}}, tensors)
    assemble([part], model, torch.float16)
    stored = read_component(model)[1]
    assert stored["vae.silent.weight"].dtype == torch.float8_e4m3fn
    assert stored["vae.a.weight"].dtype == torch.float16
    assert torch.equal(stored["vae.bias"], tensors["vae.bias"])
    for name, tensor in tensors.items():
        torch.testing.assert_close(stored[name].float(), tensor, atol=1e-3, rtol=1e-3)


def test_a_part_given_twice_is_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds too"):
        assemble([parts["vocoder"], parts["vocoder"]], tmp_path / "model.safetensors", torch.float16)
    assert not list(tmp_path.iterdir())


def test_a_missing_part_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="train that part first"):
        read_component(tmp_path / "absent.safetensors")


def test_a_file_that_is_no_part_is_named_as_what_it_is(tmp_path: Path) -> None:
    clip, bare = tmp_path / "clip.mp4", tmp_path / "bare.safetensors"
    clip.write_bytes(b"\0\0\0\x20ftypisom" + bytes(64))
    save_file({"weight": torch.zeros(2)}, bare)
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        assemble([clip], tmp_path / "model.safetensors", torch.float16)
    with pytest.raises(CheckpointError, match="has no configuration"):
        assemble([bare], tmp_path / "model.safetensors", torch.float16)
