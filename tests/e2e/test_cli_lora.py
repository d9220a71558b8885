"""LoRAs as a person meets them: `generate --lora`, `inspect`, and every command of the guide."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lora_files
import tiny
from soundstage import Pipeline
from soundstage.checkpoints.layer_table import released_layers
from soundstage.checkpoints.lora_fit import embedded_layers
from soundstage.checkpoints.save import write_safetensors
from soundstage.cli.main import run
from soundstage.media.mux import read_metadata
from soundstage.media.video import read_clip

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "lora.md"
SMALL = ["--size", "64x64", "--num-frames", "9", "--steps", "2", "--seed", "7", "--quiet"]
HEARD = [flag if flag != "9" else "49" for flag in SMALL]  # long enough for an impact
PROMPT = "a large white ball drops onto a drum with a boom"
TO_Q = "transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    """A random LoRA for all attention layers of the embedded model."""
    layers = embedded_layers()
    targets = [name for name in layers if ".to_" in name]
    return lora_files.write(
        tmp_path_factory.mktemp("lora") / "style.safetensors",
        lora_files.draw(layers, targets, rank=4, alpha=4.0),
    )


def clip(path, *flags, small=SMALL):
    assert run(["generate", PROMPT, "-o", str(path), *small, *flags]) == 0
    return read_clip(path)


def difference(first, second):
    """Mean of the difference of two clips: of the picture in 8-bit steps, of the sound in full scale."""
    pictures = torch.as_tensor(first.frames).float() - torch.as_tensor(second.frames).float()
    return pictures.abs().mean().item(), (first.waveform - second.waveform).abs().mean().item()


def test_a_lora_makes_another_clip_and_at_strength_zero_the_same(style, tmp_path):
    plain = clip(tmp_path / "plain.mp4", small=HEARD)
    adapted = clip(tmp_path / "adapted.mp4", "--lora", f"{style}:2", "--lora-mode", "live", small=HEARD)
    nothing = clip(tmp_path / "nothing.mp4", "--lora", f"{style}:0", small=HEARD)
    picture, sound = difference(plain, adapted)
    assert picture > 2
    assert sound > 1e-4
    assert difference(plain, nothing) == (0, 0)


def test_a_lora_makes_the_same_clip_in_both_modes(style):
    """Compared before H.264, which makes much of a last bit."""
    pipeline = Pipeline.load("embedded")
    small = {"width": 64, "height": 64, "num_frames": 49, "num_inference_steps": 2, "seed": 7}
    fused, live = (
        pipeline(PROMPT, loras=[f"{style}:2"], lora_mode=mode, **small) for mode in ("fused", "live")
    )
    picture, sound = difference(fused, live)
    assert picture < 1e-3
    assert sound < 1e-6


def test_clip_remembers_its_loras(style, tmp_path):
    path = tmp_path / "clip.mp4"
    clip(path, "--lora", f"{style}:0.5", "--lora", f"{style}:-0.25@1")
    assert read_metadata(path)["request"]["loras"] == [f"{style}:0.5", f"{style}:-0.25@1"]


def test_inspect_explains_a_lora(tmp_path, capsys):
    layers = released_layers("2.3")
    names = [
        TO_Q,
        "transformer_blocks.1.attn1.to_k",
        "audio_adaln_single.linear",
        "transformer_blocks.0.audio_to_video_attn.to_q",
    ]
    factors = lora_files.draw(layers, names, rank=2, alpha=1.0)
    path = lora_files.write(tmp_path / "ic.safetensors", factors, "kohya", reference_downscale_factor="2")
    assert run(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    for line in (
        "LoRA of rank 2, alpha 1, keys as kohya spells them",
        "video stream: 2 layers (attn1 2)",
        "audio stream: 1 layers (audio_adaln_single 1)",
        "between the streams: 1 layers (audio_to_video_attn 1)",
        "fits: LTX-2.3 or LTX-2.5",
        "reference clip: 2 times smaller, every frame 1",
    ):
        assert f"    {line}\n" in shown
    assert run(["inspect", str(path), "--json"]) == 0
    lora = json.loads(capsys.readouterr().out)["lora"]
    assert lora["fits"] == ["2.3", "2.5"]
    assert lora["ranks"] == [2]
    assert lora["targets"]["video"] == {"attn1": 2}


def test_inspect_tells_a_dora_for_the_embedded_model_and_what_is_wrong_with_it(tmp_path, capsys):
    factors = lora_files.draw(embedded_layers(), [TO_Q], magnitudes=True)
    path = lora_files.write(tmp_path / "dora.safetensors", factors)
    extra = {"text_encoder.x.lora_A.weight": torch.ones(1, 1)}
    write_safetensors(tmp_path / "more.safetensors", load_file(path) | extra, {})
    assert run(["inspect", str(tmp_path / "more.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "DoRA of rank 3, alpha not stated (= rank), keys as official spells them" in shown
    assert "fits: embedded" in shown
    assert "left out: 1 keys are for the text encoder, which is not adapted here" in shown


def test_truncated_lora_can_still_be_inspected(style, tmp_path, capsys):
    half = tmp_path / "half.safetensors"
    length = 8 + int.from_bytes(style.read_bytes()[:8], "little")  # of the header alone
    half.write_bytes(style.read_bytes()[:length])
    assert run(["inspect", str(half)]) == 0
    shown = capsys.readouterr().out
    assert "the data are not all here" in shown
    assert "LoRA of rank 4, alpha not readable" in shown


@pytest.fixture
def refused(tmp_path, capsys):
    """Run `generate` with a LoRA and return its one line of error; nothing may be written."""

    def run_refused(lora, *more):
        before = sorted(tmp_path.rglob("*"))
        arguments = ["generate", PROMPT, "-o", str(tmp_path / "clip.mp4"), *SMALL, "--lora", str(lora)]
        assert run([*arguments, *more]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("soundstage: error: ")
        assert captured.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return captured.err

    return run_refused


def test_loras_that_cannot_be_used_are_one_line(refused, style, tmp_path):
    assert "strength 'much' is not a number" in refused(f"{style}:much")
    assert "is for stage 2; this generation has 1 stage" in refused(f"{style}@2")
    assert "is for stage 2; this generation has 1 stage" in refused(f"{style}@2", "--dry-run")
    assert "none.safetensors does not exist" in refused("none.safetensors:0.5")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "lora.pt")
    assert "PyTorch pickle" in refused(tmp_path / "lora.pt")
    (tmp_path / "half.safetensors").write_bytes(style.read_bytes()[:-10])
    assert "is truncated" in refused(tmp_path / "half.safetensors")
    old = lora_files.draw("2.0", ["caption_projection.linear_1"])
    assert "it is a LoRA for LTX-2.0" in refused(lora_files.write(tmp_path / "old.safetensors", old))
    tiny.write_embedded(tmp_path / "model.safetensors")
    assert "holds no LoRA" in refused(tmp_path / "model.safetensors")


def guide_commands():
    text, commands, inside = GUIDE.read_text(), [], False
    for line in text.splitlines():
        inside = line == "```sh" or (inside and line != "```")
        if inside and line.startswith("soundstage "):
            commands.append(line)
    return commands


@pytest.mark.parametrize("command", guide_commands())
def test_command_of_the_guide_runs(command, style, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("style.safetensors", "motion.safetensors"):
        (tmp_path / name).write_bytes(style.read_bytes())
    words = shlex.split(command)[1:]
    assert run([*words, *(SMALL if words[0] == "generate" else [])]) == 0, capsys.readouterr().err
    assert words[0] != "generate" or read_clip(tmp_path / "clip.mp4").frames.shape == (9, 64, 64, 3)


def test_guide_has_commands():
    assert len(guide_commands()) >= 5
