"""Token positions against the recorded reference."""

import pytest

from golden_cases import cases, load_case
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.models.transformer.positions import audio_positions, video_positions


@pytest.mark.parametrize("case_id", [c for c in cases("positions") if ".video." in c])
def test_video_positions_match_the_reference(case_id: str):
    case = load_case(case_id)
    p = case.params
    geometry = VideoGeometry(temporal_factor=p["time_scale"], spatial_factor=p["space_scale"])
    case.check(
        "positions",
        video_positions(geometry, p["latent_frames"], p["latent_height"], p["latent_width"], p["fps"]),
    )


@pytest.mark.parametrize("case_id", [c for c in cases("positions") if ".audio." in c])
def test_audio_positions_match_the_reference(case_id: str):
    case = load_case(case_id)
    p = case.params
    geometry = AudioGeometry(
        sample_rate=p["sampling_rate"],
        hop_length=p["mel_hop_length"],
        downsample_factor=p["latent_downsample"],
    )
    case.check("positions", audio_positions(geometry, p["audio_latent_frames"]))
