"""A plan trains every part, stops and goes on, and ends with a model that generates: the GPU run in small."""

from pathlib import Path

import pytest
import torch

from soundstage.core.errors import ConfigError
from soundstage.training.plan import run_plan

RECIPES = Path(__file__).parents[2] / "recipes"
QUICK = (
    "num_steps=2",
    "batch_size=2",
    "budget_minutes=0.0",
    "compile=false",
    "data.num_frames=17",
    "data.height=64",
    "data.width=64",
)
SETTINGS = {
    "video_vae": ("settings.principal_start_clips=4", "settings.num_statistics_clips=4"),
    "audio_vae": ("settings.num_statistics_clips=4", "settings.stereo_start_clips=4"),
    "vocoder": (),
    "transformer": ("settings.num_tokenizer_captions=200",),
    "video_decoder": ("settings.principal_start_clips=4",),
}


def small(plan: Path, folder: Path) -> Path:
    """Copy a plan whose stages start from few clips; everything else is what it is."""
    text = plan.read_text().replace('recipe = "', f'recipe = "{RECIPES}/')
    for name, settings in SETTINGS.items():
        extra = ", ".join(f'"{setting}"' for setting in (*settings, "settings.num_validation_clips=2"))
        head, stage, rest = text.partition(f'name = "{name}"')
        if "set = [" in rest.split("[[stages]]")[0]:
            rest = rest.replace("set = [", f"set = [{extra}, ", 1)
        else:
            rest = f"\nset = [{extra}]{rest}"
        text = head + stage + rest
    path = folder / plan.name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["embedded", "embedded_gpu"])
def test_a_plan_stops_anywhere_and_ends_with_a_model_that_generates(name: str, tmp_path: Path) -> None:
    plan, out, lines = small(RECIPES / f"{name}.toml", tmp_path), tmp_path / "run", []
    sessions = 0
    model = None
    while model is None:
        model = run_plan(
            plan,
            out,
            torch.device("cpu"),
            overrides=QUICK,
            max_seconds=0.01 if sessions % 2 else 1.0,
            on_log=lines.append,
        )
        sessions += 1
        assert sessions < 60, lines
    assert sessions > 2
    assert model == out / "model.safetensors"
    begun = [line for line in lines if line.startswith("stage") and "%" not in line]
    assert list(dict.fromkeys(begun)) == [f"stage {stage}" for stage in SETTINGS]

    from soundstage import Pipeline

    clip = Pipeline.load(model)("a red ball bounces on a drum", num_frames=17, num_inference_steps=2, seed=0)
    assert clip.frames.shape[0] == 17
    assert torch.isfinite(clip.waveform).all()


def test_a_part_that_no_stage_makes_is_named(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('parts = ["vocode"]\n[[stages]]\nname = "vocoder"\nrecipe = "vocoder.toml"\n')
    with pytest.raises(ConfigError, match=r"no stage 'vocode' \(did you mean 'vocoder'\?\)"):
        run_plan(plan, tmp_path, torch.device("cpu"), on_log=print)


def test_a_result_that_no_stage_makes_is_named(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'parts = []\n[[stages]]\nname = "vocoder"\nrecipe = "vocoder.toml"\n'
        'set = ["settings.audio_vae={ear}"]\n'
    )
    with pytest.raises(ConfigError, match="names no stage; there are vocoder"):
        run_plan(plan, tmp_path, torch.device("cpu"), on_log=print)


def test_two_stages_of_one_name_are_an_error(tmp_path: Path) -> None:
    stage = '[[stages]]\nname = "vocoder"\nrecipe = "vocoder.toml"\n'
    plan = tmp_path / "plan.toml"
    plan.write_text(f"parts = []\n{stage}{stage}")
    with pytest.raises(ConfigError, match="two stages are called 'vocoder'"):
        run_plan(plan, tmp_path, torch.device("cpu"), on_log=print)
