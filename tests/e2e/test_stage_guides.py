"""The commands of the guides about stages and long clips, run on a tiny model as they stand."""

import json
import shlex
from pathlib import Path

import pytest

import media_samples
from soundstage.cli.main import run
from soundstage.media.video import read_clip

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "docs" / "guide" / name for name in ("two-stage.md", "long-clips.md")]
COMMANDS = [
    (guide.stem, line)
    for guide in GUIDES
    for block in guide.read_text().split("```sh\n")[1:]
    for line in block.split("```")[0].splitlines()
]


@pytest.mark.parametrize(("guide", "line"), COMMANDS, ids=lambda value: value[-40:])
def test_command_of_a_guide_runs(guide: str, line: str, tiny_model, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    if "speech.wav" in words:
        media_samples.write_speech(tmp_path / "speech.wav", seconds=3.0)
    assert words[:2] == ["soundstage", "generate"]
    few = ["--model", str(tiny_model), "--steps", "1", "--size", "32x32", "--quiet"]
    assert run([*words[1:], *few]) == 0
    output = tmp_path / words[words.index("-o") + 1]
    if "--dry-run" in words:
        assert "stage 2, refine" in capsys.readouterr().out
        assert not output.exists()
        return
    clip = read_clip(output)
    seconds = float(words[words.index("--duration") + 1]) if "--duration" in words else 49 / 24
    assert clip.frames.shape == (round(seconds * 24), 32, 32, 3)
    assert clip.waveform.shape[1] == round(seconds * 24) * clip.sample_rate // 24


def test_plan_can_be_read_by_programs_without_weights(tiny_model, tmp_path, capsys) -> None:
    headers = tmp_path / "headers.safetensors"
    headers.write_bytes(tiny_model.read_bytes())
    arguments = ["a red ball", "-o", str(tmp_path / "no-such-folder" / "clip.mp4"), "--model", str(headers)]
    assert run(["generate", *arguments, "--dry-run", "--json", "--upsampler", "pixels", "--steps", "4"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["plan"] == "two_stage"
    assert [stage["width"] for stage in shown["stages"]] == [64, 128]
    assert shown["stages"][0]["passes"] == {"cond": 4, "uncond": 4, "isolated": 4}
    assert shown["stages"][0]["passes_of_a_step"] == shown["stages"][0]["rows_at_once"] == 3


def test_missing_upsampler_is_one_line(tiny_model, tmp_path, capsys) -> None:
    arguments = ["a red ball", "-o", str(tmp_path / "clip.mp4"), "--model", str(tiny_model), "--quiet"]
    assert run(["generate", *arguments, "--plan", "two_stage"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("soundstage: error: no upsampler was trained for the embedded model")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
