import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from soundstage.data.world.sample import World, WorldConfig
from soundstage.evaluation.expectation import expected_of
from soundstage.evaluation.measure import findings, measure_clip, score, summarise
from soundstage.evaluation.metrics.registry import FINDINGS, METRICS
from soundstage.evaluation.observation import Observation, Timing

SEEDS = (0, 3, 9, 13)
OF_OTHER_KINDS = {  # of scenes than the bounces of this file; test_kinds.py and test_talking.py try them
    *("ambience_heard", "ambience_seen", "level_heard", "level_seen", "swell"),
    *("bars", "colours", "notes", "pad_colours", "ticks"),
    *("face_colour", "face_place", "lip_bias", "lip_correlation", "lip_lag", "syllables", "voice"),
    *("silent", "unseen"),
}
RATE = WorldConfig().sample_rate


@pytest.fixture(scope="module")
def truth(seen):
    """What the metrics say about the world's own clips."""
    world = World(WorldConfig(split="held_out", kinds=("bounce",), plain=True))
    return summarise([score(seen(seed)[1], expected_of(world.caption(seed))) for seed in SEEDS])


def value(name, *clips, expected=None):
    """One metric of some clips, without its interval."""
    rows = [row for clip in clips for row in METRICS[name].evidence(clip, expected or {})]
    return METRICS[name].pool(np.array(rows, dtype=np.float64)) if rows else math.nan


def delayed(clip, as_observation, seconds):
    """The same clip, its sound later; what is pushed out at the end is lost."""
    count = round(seconds * RATE)
    sound = clip.clip.waveform
    room = sound[:, :count].flip(1) * 0 + 1e-3 * torch.randn(
        2, count, generator=torch.Generator().manual_seed(0)
    )
    moved = torch.cat((room, sound[:, : sound.shape[1] - count]), 1)
    return as_observation(clip.pictures.permute(3, 0, 1, 2) / 127.5 - 1, moved)


@pytest.mark.parametrize("name", METRICS)
def test_worlds_own_clips_are_nearly_perfect(truth, name):
    metric, estimate = METRICS[name], truth[name]
    if name in OF_OTHER_KINDS:
        assert estimate.num_clips == 0
        return
    assert estimate.num_clips
    if metric.better == "high" and name != "activity_correlation":
        assert estimate.value > 0.94
    if metric.better == "zero":
        assert abs(estimate.value) < 3.0
    if name == "sync_error":
        assert estimate.value < 8.0


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_survives_a_clip_with_nothing_in_it(as_observation, name):
    empty = as_observation(torch.full((3, 9, 32, 32), 0.1), None)
    rows = METRICS[name].evidence(empty, {})
    assert all(math.isfinite(number) for row in rows for number in row)


@pytest.mark.parametrize("name", METRICS)
def test_evidence_has_one_width_so_that_clips_can_be_pooled(seen, name):
    world = World(WorldConfig(split="held_out", kinds=("bounce",), plain=True))
    widths = {
        len(row)
        for seed in SEEDS
        for row in METRICS[name].evidence(seen(seed)[1], expected_of(world.caption(seed)))
    }
    assert len(widths) == 1 or (not widths and name in OF_OTHER_KINDS)


def test_later_sound_is_measured_as_later_and_worse(seen, as_observation):
    for seconds in (0.04, 0.12):
        late = [delayed(seen(seed)[1], as_observation, seconds) for seed in (3, 9)]
        assert value("sync_bias", *late) == pytest.approx(1000 * seconds, abs=6)
        assert value("sync_error", *late) == pytest.approx(1000 * seconds, abs=6)


def test_f1_falls_when_the_sound_is_later_than_its_tolerance(seen, as_observation):
    clip = seen(9)[1]
    slightly, clearly = delayed(clip, as_observation, 0.06), delayed(clip, as_observation, 0.09)
    assert value("impact_f1_80ms", slightly) > 0.9
    assert value("impact_f1_80ms", clearly) < 0.3
    assert value("impact_f1_100ms", clearly) > 0.9


def test_silent_film_has_no_match(seen, as_observation):
    clip = as_observation(seen(9)[1].pictures.permute(3, 0, 1, 2) / 127.5 - 1, None)
    assert value("impact_f1_80ms", clip) == 0.0
    assert value("heard_200ms", clip) == 0.0
    assert math.isnan(value("sync_error", clip))
    assert value("silence", clip) == 1.0


def test_sound_of_another_clip_matches_worse(seen, as_observation):
    (_, one), (_, other) = seen(3), seen(9)
    mixed = as_observation(one.pictures.permute(3, 0, 1, 2) / 127.5 - 1, other.clip.waveform)
    assert value("impact_f1_80ms", mixed) < value("impact_f1_80ms", one)


def test_wrong_promise_lowers_adherence(seen):
    scene, clip = seen(9)
    assert value("colour", clip, expected={"colour": scene.colour}) == 1.0
    assert value("colour", clip, expected={"colour": "red" if scene.colour != "red" else "blue"}) == 0.0


def test_what_was_not_promised_is_not_judged(seen):
    assert score(seen(9)[1], {})["size"] == []


def test_timbre_and_floor_answer_for_the_same_promise(seen):
    scene, clip = seen(9)
    scores = score(clip, {"kind": "bounce", "material": scene.floor})
    assert scores["floor"] == scores["timbre"] == [(1.0,)]


def test_loudness_of_a_full_scale_sine(as_observation):
    wave = torch.sin(torch.arange(RATE) * 0.3).expand(2, -1)
    clip = as_observation(torch.zeros(3, 24, 8, 8), wave)
    assert value("loudness", clip) == pytest.approx(-3.01, abs=0.05)
    assert value("clipping", clip) < 0.1


def test_clipping_counts_samples_at_full_scale(as_observation):
    wave = torch.full((2, RATE), 0.2)
    wave[:, : RATE // 4] = 1.0
    assert value("clipping", as_observation(torch.zeros(3, 24, 8, 8), wave)) == pytest.approx(0.25)


def test_frozen_and_flickering_frames_are_told_apart(as_observation):
    still = torch.zeros(3, 10, 32, 32)
    flicker = still + 0.1 * (torch.arange(10) % 2)[:, None, None]
    assert value("frozen", as_observation(still, None)) == 1.0
    assert value("frozen", as_observation(flicker, None)) == 0.0
    assert value("flicker", as_observation(flicker, None)) == pytest.approx(12.75, abs=1)
    assert value("flicker", as_observation(still, None)) == 0.0


def test_container_reports_a_late_and_short_track(seen):
    clip = seen(9)[1].clip
    timing = Timing(video_start=0.0, video_duration=2.0, audio_start=0.043, audio_duration=1.9)
    late = Observation(clip, timing)
    assert value("container_offset", late) == pytest.approx(43)
    assert value("container_length", late) == pytest.approx(100)


def test_file_is_measured_completely_and_written_as_json(world_file):
    path, scene, _ = world_file
    found = findings(measure_clip(path), {"kind": "bounce"})
    assert found.keys() == {name for name, finding in FINDINGS.items() if finding.speaks_of("bounce")}
    assert found["colour"] == scene.colour
    assert json.loads(json.dumps(found)) == found
    assert len(found["impacts"]) == len(found["onsets"])
    assert isinstance(found["impacts"][0]["is_clear"], bool)


def test_frame_rate_does_not_shift_the_measures(render_scene, as_observation):
    config = WorldConfig(
        num_frames=61, frame_rate=Fraction(30), split="held_out", kinds=("bounce",), plain=True
    )
    scene = World(config).scene(3).subject
    clip = as_observation(*render_scene(scene, config), config)
    assert abs(value("sync_bias", clip)) < 6
    assert value("impact_f1_80ms", clip) == 1.0


def test_titles_are_unique():
    assert len({metric.title for metric in METRICS.values()}) == len(METRICS)


def test_random_pairs_have_no_correlation():
    rng = np.random.default_rng(0)
    assert abs(METRICS["pan_correlation"].pool(rng.random((400, 2)))) < 0.15
