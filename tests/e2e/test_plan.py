"""A plan trains every part, stops and goes on, and ends with a model that generates: the GPU run in small."""

from pathlib import Path

import pytest
import torch

from soundstage import Pipeline
from soundstage.checkpoints.releases import EMBEDDED_FILE
from soundstage.core.errors import CheckpointError, ConfigError
from soundstage.training.export import assemble, read_component, write_component, write_pieces
from soundstage.training.plan import run_plan
from soundstage.training.session import Session

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
    assert_generates(model)


def assert_generates(model: Path) -> torch.Tensor:
    """Let a model make a short clip; return its sound."""
    clip = Pipeline.load(model)("a red ball bounces on a drum", num_frames=17, num_inference_steps=2, seed=0)
    assert clip.frames.shape[0] == 17
    assert torch.isfinite(clip.waveform).all()
    return clip.waveform


def test_the_short_plan_goes_on_from_the_model_inside_and_ends_in_pieces(tmp_path: Path) -> None:
    session = Session(
        recipe=RECIPES / "embedded_gpu_short.toml",
        out=tmp_path,
        overrides=(*QUICK, "settings.num_validation_clips=2", "settings.num_read_captions=4"),
        piece_mib=15.0,
    )
    lines: list[str] = []
    session.run(lines.append)
    before, after = (read_component(path) for path in (EMBEDDED_FILE, tmp_path / "model.safetensors"))
    assert before[0] == after[0]
    assert before[1].keys() == after[1].keys()
    changed = {
        name for name, old in before[1].items() if not torch.equal(old.float(), after[1][name].float())
    }
    assert "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight" in changed
    assert not [name for name in changed if name.startswith(("vae.", "audio_vae.", "vocoder.", "tokenizer"))]
    drift = max((before[1][name].float() - after[1][name].float()).abs().max().item() for name in changed)
    assert drift < 0.05  # two steps from the given weights, not from random ones
    held_out = [line for line in lines if "held_out.video" in line]
    assert held_out[0].startswith("step 0 ")  # what to compare the result with

    files = sorted(path.name for path in (tmp_path / "pieces").iterdir())
    assert files == [
        *(f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)),
        "model.safetensors.index.json",
    ]
    assert all(path.stat().st_size <= 15 * 2**20 for path in (tmp_path / "pieces").iterdir())
    joined = tmp_path / "joined.safetensors"
    assemble(sorted((tmp_path / "pieces").glob("*.safetensors")), joined, torch.float16)
    assert joined.read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert torch.equal(assert_generates(tmp_path / "pieces"), assert_generates(joined))


def test_a_tensor_that_no_piece_can_hold_is_named(tmp_path: Path) -> None:
    write_component(tmp_path / "m.safetensors", {"vae": {}}, {"vae.a": torch.zeros(4096)})
    with pytest.raises(CheckpointError, match=r"vae\.a has 16,384 bytes, too many for a piece of 8,192"):
        write_pieces(tmp_path / "m.safetensors", tmp_path / "pieces", 8192)


def test_parts_of_another_network_are_not_joined_with_a_base(tmp_path: Path) -> None:
    write_component(tmp_path / "m.safetensors", {"vae": {}}, {"vae.a": torch.zeros(4)})
    with pytest.raises(CheckpointError, match=r"vae\.a of \(4,\) has no such counterpart in embedded"):
        assemble([tmp_path / "m.safetensors"], tmp_path / "out", torch.float16, base=Path("embedded"))


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
