"""`soundstage inspect` as a person meets it: good files explained, bad ones refused in one line."""

import json
import pickle

import pytest
import torch

import tiny
from soundstage.checkpoints.save import write_safetensors
from soundstage.cli.main import run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model") / "ltx-2.3-distilled.safetensors", "2.3")


def test_a_model_is_explained(model, capsys):
    assert run(["inspect", str(model)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(str(model))
    assert "model, generation 2.3 (distilled), model_version 2.3.0" in shown
    for words in ("transformer", "video stream", "audio stream", "between the streams", "vocoder", "F32"):
        assert words in shown
    assert "can\n    text to video with sound (T2AV)" in shown
    assert "needs\n    the text encoder: google/gemma-3-12b-it-qat-q4_0-unquantized" in shown


def test_the_same_for_machines(model, capsys):
    assert run(["inspect", str(model), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["generation"] == "2.3"
    assert summary["kind"] == "model"
    parts = {part["part"]: part for part in summary["parts"]}
    network = tiny.modules("2.3")["transformer"]
    assert parts["transformer"]["parameters"] == sum(p.numel() for p in network.parameters())
    assert summary["streams"] == network.parameter_counts()


def test_a_directory_of_split_files_is_one_model(tmp_path, capsys):
    tiny.write_pack(tmp_path)
    assert run(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "generation 2.5 (dev)" in shown
    assert shown.count(".safetensors\n") == 4


def test_a_truncated_download_can_still_be_inspected(model, tmp_path, capsys):
    path = tmp_path / "half.safetensors"
    path.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    assert run(["inspect", str(path)]) == 0
    assert "the data are not all here" in capsys.readouterr().out


def test_the_embedded_kind_needs_nothing(tiny_model, capsys):
    assert run(["inspect", str(tiny_model)]) == 0
    shown = capsys.readouterr().out
    assert "generation embedded" in shown
    assert "tokenizer" in shown
    assert "needs" not in shown


def bad(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda t: bad(t, b""), "is empty"),
        (lambda t: bad(t, pickle.dumps({"a": 1}, protocol=2)), "PyTorch pickle"),
        (lambda t: bad(t, b"not a checkpoint"), "is not a safetensors file"),
        (lambda t: bad(t, (10**6).to_bytes(8, "little") + b'{"a'), "truncated"),
        (lambda t: t / "none.safetensors", "does not exist"),
        (lambda t: t, r"holds no .safetensors files"),
        (lambda t: "ltx-2.3-22b-deb", "did you mean 'ltx-2.3-22b-dev'"),
    ],
)
def test_what_cannot_be_inspected_is_one_line_and_status_2(make, reason, tmp_path, capsys):
    assert run(["inspect", str(make(tmp_path))]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("soundstage: error: ")
    assert written.err.count("\n") == 1
    assert reason in written.err


def test_the_diffusers_layout_is_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"audio_proj_in.weight": torch.zeros(1)}, {})
    assert run(["inspect", str(path)]) == 2
    assert "diffusers layout" in capsys.readouterr().err


def test_a_clip_tells_how_it_was_made(tmp_path, capsys):
    from soundstage.media.audio import write_wav

    path = tmp_path / "sound.wav"
    record = {"request": {"prompt": "a red ball", "seed": 7}, "version": "0.1.0"}
    write_wav(path, torch.zeros(2, 100), sample_rate=24_000, metadata=record)
    assert run(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "made by soundstage" in shown
    assert "a red ball" in shown
    assert run(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == record


def test_a_clip_of_someone_else_is_told(tmp_path, capsys):
    from soundstage.media.audio import write_wav

    path = tmp_path / "sound.wav"
    write_wav(path, torch.zeros(2, 100), sample_rate=24_000)
    assert run(["inspect", str(path)]) == 2
    assert "soundstage did not write it" in capsys.readouterr().err


def test_inspecting_imports_no_torch(model):
    import subprocess
    import sys

    code = (
        "import sys; from soundstage.cli.main import run; "
        f"status = run(['inspect', {str(model)!r}, '--json']); "
        "sys.exit(status or ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
