"""Which generation a file is of, and what follows from it."""

import pytest

from soundstage.checkpoints.detect import GENERATIONS, RELEASED, detect_generation, parse_version
from soundstage.core.errors import CheckpointError
from soundstage.diffusion.samplers import SAMPLERS
from soundstage.diffusion.schedules import SCHEDULES


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("2.3.0", (2, 3, 0)),
        ("2.3.rc1", (2, 3)),
        ("2.4-rc2", (2, 4)),
        ("2-5", (2, 5)),
        ("v2.5.0", (2, 5, 0)),
        ("2.10", (2, 10)),
    ],
)
def test_versions_are_compared_by_their_numbers(text, version):
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({}, "2.0"),
        ({"model_version": ""}, "2.0"),
        ({"model_version": "2"}, "2.0"),
        ({"model_version": "2.0.0"}, "2.0"),
        ({"model_version": "2.1"}, "2.0"),
        ({"model_version": "2.3.rc1"}, "2.3"),
        ({"model_version": "2.4-rc2"}, "2.4"),
        ({"model_version": "2.5.0"}, "2.5"),
        ({"model_version": "2.10"}, "2.5"),
        ({"model_version": "3.0"}, "2.5"),
        ({"model_version": "2.3.0", "soundstage_model": "embedded"}, "embedded"),
    ],
)
def test_the_newest_known_generation_not_newer_than_the_file_applies(metadata, name):
    assert detect_generation(metadata).name == name


def test_a_model_before_ltx_2_is_refused_by_name():
    with pytest.raises(CheckpointError, match=r"0\.9\.8 is an LTX-Video model without sound"):
        detect_generation({"model_version": "0.9.8"})


def test_a_version_without_numbers_is_refused():
    with pytest.raises(CheckpointError, match="'dev' does not begin with a number"):
        detect_generation({"model_version": "dev"})


def test_generations_ascend():
    versions = [generation.version for generation in RELEASED]
    assert versions == sorted(versions)


@pytest.mark.parametrize("generation", GENERATIONS.values(), ids=str)
def test_presets_name_samplers_and_schedules_that_exist(generation):
    assert "dev" in generation.presets
    for preset in generation.presets.values():
        assert preset.sampler in SAMPLERS
        assert preset.schedule in SCHEDULES


def test_defaults_are_those_of_the_official_pipelines():
    dev = {name: GENERATIONS[name].presets["dev"] for name in ("2.0", "2.3", "2.5")}
    assert [dev[name].num_inference_steps for name in dev] == [40, 30, 30]
    assert [dev[name].stg_blocks for name in dev] == [(29,), (28,), (28,)]
    for preset in dev.values():
        video, audio = preset.video, preset.audio
        assert (video.guidance_scale, video.stg_scale, video.modality_scale) == (3, 1, 3)
        assert (audio.guidance_scale, audio.stg_scale, audio.modality_scale) == (7, 1, 3)
        assert video.guidance_rescale == audio.guidance_rescale == 0.7
        assert (preset.height, preset.width, preset.num_frames, preset.frame_rate) == (512, 768, 121, 24)


def test_distilled_models_take_eight_steps_without_guidance():
    for name in ("2.0", "2.3", "2.5"):
        preset = GENERATIONS[name].presets["distilled"]
        assert (preset.num_inference_steps, preset.schedule) == (8, "distilled")
        assert preset.video.guidance_scale == preset.audio.guidance_scale == 1
    assert GENERATIONS["2.3"].presets["distilled"].sampler == "euler"
    assert GENERATIONS["2.5"].presets["distilled"].sampler == "euler_ancestral"


def test_conditioning_images_are_compressed_less_from_2_4_on():
    assert [g.image_crf for g in RELEASED] == [33, 33, 18, 18]
