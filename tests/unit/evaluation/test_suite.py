import json
import math
from dataclasses import replace

import pytest
import torch

import tiny
from soundstage.core.errors import RequestError
from soundstage.data.world.sample import WorldConfig
from soundstage.evaluation import suite
from soundstage.evaluation.cases import stored_cases, world_cases
from soundstage.evaluation.report import html_page, metric_rows, write_report
from soundstage.evaluation.results import ABLATED, CEILING, DUBBED, GENERATED, PICTURED, STORED, TRUTH
from soundstage.evaluation.sources import cross_attention_off, shifted, world_config, write_generated
from soundstage.evaluation.suite import SuitePlan, run_suite
from soundstage.evaluation.validation import Check, validate
from soundstage.media.mux import read_metadata
from soundstage.pipelines.pipeline import Pipeline

BOUNCE = ("bounce",)
FIELDS = {"num_inference_steps": 1, "num_frames": 17, "width": 64, "height": 64}
SMALL = WorldConfig(num_frames=25, tail=0.25)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    path = tiny.write_embedded(tmp_path_factory.mktemp("model") / "tiny.safetensors")
    return Pipeline.load(path, device="cpu")


@pytest.fixture(scope="module")
def result(pipeline, tmp_path_factory):
    """A whole evaluation of a tiny untrained model: two clips, one step, detectors not tried."""
    patch = pytest.MonkeyPatch()
    patch.setattr(
        suite, "validate", lambda cases, config: [Check(title="x", truth=0.0, measured=1.0, unit="ms")]
    )
    events = []
    plan = SuitePlan(
        kinds=BOUNCE,
        num_clips=2,
        seed=9,
        directory=tmp_path_factory.mktemp("evaluation"),
        streams=("av", "v2a", "a2v"),
        ablate_cross_attention=True,
        fields=FIELDS,
    )
    done = run_suite(plan, pipeline, on_progress=events.append)
    patch.undo()
    return done, events


def test_every_group_is_written_and_measured(result):
    done, _ = result
    assert [group.title for group in done.groups] == [GENERATED, DUBBED, PICTURED, ABLATED, CEILING, TRUTH]
    for group in done.groups:
        assert group.clips[0].path.is_file()
        assert group.metrics["loudness"].num_clips == 2


def test_world_itself_beats_an_untrained_model(result):
    done, _ = result
    generated, *_, truth = done.groups
    assert truth.metrics["colour"].value == 1.0
    assert truth.metrics["flicker"].value < generated.metrics["flicker"].value


def test_progress_names_every_stage_and_ends_it(result):
    _, events = result
    ended = [event.stage for event in events if event.step == event.num_steps]
    assert ended[-1] == "try detectors"
    assert {"make generated", "measure generated", f"measure {TRUTH}", "measure codecs"} <= set(ended)


def test_generated_file_carries_the_held_out_caption(result):
    done, _ = result
    clip = done.groups[0].clips[0]
    assert read_metadata(clip.path)["request"]["prompt"] == clip.caption
    assert clip.caption == world_cases(world_config(None, {}), BOUNCE, 1, 9)[0].caption


def test_report_is_one_page_without_outside_files(result):
    done, _ = result
    files = write_report(done)
    page = files.html.read_text()
    assert "src='data:image/png;base64," in page
    assert "http" not in page
    for title, values in metric_rows(done.groups, "bounce"):
        assert title in page
        assert len(values) == len(done.groups)


def test_report_for_machines_is_strict_json(result):
    done, _ = result
    files = write_report(done)

    def refuse(name):
        raise AssertionError(name)

    data = json.loads(files.json.read_text(), parse_constant=refuse)
    assert data["groups"][GENERATED]["clips"][0]["file"] == "generated/bounce-unseen-00009.mp4"
    assert data["groups"][TRUTH]["metrics"]["colour"]["value"] == 1.0
    assert data["request"] == FIELDS


def test_caption_cannot_break_the_page(result):
    done, _ = result
    group = done.groups[0]
    clip = replace(group.clips[0], caption="<script>alert(1)</script>")
    page = html_page(replace(done, groups=(replace(group, clips=(clip,)),)))
    assert "<script" not in page


def test_stored_clips_are_measured_without_a_model(result, tmp_path, monkeypatch):
    done, _ = result
    monkeypatch.setattr(suite, "validate", lambda cases, config: [])
    folder = done.groups[-1].clips[0].path.parent
    plan = SuitePlan(num_clips=1, seed=9, directory=tmp_path, clips=(folder,))
    stored, truth = run_suite(plan).groups
    assert (stored.title, truth.title) == (STORED, TRUTH)
    assert stored.metrics["colour"].value == 1.0
    assert math.isnan(stored.seconds_per_clip)


def test_cross_attention_off_changes_the_clip_and_is_undone(pipeline, tmp_path):
    case = world_cases(world_config(pipeline, FIELDS), BOUNCE, 1, 9)[0]
    names = ("on", "off", "again")
    paths = [tmp_path / f"{name}.mp4" for name in names]
    write_generated([case], paths[:1], pipeline=pipeline, fields=FIELDS)
    with cross_attention_off(pipeline.transformer):
        write_generated([case], paths[1:2], pipeline=pipeline, fields=FIELDS)
    write_generated([case], paths[2:], pipeline=pipeline, fields=FIELDS)
    on, off, again = (path.read_bytes() for path in paths)
    assert on != off
    assert on == again


def test_ground_truth_has_the_size_of_what_is_generated(pipeline):
    config = world_config(pipeline, FIELDS)
    assert (config.num_frames, config.width, config.height) == (17, 64, 64)
    assert config.sample_rate == pipeline.vocoder.sample_rate


@pytest.mark.parametrize("seconds", [-0.12, 0.0, 0.04])
def test_shifted_sound_is_as_long_as_the_clip(seconds):
    sound = torch.arange(2 * 40_000).reshape(2, -1).float()
    moved = shifted(sound, seconds, SMALL)
    assert moved.shape == (2, round(SMALL.duration * SMALL.sample_rate))
    offset = round(seconds * SMALL.sample_rate)
    assert moved[0, 1000] == (1000 - offset if offset <= 960 else moved[0, 1000])


def test_validation_finds_the_truth_and_the_shifts():
    config = WorldConfig(tail=0.25)
    checks = {check.title: check for check in validate(world_cases(config, BOUNCE, 1, 9), config)}
    assert checks["event time, mean absolute error"].measured < 6
    assert checks["onset time, mean absolute error"].measured < 1.5
    for check in checks.values():
        if check.unit == "":
            assert check.measured == check.truth
        elif check.title.startswith("median"):
            assert check.measured == pytest.approx(check.truth, abs=8)


def test_folder_without_clips_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"no \.mp4 files"):
        stored_cases([tmp_path])


def test_nothing_to_evaluate_is_refused(tmp_path):
    with pytest.raises(RequestError, match="nothing to evaluate"):
        run_suite(SuitePlan(num_clips=1, directory=tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "moon"}, "moon"),
        ({"kinds": ("bounse",)}, "bounce"),
        ({"streams": ("v2v",)}, "v2a"),
        ({"num_clips": 0}, "num_clips=0"),
        ({"workers": 0}, "workers=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_plan_says_what_is_allowed(tmp_path, change, message):
    with pytest.raises(RequestError, match=message):
        SuitePlan(directory=tmp_path, **change)
