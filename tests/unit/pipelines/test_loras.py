"""LoRAs in a pipeline: fused or live the same clip, and afterwards the transformer as it was."""

import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lora_files
import media_samples
import tiny
from setups import setup_of
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.load_lora import LoraReader
from soundstage.checkpoints.lora import ReferenceFactors
from soundstage.checkpoints.lora_fit import LoraMismatchError
from soundstage.checkpoints.save import save_checkpoint, write_safetensors
from soundstage.core.errors import Cancelled, CheckpointError, RequestError
from soundstage.core.progress import Progress
from soundstage.nn.lora import LoraLinear
from soundstage.pipelines import opening
from soundstage.pipelines.fitting import fit
from soundstage.pipelines.generation import Generation
from soundstage.pipelines.loras import (
    LORA_MODES,
    choose_loras,
    linear_layers,
    loras_in_force,
    reference_factors,
    stored_layers,
)
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.plan import Plan
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.settle import settle
from soundstage.pipelines.sketch import open_or_sketch

PROMPT = "a red ball bounces on a wooden floor"
SMALL = {"num_frames": 9, "width": 32, "height": 16, "num_inference_steps": 2}
TO_Q = "transformer_blocks.0.attn1.to_q"
CLOSE = {"atol": 1e-3, "rtol": 1e-3}  # float32, another order of sums, after two steps and the decoders


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.load(tiny.write_embedded(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


@pytest.fixture(scope="module")
def factors(pipeline: Pipeline) -> dict[str, lora_files.Factors]:
    """Of every layer of the transformer."""
    return lora_files.draw(pipeline.transformer, linear_layers(pipeline.transformer), alpha=1.5)


@pytest.fixture(scope="module")
def style(factors: Mapping[str, lora_files.Factors], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_files.write(tmp_path_factory.mktemp("lora") / "style.safetensors", factors)


def snapshot(pipeline: Pipeline) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}


def is_as(pipeline: Pipeline, before: Mapping[str, Tensor]) -> bool:
    now = pipeline.transformer.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def chosen(pipeline: Pipeline, *texts: str, num_stages: int = 1) -> Any:
    return choose_loras(texts, pipeline.components.checkpoint, num_stages=num_stages)


def make(pipeline: Pipeline, *loras: str, **fields: Any) -> Generation:
    return pipeline(PROMPT, **{**SMALL, "seed": 7, "loras": loras, **fields})


@pytest.mark.parametrize("form", lora_files.FORMS)
@pytest.mark.parametrize("magnitudes", [False, True])
def test_every_form_fuses_to_the_same_weights(
    pipeline: Pipeline, form: str, magnitudes: bool, tmp_path: Path
) -> None:
    drawn = lora_files.draw(pipeline.transformer, alpha=6.0, magnitudes=magnitudes)
    path = lora_files.write(tmp_path / "l.safetensors", drawn, form)
    before = snapshot(pipeline)
    with loras_in_force(pipeline.transformer, chosen(pipeline, f"{path}:0.5"), "fused"):
        after = snapshot(pipeline)
    for name, tensor in after.items():
        original = before[name]
        layer = drawn.get(name.removesuffix(".weight"))
        if layer is None or name.endswith(".bias"):
            assert torch.equal(tensor, original)
            continue
        moved = original.double() + layer.product
        if layer.magnitude is not None:
            moved *= layer.magnitude.double()[:, None] / moved.norm(dim=1, keepdim=True)
        expected = original + 0.5 * (moved - original)
        torch.testing.assert_close(tensor, expected.float(), atol=1e-6, rtol=1e-6)
    assert is_as(pipeline, before)


@pytest.mark.parametrize("mode", LORA_MODES)
def test_lora_changes_picture_and_sound_and_leaves_no_trace(
    pipeline: Pipeline, style: Path, mode: str
) -> None:
    before, plain = snapshot(pipeline), make(pipeline)
    changed = make(pipeline, f"{style}:0.5", lora_mode=mode)
    assert not torch.allclose(changed.pixels, plain.pixels, **CLOSE)
    assert not torch.allclose(changed.waveform, plain.waveform, **CLOSE)
    assert is_as(pipeline, before)
    assert torch.equal(make(pipeline).pixels, plain.pixels)


@pytest.mark.parametrize("magnitudes", [False, True])
def test_both_modes_make_the_same_clip(pipeline: Pipeline, magnitudes: bool, tmp_path: Path) -> None:
    layers = linear_layers(pipeline.transformer)
    drawn = lora_files.draw(pipeline.transformer, layers, magnitudes=magnitudes)
    first = lora_files.write(tmp_path / "a.safetensors", drawn)
    second = lora_files.write(tmp_path / "b.safetensors", lora_files.draw(pipeline.transformer, seed=1))
    loras = (f"{first}:0.4", f"{second}:-0.7")
    fused, live = (make(pipeline, *loras, lora_mode=mode) for mode in ("fused", "live"))
    torch.testing.assert_close(fused.pixels, live.pixels, **CLOSE)
    torch.testing.assert_close(fused.waveform, live.waveform, **CLOSE)
    assert not torch.equal(fused.pixels, make(pipeline, loras[0]).pixels)


@pytest.mark.parametrize("mode", LORA_MODES)
def test_strength_zero_is_no_lora_bit_for_bit(pipeline: Pipeline, style: Path, mode: str) -> None:
    plain, nothing = make(pipeline), make(pipeline, f"{style}:0", lora_mode=mode)
    assert torch.equal(nothing.pixels, plain.pixels)
    assert torch.equal(nothing.waveform, plain.waveform)


@pytest.mark.parametrize("mode", LORA_MODES)
def test_half_precision_weights_come_back_exactly(style: Path, mode: str, tmp_path: Path) -> None:
    model = tiny.write_embedded(tmp_path / "tiny.safetensors")
    pipeline = Pipeline.load(model, dtype="bfloat16")
    before = snapshot(pipeline)
    assert make(pipeline, f"{style}:0.5", lora_mode=mode).pixels.isfinite().all()
    assert is_as(pipeline, before)
    assert all(tensor.dtype == before[name].dtype for name, tensor in snapshot(pipeline).items())


def test_half_precision_is_rounded_once(style: Path, factors: Any, tmp_path: Path) -> None:
    model = tiny.write_embedded(tmp_path / "tiny.safetensors")
    pipeline = Pipeline.load(model, dtype="bfloat16")
    original = pipeline.transformer.get_submodule(TO_Q).weight.clone()
    with loras_in_force(pipeline.transformer, chosen(pipeline, f"{style}:0.3", f"{style}:0.2"), "fused"):
        fused = pipeline.transformer.get_submodule(TO_Q).weight.clone()
    layer = factors[TO_Q]
    product = (layer.alpha / len(layer.down)) * (layer.up @ layer.down)
    assert torch.equal(fused, (original.float() + 0.3 * product + 0.2 * product).bfloat16())


@pytest.mark.parametrize("mode", LORA_MODES)
def test_stopping_in_the_middle_puts_everything_back(pipeline: Pipeline, style: Path, mode: str) -> None:
    before, moment = snapshot(pipeline), ("apply_loras", 20)

    def stop(event: Progress) -> None:
        if (event.stage, event.step) == moment:
            raise Cancelled("stopped")

    for moment in (("apply_loras", 20), ("denoise", 1)):  # noqa: B007  `stop` looks at it
        with pytest.raises(Cancelled):
            make(pipeline, str(style), lora_mode=mode, on_progress=stop)
        assert is_as(pipeline, before)


def test_live_weights_are_untouched_and_layers_the_same_objects_afterwards(
    pipeline: Pipeline, style: Path
) -> None:
    before, layer = snapshot(pipeline), pipeline.transformer.get_submodule(TO_Q)
    with loras_in_force(pipeline.transformer, chosen(pipeline, str(style)), "live"):
        twin = pipeline.transformer.get_submodule(TO_Q)
        assert isinstance(twin, LoraLinear)
        assert twin.base is layer
        assert torch.equal(twin.weight, before[f"{TO_Q}.weight"])
    assert pipeline.transformer.get_submodule(TO_Q) is layer


def test_fusing_reads_one_layer_after_another(
    pipeline: Pipeline, style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most, read = 0, LoraReader.read

    def watch(self: LoraReader, name: str, device: torch.device) -> Any:
        nonlocal most
        low_rank = read(self, name, device)
        assert low_rank is not None
        alive.extend(weakref.ref(tensor) for tensor in (low_rank.down, low_rank.up))
        most = max(most, sum(ref() is not None for ref in alive))
        return low_rank

    monkeypatch.setattr(LoraReader, "read", watch)
    loras = chosen(pipeline, str(style))
    assert alive == []
    with loras_in_force(pipeline.transformer, loras, "fused"):
        assert len(alive) == 2 * len(linear_layers(pipeline.transformer))
        assert sum(ref() is not None for ref in alive) == 0
    assert most <= 4  # the layer at hand, and the one before until it is replaced


def test_lora_of_one_stage_leaves_the_other_alone(pipeline: Pipeline, style: Path) -> None:
    before = snapshot(pipeline)
    for text, acting in ((f"{style}@1", (1,)), (f"{style}@2", (2,)), (str(style), (1, 2))):
        loras = chosen(pipeline, text, num_stages=2)
        for stage in (1, 2):
            with loras_in_force(pipeline.transformer, loras, "fused", stage=stage):
                assert is_as(pipeline, before) == (stage not in acting)
        assert is_as(pipeline, before)


def test_pipeline_counts_its_stages(pipeline: Pipeline, style: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of the same stage twice, the second starting anew: a LoRA of the first has no effect."""

    def twice(*args: Any) -> Plan:
        plan = settle(*args)
        return replace(plan, stages=plan.stages * 2)

    monkeypatch.setattr("soundstage.pipelines.preparation.settle", twice)
    plain = make(pipeline)
    assert torch.equal(make(pipeline, f"{style}@1").pixels, plain.pixels)
    assert not torch.equal(make(pipeline, f"{style}@2").pixels, plain.pixels)


def test_progress_tells_of_the_layers(pipeline: Pipeline, style: Path) -> None:
    events: list[Progress] = []
    make(pipeline, str(style), on_progress=events.append)
    steps = [event.step for event in events if event.stage == "apply_loras"]
    assert steps == list(range(len(linear_layers(pipeline.transformer)) + 1))


def test_reference_factors_are_offered_to_modes(
    pipeline: Pipeline, factors: Any, style: Path, tmp_path: Path
) -> None:
    metadata = {"reference_downscale_factor": "2", "reference_temporal_scale_factor": "3"}
    path = lora_files.write(tmp_path / "ic.safetensors", factors, **metadata)
    assert reference_factors(chosen(pipeline, str(style), str(path))) == ReferenceFactors(
        spatial=2, temporal=3
    )


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("none.safetensors", CheckpointError, "LoRA none.safetensors does not exist"),
        (
            "ltx-2.3-22b-distiled-lora-384-1.1",
            CheckpointError,
            "did you mean 'ltx-2.3-22b-distilled-lora-384-1.1'",
        ),
        ("ltx-2.3-22b-distilled-lora-384-1.1", CheckpointError, "is not on this machine"),
        ("{folder}", CheckpointError, "is a folder; name the .safetensors file in it"),
        ("{style}@2", RequestError, "is for stage 2; this generation has 1 stage"),
        ("{model}", CheckpointError, "holds no LoRA; it holds: transformer"),
    ],
)
def test_loras_that_cannot_be_used_are_refused_before_anything_runs(
    pipeline: Pipeline, style: Path, text: str, error: type[Exception], message: str
) -> None:
    model = pipeline.components.checkpoint.headers[0].path
    events: list[Progress] = []
    with pytest.raises(error, match=message):
        make(
            pipeline,
            text.format(style=style, folder=style.parent, model=model),
            on_progress=events.append,
        )
    assert events == []


def test_lora_of_another_model_is_refused_when_planned(pipeline: Pipeline, tmp_path: Path) -> None:
    path = lora_files.write(
        tmp_path / "old.safetensors", lora_files.draw("2.0", ["caption_projection.linear_2"])
    )
    with pytest.raises(LoraMismatchError, match=r"which is embedded: it is a LoRA for LTX-2\.0"):
        pipeline.each([PROMPT], loras=(str(path),), **SMALL)


def test_lora_that_fits_without_being_made_for_the_model_is_noted(
    pipeline: Pipeline, factors: Any, tmp_path: Path
) -> None:
    path = lora_files.write(tmp_path / "l.safetensors", factors, model_version="2.5.0")
    made = make(pipeline, f"{path}:0.1")
    assert made.notes == (f"{path} was made for LTX-2.5; its layers fit embedded, too",)


@pytest.mark.parametrize("mode", LORA_MODES)
def test_lora_that_fits_in_part_is_used_as_far_as_it_does_and_noted(
    pipeline: Pipeline, factors: Any, style: Path, tmp_path: Path, mode: str
) -> None:
    foreign = lora_files.draw("2.0", ["caption_projection.linear_2"])
    path = lora_files.write(tmp_path / "more.safetensors", factors | foreign, model_version="2.0.0")
    whole, partly = (make(pipeline, f"{lora}:0.3", lora_mode=mode) for lora in (style, path))
    assert torch.equal(partly.pixels, whole.pixels)
    assert torch.equal(partly.waveform, whole.waveform)
    assert whole.notes == ()
    (note,) = partly.notes
    assert f"{len(factors)} of its {len(factors) + 1} layers are used" in note
    assert "the model does not have: diffusion_model.caption_projection.linear_2" in note


def test_stages_and_windows_that_share_loras_have_them_applied_once(
    pipeline: Pipeline, style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied = []
    original = LORA_MODES["fused"]

    def counted(*args):
        applied.append(len(args[1]))
        return original(*args)

    monkeypatch.setitem(LORA_MODES, "fused", counted)
    quick = {**SMALL, "num_inference_steps": 1}
    pipeline(PROMPT, loras=(str(style),), **{**quick, "plan": "two_stage", "upsampler": "bicubic"})
    assert applied == [1]
    pipeline(PROMPT, loras=(f"{style}@2",), **{**quick, "plan": "two_stage", "upsampler": "bicubic"})
    assert applied == [1, 1]
    pipeline(PROMPT, loras=(str(style),), **{**quick, "num_frames": 40, "window": 25})
    assert applied == [1, 1, 1]


def test_clip_made_between_the_windows_of_another_is_without_its_loras(
    pipeline: Pipeline, style: Path
) -> None:
    before = snapshot(pipeline)
    long = {**SMALL, "num_inference_steps": 1, "num_frames": 40, "window": 25, "seed": 1}
    plain = pipeline(PROMPT, **SMALL)
    undisturbed = pipeline(PROMPT, loras=(str(style),), **long)
    parts = iter(pipeline.stream(PROMPT, loras=(str(style),), **long))
    made = [next(parts)]
    assert not is_as(pipeline, before)
    between = pipeline(PROMPT, **SMALL)
    made += parts
    assert torch.equal(between.pixels, plain.pixels)
    assert torch.equal(torch.cat([part.pixels for part in made], dim=1), undisturbed.pixels)
    assert is_as(pipeline, before)


def test_stream_that_is_given_up_leaves_the_transformer_as_it_was(pipeline: Pipeline, style: Path) -> None:
    before = snapshot(pipeline)
    long = {**SMALL, "num_inference_steps": 1, "num_frames": 40, "window": 25}
    parts = iter(pipeline.stream(PROMPT, loras=(str(style),), **long))
    next(parts)
    parts.close()
    assert is_as(pipeline, before)


def test_lora_of_the_text_side_changes_the_contexts_and_leaves_no_trace(
    pipeline: Pipeline, factors: Mapping[str, lora_files.Factors], tmp_path: Path
) -> None:
    connectors = pipeline.prompts.text.connectors
    of_text = lora_files.draw(connectors, linear_layers(connectors))
    path = lora_files.write(tmp_path / "both.safetensors", {**factors, **of_text})
    alone = lora_files.write(tmp_path / "alone.safetensors", factors)
    before = {name: tensor.clone() for name, tensor in connectors.state_dict().items()}
    plain = pipeline(PROMPT, **SMALL)
    both, without = (pipeline(PROMPT, loras=(str(lora),), **SMALL) for lora in (path, alone))
    staged = pipeline(PROMPT, loras=(f"{path}@1",), **SMALL)
    assert not torch.allclose(both.pixels, without.pixels, **CLOSE)
    assert torch.equal(staged.pixels, without.pixels)
    assert "is for stage 1; prompts are encoded once, without its" in staged.notes[-1]
    live = pipeline(PROMPT, loras=(str(path),), lora_mode="live", **SMALL)
    torch.testing.assert_close(live.pixels, both.pixels, **CLOSE)
    assert all(torch.equal(connectors.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(pipeline(PROMPT, **SMALL).pixels, plain.pixels)


def test_ic_lora_brings_the_reference_to_the_size_that_it_states(
    pipeline: Pipeline, factors: Mapping[str, lora_files.Factors], tmp_path: Path
) -> None:
    clip = media_samples.write_video(tmp_path / "clip.mp4", num_frames=25)
    stated = {"reference_downscale_factor": "2", "reference_temporal_scale_factor": "2"}
    path = lora_files.write(tmp_path / "ic.safetensors", factors, **stated)
    seen: list[int] = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].latents.shape[1])
    )
    given = {"loras": (str(path),), "reference_video": str(clip), "num_frames": 25, "width": 32, "height": 32}
    quick = {"num_inference_steps": 1, "guidance_scale": 1.0, "audio_guidance_scale": 1.0}
    pipeline(PROMPT, **given, **quick)
    full = {"reference_downscale_factor": 1, "reference_temporal_factor": 1}
    pipeline(PROMPT, **given, **quick, **full)
    hook.remove()
    clip_tokens = 4 * 2 * 2  # latent frames, rows, columns of 16 pixels
    assert min(seen) == clip_tokens + 3 * 1 * 1  # 13 frames are 3 latent ones, of 16 x 16 pixels
    assert max(seen) == 2 * clip_tokens


def other_loras(folder: Path) -> dict[str, Path]:
    """LoRAs that the tiny embedded model has no layer for, by what the error says of them."""
    wide = {TO_Q: (64, 64)}
    return {
        r"layers of another shape: .*to_q \[64, 64\] instead of \[24, 24\]": lora_files.write(
            folder / "wide.safetensors", lora_files.draw(wide, wide)
        ),
        r"which is embedded: it is a LoRA for LTX-2\.0": lora_files.write(
            folder / "old.safetensors", lora_files.draw("2.0", ["caption_projection.linear_2"])
        ),
        r"holds no LoRA": write_odd(folder / "odd.safetensors"),
        r"does not exist": folder / "none.safetensors",
    }


def write_odd(path: Path) -> Path:
    write_safetensors(
        path, {f"diffusion_model.style.{name}": torch.ones(2) for name in "ab"}, {"format": "pt"}
    )
    return path


def test_loras_of_another_model_are_refused_from_headers(
    pipeline: Pipeline, style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is loaded, and just so by a plan; a clip that can be made is not held up."""

    def load_checkpoint(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(opening, "load_checkpoint", load_checkpoint)
    checkpoint = pipeline.components.checkpoint
    setup = setup_of(checkpoint)
    file = checkpoint.headers[0].path
    for message, path in other_loras(tmp_path).items():
        wanted = GenerationRequest(prompt=PROMPT, loras=(str(path),))
        for refused in (
            lambda wanted=wanted: Pipeline.load(file, requests=[wanted]),
            lambda wanted=wanted: fit(setup, wanted, 10**12),
        ):
            with pytest.raises(CheckpointError, match=message):
                refused()
        with pytest.raises(AssertionError, match="weights are read"):
            Pipeline.load(file, requests=[wanted, GenerationRequest(prompt=PROMPT, loras=(str(style),))])


@pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5", "embedded"])
def test_headers_tell_the_layers_of_a_network(generation: str, tmp_path: Path) -> None:
    modules = tiny.modules(generation)
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, modules, config=tiny.config(generation), model_version="2.3.0")
    for part in ("transformer", "connectors"):
        assert stored_layers(open_checkpoint(path), part) == linear_layers(modules[part])


def test_a_released_lora_that_is_not_here_is_left_out_of_a_plan_with_a_note() -> None:
    checkpoint, is_sketch = open_or_sketch("ltx-2-19b-dev")
    assert is_sketch
    setup = setup_of(checkpoint, gpu="RTX 4090", placing=Placing(quantize="fp8"), dtype=torch.bfloat16)
    name = "ltx-2-19b-distilled-lora-384"
    fitted = fit(setup, GenerationRequest(prompt=PROMPT, loras=(name,)), 24 * 10**9)
    assert f"{name} is not here; what it takes is not counted" in fitted.plan.notes
    with pytest.raises(CheckpointError, match=name):
        choose_loras((name,), checkpoint)
