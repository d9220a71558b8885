"""`soundstage plan` on a release that is not here, on a file, and when nothing fits."""

import json

from soundstage.cli.main import run

MODEL = ("--model", "ltx-2-19b-dev", "--size", "1280x704", "--duration", "5")


def test_a_release_is_planned_without_its_files(capsys):
    assert run(["plan", *MODEL, "--vram", "24GB", "--quantize", "fp8"]) == 0
    shown = capsys.readouterr().out
    assert "RTX 4090" in shown
    assert "table of known GPUs" in shown
    assert "the released header" in shown
    assert "placement: networks take turns" in shown
    assert "peak 2" in shown


def test_machines_get_numbers(capsys):
    assert run(["plan", *MODEL, "--gpu", "H100", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["placement"] == "resident"
    assert shown["peak_bytes"] == max(phase["peak_bytes"] for phase in shown["phases"])
    assert {"denoise", "decode picture"} <= {phase["name"] for phase in shown["phases"]}


def test_the_embedded_model_is_planned_for_this_machine(capsys):
    assert run(["plan", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "measured now" in shown
    assert "everything stays on the device" in shown


def test_what_does_not_fit_is_one_line_with_a_cure(capsys):
    assert run(["plan", *MODEL, "--vram", "24GB", "--offload", "none"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "what would fit: --offload stream" in shown


def test_what_is_not_known_of_a_release_is_a_note(capsys):
    model = ("--model", "ltx-2.5-22b-dev", "--size", "1280x704", "--duration", "5", "--vram", "24GB")
    assert run(["plan", *model, "--quantize", "fp8"]) == 0
    shown = capsys.readouterr().out
    assert "note: of the text encoder of LTX-2.5" in shown
    assert "placement: " in shown
