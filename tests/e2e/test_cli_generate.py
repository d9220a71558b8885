"""`soundstage generate` as a person or a script meets it, on a tiny random model."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from soundstage.cli.main import run
from soundstage.media.audio import read_sound
from soundstage.media.mux import read_metadata
from soundstage.media.video import read_clip

SMALL = ["--size", "32x32", "--num-frames", "9", "--steps", "2", "--guidance-scale", "1"]
PROMPT = "a red ball bounces on a wooden floor"


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model


@pytest.fixture(scope="module")
def clip(model, tmp_path_factory):
    """One generated clip for the tests that only look at it."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    assert (
        run(["generate", PROMPT, "-o", str(path), "--model", str(model), "--seed", "7", "--quiet", *SMALL])
        == 0
    )
    return path


def test_clip_has_picture_and_stereo_sound_of_equal_length(clip):
    seen = read_clip(clip)
    assert seen.frames.shape == (9, 32, 32, 3)
    assert seen.frame_rate == 24
    assert seen.waveform.shape == (2, round(Fraction(9, 24) * seen.sample_rate))


def test_clip_carries_the_request_that_makes_it_again(clip):
    metadata = read_metadata(clip)
    assert metadata["request"]["prompt"] == PROMPT
    assert metadata["request"]["seed"] == 7
    assert metadata["model"] == "tiny.safetensors"
    assert {"soundstage", "torch"} <= metadata["versions"].keys()


def test_same_seed_gives_the_same_file_and_another_seed_another(clip, model, tmp_path):
    for name, seed in (("same.mp4", "7"), ("other.mp4", "8")):
        path = str(tmp_path / name)
        assert (
            run(["generate", PROMPT, "-o", path, "--model", str(model), "--seed", seed, "--quiet", *SMALL])
            == 0
        )
    assert (tmp_path / "same.mp4").read_bytes() == clip.read_bytes()
    assert (tmp_path / "other.mp4").read_bytes() != clip.read_bytes()


def test_stdout_is_the_path_and_stderr_the_progress(model, tmp_path, capsys):
    path = tmp_path / "clip.mp4"
    assert run(["generate", PROMPT, "-o", str(path), "--model", str(model), *SMALL]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{path}\n"
    for stage in ("load", "encode prompt", "denoise", "decode video", "decode audio", "write"):
        assert f"{stage}: " in captured.err


def test_many_clips_share_one_load_and_are_numbered(model, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball bounces\n\n  a small blue cube falls on metal \n")
    arguments = [
        "--prompts",
        str(prompts),
        "--num-videos",
        "2",
        "--seed",
        "3",
        "--model",
        str(model),
        "--json",
    ]
    assert run(["generate", *arguments, "-o", str(tmp_path / "clip.mp4"), *SMALL]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert [r["path"] for r in records] == [str(tmp_path / f"clip-{i}.mp4") for i in (1, 2, 3, 4)]
    assert [r["seed"] for r in records] == [3, 4, 3, 4]
    assert [r["prompt"] for r in records[1:3]] == ["a red ball bounces", "a small blue cube falls on metal"]
    assert "load" in records[0]["stages"]
    assert all("load" not in r["stages"] for r in records[1:])
    for record in records:
        assert (record["width"], record["height"], record["num_frames"]) == (32, 32, 9)
        assert record["seconds"] > 0
        assert {"denoise", "decode_video", "decode_audio", "write"} <= record["stages"].keys()
        assert read_metadata(Path(record["path"]))["request"]["seed"] == record["seed"]


@pytest.mark.parametrize("way", [["--sampler", "res_2s"], ["--plan", "hq", "--upsampler", "pixels"]])
def test_samplers_that_evaluate_several_times_a_step_count_seconds_and_steps_once(
    model, tmp_path, capsys, way
):
    common = ["generate", PROMPT, "--model", str(model), "--size", "64x64", "--num-frames", "9", *way]
    assert run([*common, "-o", str(tmp_path / "clip.mp4"), "--steps", "6", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    beside = ("load", "write")  # before the clip, and while it is made
    spent = sum(seconds for stage, seconds in record["stages"].items() if stage not in beside)
    assert spent <= record["seconds"]
    assert run([*common, "-o", str(tmp_path / "clip.mp4"), "--steps", "6", "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["stages"]
    assert run([*common, "-o", str(tmp_path / "clip.mp4"), "--steps", "6"]) == 0
    told = capsys.readouterr().err.splitlines()
    for name, stage in zip(("denoise", "refine"), planned, strict=False):
        (line,) = (line for line in told if line.startswith(f"{name}: "))
        assert line.endswith(f" s, {stage['num_inference_steps']} steps")


def test_what_was_done_otherwise_is_said(model, tmp_path, capsys):
    path = tmp_path / "clip.mp4"
    odd = ["--width", "30", "--height", "32", "--num-frames", "8", "--steps", "1", "--guidance-scale", "1"]
    assert run(["generate", PROMPT, "-o", str(path), "--model", str(model), "--quiet", *odd]) == 0
    assert "soundstage: note: 30x32 does not fit the grid" in capsys.readouterr().err
    assert read_clip(path).frames.shape == (8, 32, 30, 3)


def test_broadcast_rates_stay_exact(model, tmp_path):
    path = tmp_path / "clip.mp4"
    rate = ["--frame-rate", "23.976"]
    assert run(["generate", PROMPT, "-o", str(path), "--model", str(model), "--quiet", *rate, *SMALL]) == 0
    assert read_clip(path).frame_rate == Fraction(24000, 1001)


def test_sound_alone_can_be_written(model, tmp_path):
    path = tmp_path / "sound.wav"
    assert run(["generate", PROMPT, "-o", str(path), "--model", str(model), "--quiet", *SMALL]) == 0
    assert read_sound(path).waveform.shape[0] == 2
    assert read_metadata(path)["request"]["prompt"] == PROMPT


@pytest.fixture
def refused(tmp_path, capsys):
    """Run `generate` and return its one line of error; nothing may be written."""

    def run_refused(*arguments, model=None, output="clip.mp4"):
        before = sorted(tmp_path.rglob("*"))
        chosen = [] if model is None else ["--model", str(model)]
        status = run(["generate", *arguments, *chosen, "-o", str(tmp_path / output), "--quiet"])
        captured = capsys.readouterr()
        assert status == 2, captured.err
        assert captured.out == ""
        assert captured.err.startswith("soundstage: error: ")
        assert captured.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return captured.err

    return run_refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "the prompt is empty"),
        (["  "], "the prompt is empty"),
        ([], "the prompt is empty"),
        ([PROMPT, "--size", "0x64"], "width=0 is not positive"),
        ([PROMPT, "--size", "64"], "not of the form WIDTHxHEIGHT"),
        ([PROMPT, "--size", "64x64", "--width", "64"], "give one"),
        ([PROMPT, "--height", "-64"], "height=-64 is not positive"),
        ([PROMPT, "--duration", "-2"], "duration=-2.0 is not a positive number of seconds"),
        ([PROMPT, "--duration", "nan"], "duration=nan is not a positive number of seconds"),
        ([PROMPT, "--duration", "1", "--num-frames", "9"], "both say how long"),
        ([PROMPT, "--num-frames", "0"], "num_frames=0 is not positive"),
        ([PROMPT, "--frame-rate", "fast"], "frame_rate='fast' is not a number"),
        ([PROMPT, "--steps", "0"], "num_inference_steps=0 is not positive"),
        ([PROMPT, "--guidance-scale", "0.5"], "guidance_scale=0.5 is below 1"),
        ([PROMPT, "--seed", "-1"], "seed=-1 is outside"),
        ([PROMPT, "--num-videos", "0"], "num_videos=0 is not positive"),
        ([PROMPT, "--prompts", "prompts.txt"], "both a prompt and --prompts"),
        (["--prompts", "nothing-here.txt"], "cannot read --prompts"),
    ],
)
def test_bad_requests_are_one_line_before_anything_is_loaded(refused, arguments, message):
    assert message in refused(*arguments, model="a model that is never looked for")


def test_unwritable_outputs_are_one_line(refused, tmp_path):
    assert "does not exist; create it first" in refused(PROMPT, output="none/clip.mp4")
    assert "ends neither in .mp4 nor in .wav" in refused(PROMPT, output="clip.avi")
    (tmp_path / "folder.mp4").mkdir()
    assert "is a folder" in refused(PROMPT, output="folder.mp4")


@pytest.mark.parametrize(
    ("output", "arguments", "message"),
    [
        ("clip.mp4", ["--no-video"], "would have no picture (no_video); write sound to a .wav"),
        ("sound.wav", ["--no-audio", "skip"], "is sound alone, and no_audio leaves none"),
        ("SOUND.WAV", ["--no-audio", "discard"], "is sound alone, and no_audio leaves none"),
        ("own.mp4", ["--video", "own.mp4"], "is the video that is read; choose another name"),
        ("own.mp4", ["--video", "./own.mp4", "--retake", "0-1"], "is the video that is read"),
        ("own.mp4", ["--image", "own.mp4@last"], "is the image that is read"),
        ("clip.mp4", ["--attention-steps", "1"], "attention_steps is given without attention_maps"),
    ],
)
def test_outputs_that_cannot_be_are_one_line_before_anything_is_loaded(
    refused, tmp_path, monkeypatch, output, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.mp4").write_bytes(b"a clip that is never read")
    assert message in refused(PROMPT, *arguments, model="a model that is never looked for", output=output)


def test_what_headers_tell_is_one_line_before_weights_are_loaded(refused, model, tmp_path, monkeypatch):
    from soundstage.pipelines.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    text, maps = tmp_path / "text.png", tmp_path / "maps"
    text.write_text("no picture")
    maps.mkdir()
    assert "cannot read" in refused(PROMPT, "--image", str(text), model=model)
    assert "cannot read" in refused(PROMPT, "--reference-video", str(text), model=model)
    assert "nofile.safetensors does not exist" in refused(PROMPT, "--lora", "nofile.safetensors", model=model)
    assert "is not a safetensors file" in refused(PROMPT, "--lora", str(text), model=model)
    blocks = ["--stg-scale", "1", "--stg-blocks", "99"]
    assert "block 99 does not exist; this model's are 0 to 1" in refused(PROMPT, *blocks, model=model)
    steps = ["--attention-maps", str(maps), "--steps", "4", "--attention-steps", "9"]
    assert "attention step 9 does not exist; this run's are 0 to 3" in refused(PROMPT, *steps, model=model)


def test_a_sound_computes_no_picture_however_its_suffix_is_spelled(tmp_path, capsys):
    for name in ("sound.wav", "SOUND.WAV"):
        assert run(["generate", PROMPT, "-o", str(tmp_path / name), "--dry-run", "--json"]) == 0
    lower, upper = map(json.loads, capsys.readouterr().out.splitlines())
    assert upper == lower
    assert lower["stages"][0]["picture"] == "absent"


def test_empty_prompt_file_is_one_line(refused, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n \n")
    assert "has no prompt; write one per line" in refused("--prompts", str(tmp_path / "prompts.txt"))


def test_prompt_that_is_too_long_is_one_line(refused, model):
    line = refused(" ".join(["ball"] * 2000), model=model)
    assert "a prompt of 2000 words has" in line


def test_grid_can_be_insisted_on(refused, model):
    line = refused(PROMPT, "--num-frames", "10", "--snap", "error", model=model)
    assert "num_frames=10 is not 8 k + 1; the nearest are 9 and 17" in line


def test_unknown_device_is_one_line(refused, model):
    assert "device 'cuda:99' is not here; there is cpu" in refused(PROMPT, "--device", "cuda:99", model=model)
    assert "device 'gpu' is not here" in refused(PROMPT, "--device", "gpu", model=model)


def test_unknown_models_are_one_line(refused, tmp_path):
    assert "embeded" in refused(PROMPT, model="embeded")
    assert "nothing.safetensors" in refused(PROMPT, model=tmp_path / "nothing.safetensors")


def test_damaged_checkpoints_are_one_line(refused, model, tmp_path):
    whole = model.read_bytes()
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(whole[: len(whole) // 2])
    assert "truncated.safetensors" in refused(PROMPT, model=truncated)
    pickled = tmp_path / "pickled.safetensors"
    pickled.write_bytes(pickle.dumps({"weight": [1.0]}))
    assert "pickled.safetensors" in refused(PROMPT, model=pickled)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    assert "model.pt" in refused(PROMPT, model=tmp_path / "model.pt")
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    assert "empty.safetensors" in refused(PROMPT, model=empty)


def test_renamed_tensors_are_listed(refused, model, tmp_path):
    from safetensors import safe_open

    tensors = load_file(model)
    with safe_open(model, "pt") as file:
        metadata = file.metadata()
    name = next(name for name in tensors if "to_q.weight" in name)
    tensors[name.replace("to_q", "to_qq")] = tensors.pop(name)
    save_file(tensors, tmp_path / "renamed.safetensors", metadata)
    line = refused(PROMPT, model=tmp_path / "renamed.safetensors")
    assert "to_qq" in line or "to_q.weight" in line


def test_files_that_are_no_whole_model_are_named_as_what_they_are(refused, tmp_path):
    tiny.write_lora(tmp_path / "lora.safetensors")
    assert "LoRA" in refused(PROMPT, model=tmp_path / "lora.safetensors")
    tiny.write_model(tmp_path / "ltx.safetensors", "2.3")
    off = ["--stg-scale", "0", "--audio-stg-scale", "0"]  # the tiny model lacks the block of its generation
    assert "text encoder" in refused(PROMPT, *off, model=tmp_path / "ltx.safetensors")


def test_full_disk_is_one_line(refused, model):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        line = refused(PROMPT, *SMALL, model=model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "no space left to write" in line


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_nothing_behind(model, tmp_path, stop):
    output = tmp_path / "clip.mp4"
    flags = ["--model", str(model), "--size", "64x64", "--num-frames", "49", "--steps", "5000"]
    command = [sys.executable, "-m", "soundstage", "generate", PROMPT, "-o", str(output), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        for line in process.stderr:
            if line.startswith("load: "):  # written when the next stage is done: denoising has begun
                process.send_signal(stop)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.endswith("soundstage: stopped\n")
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_choices_of_number_format_are_those_of_the_pipeline():
    import typing

    from soundstage.cli.generate import GenerateCommand
    from soundstage.pipelines.opening import DTYPES

    choice = typing.get_type_hints(GenerateCommand)["dtype"]
    assert set(typing.get_args(typing.get_args(choice)[0])) == set(DTYPES)
