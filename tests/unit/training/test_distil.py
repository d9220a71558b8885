"""A student learns guided steps of a teacher as one of its own, and is written as a LoRA or a model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from soundstage import Pipeline
from soundstage.checkpoints.load_lora import LoraReader
from soundstage.checkpoints.lora import open_lora
from soundstage.cli.main import run
from soundstage.core.config import from_dict
from soundstage.core.errors import CheckpointError, ConfigError, RequestError
from soundstage.diffusion.schedules import DISTILLED
from soundstage.models.transformer.inputs import StreamInput
from soundstage.training.clips import Pair
from soundstage.training.export import assemble, read_component, write_component
from soundstage.training.loop import Trainer
from soundstage.training.recipe import Recipe
from soundstage.training.tasks.distil import DistilTask
from soundstage.training.tasks.registry import build_task

DATA = {"num_frames": 9, "height": 32, "width": 32}
OPTIM = {"optimizer": "adamw", "lr": 0.01, "warmup_steps": 1, "schedule": "constant", "ema_decay": 0.5}
CLIP: dict[str, Any] = {"seed": 3, **DATA}
QUICK: dict[str, Any] = {
    "rank": 4,
    "num_validation_clips": 1,
    "levels": [1.0, 0.8, 0.5, 0.0],
    "teacher_steps": 1,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_embedded(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


UNGUIDED = dict.fromkeys(
    ("guidance_scale", "audio_guidance_scale", "modality_scale", "audio_modality_scale"), 1.0
)


def recipe(teacher: Path, settings: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    plain = {
        "task": "distil",
        "model": {},
        "data": DATA,
        "optim": OPTIM,
        "batch_size": 2,
        "settings": {"teacher": str(teacher), **QUICK, **(settings or {})},
    }
    return from_dict(Recipe, plain | changes)


def task(teacher: Path, **settings: Any) -> DistilTask:
    made = build_task(recipe(teacher, settings), torch.device("cpu"))
    assert isinstance(made, DistilTask)
    return made


def trained(teacher: Path, directory: Path, steps: int = 3, **settings: Any) -> Trainer:
    wanted = recipe(teacher, settings, num_steps=steps)
    trainer = Trainer(wanted, build_task(wanted, torch.device("cpu")), directory)
    trainer.run(on_log=lambda line: None)
    return trainer


def by_hand(made: DistilTask, x: Pair, sigma: float, captions: list[str]) -> Pair:
    """The teacher's velocity for one clip and one text at one level, in a call of its own."""
    context = made.text.encode(captions)
    inputs = [
        StreamInput(
            latents=tokens,
            timesteps=torch.full(tokens.shape[:2], sigma),
            sigma=torch.full((1,), sigma),
            positions=positions,
            context=text,
        )
        for tokens, positions, text in zip(
            x, made.clips.positions, (context.video, context.audio), strict=True
        )
    ]
    answer = made.transformer(*inputs)
    return Pair(answer.video, answer.audio)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_the_target_is_two_guided_euler_steps_of_the_teacher(teacher: Path) -> None:
    made = task(
        teacher,
        levels=DISTILLED,
        teacher_steps=2,
        **UNGUIDED | {"guidance_scale": 3.0, "audio_guidance_scale": 2.0},
    )
    clips = made.batch(1)
    leg = made.leg(clips, torch.tensor([5, 6]), torch.Generator().manual_seed(0))
    target = made.target(leg)
    for item, (high, low) in enumerate([(0.909375, 0.725), (0.725, 0.421875)]):
        start = Pair(*(x[item : item + 1] for x in leg.latents))
        x = start
        middle = (high + low) / 2
        for here, there in ((high, middle), (middle, low)):
            told = by_hand(made, x, here, clips.captions[item : item + 1])
            untold = by_hand(made, x, here, [""])
            velocities = (un + scale * (t - un) for un, t, scale in zip(untold, told, (3, 2), strict=True))
            x = Pair(*(at + (there - here) * v for at, v in zip(x, velocities, strict=True)))
        for got, begin, end in zip(target, start, x, strict=True):
            close(got[item : item + 1], (begin - end) / (high - low))


@torch.no_grad()
def test_clips_stand_on_the_straight_way_to_noise(teacher: Path) -> None:
    made = task(teacher, levels=[1.0, 0.5, 0.0])
    clips = made.batch(1)
    noise = made.leg(clips, torch.tensor([0, 0]), torch.Generator().manual_seed(0))
    half = made.leg(clips, torch.tensor([1, 1]), torch.Generator().manual_seed(0))
    close(half.latents.video, 0.5 * (clips.video + noise.latents.video))
    assert not torch.equal(noise.latents.audio, clips.audio)
    assert (half.high.tolist(), half.low.tolist()) == ([0.5, 0.5], [0.0, 0.0])


@torch.no_grad()
def test_each_step_of_the_student_has_its_own_number_of_the_teachers(teacher: Path) -> None:
    levels = [1.0, 0.8, 0.4, 0.0]
    mixed = task(teacher, levels=levels, teacher_steps=[1, 2, 3])
    clips, steps = mixed.batch(1), torch.tensor([2, 0])
    leg = mixed.leg(clips, steps, torch.Generator().manual_seed(0))
    got = mixed.teach(leg)
    for item, count in enumerate((3, 1)):
        alike = task(teacher, levels=levels, teacher_steps=count)
        wanted = alike.teach(alike.leg(clips, steps, torch.Generator().manual_seed(0)))
        close(got.video[item], wanted.video[item])
        close(got.audio[item], wanted.audio[item])


@torch.no_grad()
def test_a_teacher_without_guidance_takes_one_pass_and_isolation_takes_another(teacher: Path) -> None:
    assert task(teacher).passes == ("cond", "uncond", "isolated")  # as it samples by default
    assert task(teacher, modality_scale=1.0, audio_modality_scale=1.0).passes == ("cond", "uncond")
    assert task(teacher, **UNGUIDED).passes == ("cond",)
    alone = task(teacher, **UNGUIDED | {"modality_scale": 2.0})
    assert alone.passes == ("cond", "isolated")
    leg = alone.leg(alone.batch(1), torch.tensor([1, 2]), torch.Generator().manual_seed(0))
    with_it, without = (
        alone.teach(leg),
        task(teacher, **UNGUIDED).teach(leg),
    )
    assert not torch.allclose(with_it.video, without.video, atol=1e-3)


@torch.no_grad()
def test_what_is_given_stays_and_does_not_count(teacher: Path) -> None:
    made = task(teacher)
    clips = made.batch(1)
    video = torch.ones(*clips.video.shape[:2], 1)
    video[0], video[1, : made.clips.frame_tokens] = 0, 0
    moving = Pair(video, torch.ones(*clips.audio.shape[:2], 1))
    leg = made.leg(clips, torch.tensor([1, 2]), torch.Generator().manual_seed(0), moving)
    end = made.teach(leg)
    assert torch.equal(end.video[0], clips.video[0])
    assert torch.equal(end.video[1, : made.clips.frame_tokens], clips.video[1, : made.clips.frame_tokens])
    assert not torch.allclose(end.video[1, made.clips.frame_tokens :], leg.latents.video[1, 4:])
    streams = made._inputs(leg.latents, leg, leg.high)
    assert streams[0].sigma.tolist() == [0.0, 0.5]
    target = made.target(leg)
    spoilt = Pair(torch.where(video > 0, target.video, 1e3), target.audio)
    assert made._errors(leg, spoilt)[0] == made._errors(leg, target)[0]


@pytest.mark.parametrize("rank", [0, 4])
def test_training_on_one_batch_brings_its_loss_down(rank: int, teacher: Path) -> None:
    made = task(teacher, rank=rank, clean_stream=0.0, first_frame=0.0)
    batch = made.batch(2)
    optimizer = torch.optim.AdamW(made.modules["loss"].parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss, figures = made.loss("loss", batch, torch.Generator().manual_seed(7))
        assert loss.item() == pytest.approx(figures["video"] + figures["audio"], rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is None for p in made.transformer.parameters())


def test_a_student_begins_as_its_teacher_without_guidance(teacher: Path) -> None:
    for rank in (0, 4):
        figures = task(teacher, rank=rank, **UNGUIDED).validate()
        assert max(figures.values()) < 1e-6


def test_validation_tells_a_student_from_its_guided_teacher(teacher: Path) -> None:
    made = task(teacher)
    figures = made.validate()
    assert min(figures.values()) > 1e-3
    assert made.validate() == figures


def test_a_resumed_run_ends_where_an_unbroken_one_does(teacher: Path, tmp_path: Path) -> None:
    pooled = recipe(teacher, data={**DATA, "pool_size": 4, "reuse": 2}, batch_size=1)

    def session(folder: str, steps: int) -> Trainer:
        wanted = replace(pooled, num_steps=steps)
        trainer = Trainer(wanted, build_task(wanted, torch.device("cpu")), tmp_path / folder)
        assert trainer.resume() == (folder == "parts" and steps == 2)
        trainer.run(on_log=lambda line: None)
        return trainer

    whole, _, again = session("whole", 2), session("parts", 1), session("parts", 2)
    exported = again.export()[1]
    for name, tensor in whole.export()[1].items():
        assert torch.equal(tensor, exported[name]), name
    assert len(again.task.clips.pool) == 2  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def distilled(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A student after three steps, and its file."""
    folder = tmp_path_factory.mktemp("distilled")
    trainer, file = trained(teacher, folder), folder / "distilled.safetensors"
    write_component(file, *trainer.export())
    return trainer, file


def test_the_lora_makes_the_teacher_generate_what_the_student_learnt(
    teacher: Path, distilled: tuple[Trainer, Path], tmp_path: Path
) -> None:
    file = distilled[1]
    pipeline = Pipeline.load(teacher)
    plain = pipeline(
        "a red ball bounces", schedule="distilled", guidance_scale=1, audio_guidance_scale=1, **CLIP
    )
    clip = pipeline("a red ball bounces", loras=[str(file)], **CLIP)
    assert not torch.equal(torch.as_tensor(clip.frames), torch.as_tensor(plain.frames))
    model = tmp_path / "distilled-model.safetensors"
    assemble([teacher], model, torch.float32, [str(file)])
    fused = Pipeline.load(model)("a red ball bounces", **CLIP)
    close(fused.waveform, clip.waveform)
    assert (torch.as_tensor(fused.frames).int() - torch.as_tensor(clip.frames).int()).abs().max() <= 1


def test_the_written_weights_are_the_students(teacher: Path, distilled: tuple[Trainer, Path]) -> None:
    trainer, file = distilled
    made = trainer.task
    assert isinstance(made, DistilTask)
    leg = made.leg(made.batch(5), torch.tensor([1, 2]), torch.Generator().manual_seed(0))
    trainer.ema.swap(trainer.product)
    with torch.no_grad():
        wanted = made.velocity(leg)
    trainer.ema.swap(trainer.product)
    model = file.parent / "fused.safetensors"
    assemble([teacher], model, torch.float32, [str(file)])
    fused = task(model, rank=0)
    with torch.no_grad():
        got = fused.velocity(leg)
    close(got.video, wanted.video)
    close(got.audio, wanted.audio)


def test_half_the_strength_is_half_the_change(
    teacher: Path, distilled: tuple[Trainer, Path], tmp_path: Path
) -> None:
    file, name = distilled[1], "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    weights = []
    for strength in ("0", "0.5", "1"):
        words = [
            "--lora",
            f"{file}:{strength}",
            "--out",
            str(tmp_path / "m.safetensors"),
            "--dtype",
            "float32",
        ]
        assert run(["assemble", str(teacher), *words]) == 0
        weights.append(read_component(tmp_path / "m.safetensors")[1][name])
    assert torch.equal(weights[0], read_component(teacher)[1][name])
    assert not torch.equal(weights[0], weights[2])
    torch.testing.assert_close(weights[1], (weights[0] + weights[2]) / 2)


def test_a_lora_alone_is_stored_in_another_format_and_stays_one(
    distilled: tuple[Trainer, Path], tmp_path: Path
) -> None:
    small = tmp_path / "small-distilled.safetensors"
    assemble([distilled[1]], small, torch.float16)
    before, after = open_lora(distilled[1]), open_lora(small)
    assert all(tensor.element_size() < 4 for tensor in read_component(small)[1].values())
    assert after.shapes == before.shapes
    assert after.stated_generation == "embedded"
    assert (after.unknown, after.broken) == ((), ())
    name = next(iter(before.layers))
    with LoraReader(before) as exact, LoraReader(after) as rounded:
        one, other = exact.read(name), rounded.read(name)
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one.product(), other.product(), atol=1e-3, rtol=1e-2)


def test_a_lora_for_one_stage_is_not_written_into_a_model(
    teacher: Path, distilled: tuple[Trainer, Path], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="leave out @"):
        assemble([teacher], tmp_path / "m.safetensors", torch.float32, [f"{distilled[1]}@2"])
    assert not list(tmp_path.iterdir())


def test_whole_weights_are_written_as_a_whole_model(teacher: Path, tmp_path: Path) -> None:
    file = tmp_path / "distilled.safetensors"
    write_component(file, *trained(teacher, tmp_path / "run", rank=0).export())
    before, after = read_component(teacher)[1], read_component(file)[1]
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed
    assert all(name.startswith("model.diffusion_model.") for name in changed)
    clip = Pipeline.load(file)("a red ball bounces", **CLIP)
    assert clip.waveform.isfinite().all()


def test_a_run_goes_on_from_an_earlier_lora(
    teacher: Path, distilled: tuple[Trainer, Path], tmp_path: Path
) -> None:
    wanted = recipe(teacher, init=str(distilled[1]))
    trainer = Trainer(wanted, build_task(wanted, torch.device("cpu")), tmp_path)
    for name, tensor in read_component(distilled[1])[1].items():
        assert torch.equal(trainer.export()[1][name], tensor)
    other = recipe(teacher, {"rank": 2}, init=str(distilled[1]))
    with pytest.raises(CheckpointError, match=r"lora_A\.weight is \(4, \d+\) there, \(2, \d+\) here"):
        Trainer(other, build_task(other, torch.device("cpu")), tmp_path)


def test_another_teacher_or_another_rank_is_not_resumed(teacher: Path, tmp_path: Path) -> None:
    trained(teacher, tmp_path / "run", 1)
    other = tmp_path / "other.safetensors"
    sections, tensors = read_component(teacher)
    name = "model.diffusion_model.proj_out.bias"
    write_component(other, sections, {**tensors, name: tensors[name] + 1})
    for changed, message in (
        (recipe(other), "begun with another teacher than .*other.safetensors"),
        (recipe(teacher, {"rank": 2}), "holds a run of another network: .*size mismatch"),
    ):
        trainer = Trainer(changed, build_task(changed, torch.device("cpu")), tmp_path / "run")
        with pytest.raises(ConfigError, match=f"(?s){message}"):
            trainer.resume()


def test_a_teacher_that_lacks_parts_is_named(teacher: Path, tmp_path: Path) -> None:
    sections, tensors = read_component(teacher)
    part = tmp_path / "transformer.safetensors"
    kept = {name: t for name, t in tensors.items() if not name.startswith(("vae.", "audio_vae."))}
    write_component(
        part, {"transformer": sections["transformer"], "gemma_config": sections["gemma_config"]}, kept
    )
    with pytest.raises(CheckpointError, match=r"transformer\.safetensors holds no video VAE"):
        task(part)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": [1.0, 0.5]}, r"settings\.levels: .* must fall strictly from at most 1 to 0"),
        ({"levels": [0.5, 0.7, 0.0]}, r"settings\.levels: .* must fall strictly"),
        ({"teacher_steps": [1, 2]}, "neither one positive number nor one for each of the 3 steps"),
        ({"teacher_steps": 0}, "teacher_steps=0 is neither"),
        ({"rank": -1}, "rank=-1 is negative"),
        ({"level": [1.0, 0.0]}, "did you mean 'levels'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str, teacher: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        task(teacher, **settings)


def test_a_size_that_the_teacher_cannot_encode_is_named(teacher: Path) -> None:
    wanted = recipe(teacher)
    tall = replace(wanted, data=replace(wanted.data, height=40))
    with pytest.raises(RequestError, match="height=40 is not a multiple of 16; the nearest are 32 and 48"):
        build_task(tall, torch.device("cpu"))
