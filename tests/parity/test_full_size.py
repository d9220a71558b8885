"""Official files at full size, as sparse files with the real header and no data."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.load import check_names
from soundstage.checkpoints.releases import RELEASES
from soundstage.checkpoints.summary import summarise
from soundstage.cli.main import run
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.text.config import TextConfig
from soundstage.models.text.connectors import TextConnectors
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.models.vocoder.model import build_vocoder
from soundstage.pipelines.loading import audio_geometry, video_geometry

HEADERS = Path(__file__).parent / "headers"
BUILD = {
    keymap.TRANSFORMER: ("transformer", TransformerConfig, AVTransformer),
    keymap.CONNECTORS: ("transformer", TextConfig, TextConnectors),
    keymap.VIDEO_VAE: ("vae", VideoVAEConfig, VideoVAE),
    keymap.AUDIO_VAE: ("audio_vae", AudioVAEConfig, AudioVAE),
    keymap.VOCODER: ("vocoder", VocoderConfig, build_vocoder),
}
TENSORS = {
    "2.0": {"transformer": 3510, "connectors": 29 + 29 + 1, "audio_vae": 102, "vocoder": 194},
    "2.3": {"transformer": 4186, "connectors": 129 + 129 + 4, "audio_vae": 102, "vocoder": 1227},
}
STREAMS = {
    "2.0": {"video": 13_041_520_768, "audio": 3_265_980_544, "cross": 2_568_673_280},
    "2.3": {"video": 13_124_316_288, "audio": 3_286_408_320, "cross": 2_578_113_536},
}
VIDEO_VAE_PARAMETERS = {"2.0": 694_098_881 + 528_380_720, "2.3": 318_936_897 + 407_169_072}
AUDIO_VAE_PARAMETERS = 21_333_008 + 31_915_138


def write_sparse(path, generation, *, extra=()):
    """Write the header of an official file and leave its data a hole."""
    table = json.loads(gzip.decompress((HEADERS / f"ltx-{generation}.json.gz").read_bytes()))
    header = {"__metadata__": {"config": json.dumps(table["config"])}}
    if generation != "2.0":
        header["__metadata__"]["model_version"] = f"{generation}.0"
    position = 0
    for name, shape in {**table["tensors"], **dict(extra)}.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    return path


@pytest.fixture(scope="module", params=["2.0", "2.3"])
def official(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    return request.param, write_sparse(folder / f"ltx-{request.param}-dev.safetensors", request.param)


@pytest.mark.parametrize("part", BUILD)
def test_the_loader_accepts_every_part_without_a_gap(official, part):
    _, path = official
    checkpoint = open_checkpoint(path)
    section, config, build = BUILD[part]
    with torch.device("meta"):
        network = build(config.from_header(checkpoint.section(section)))
    check_names(network.state_dict(), checkpoint.part(part), what=part)


def test_the_file_is_sorted_completely(official):
    generation, path = official
    checkpoint = open_checkpoint(path)
    assert checkpoint.generation.name == generation
    assert checkpoint.unknown == ()
    assert {p: len(checkpoint.parts[p]) for p in TENSORS[generation]} == TENSORS[generation]


def test_sizes_are_those_of_the_published_models(official):
    generation, path = official
    summary = summarise(open_checkpoint(path))
    parameters = {part.part: part.parameters for part in summary.parts}
    assert dict(summary.streams) == STREAMS[generation]
    statistics = 2 * 128
    assert parameters[keymap.VIDEO_VAE] == VIDEO_VAE_PARAMETERS[generation] + statistics
    assert parameters[keymap.AUDIO_VAE] == AUDIO_VAE_PARAMETERS + statistics
    if generation == "2.0":
        assert parameters[keymap.VOCODER] == 55_592_802


def test_the_size_of_2_3_is_that_of_the_published_file(tmp_path):
    header = open_checkpoint(write_sparse(tmp_path / "ltx.safetensors", "2.3")).headers[0]
    published = RELEASES["ltx-2.3-22b-dev"].num_bytes
    assert header.file_bytes == pytest.approx(published, rel=3e-4)  # some tables are published in float32


def test_geometry_is_that_of_the_released_models(official):
    generation, path = official
    checkpoint = open_checkpoint(path)
    video, audio = video_geometry(checkpoint), audio_geometry(checkpoint)
    assert (video.temporal_factor, video.spatial_factor, video.channels, video.patch_size) == (8, 32, 128, 1)
    assert (audio.latents_per_second, audio.token_channels) == (25, 128)
    assert audio.output_sample_rate == (24_000 if generation == "2.0" else 48_000)


def test_inspect_explains_the_file_from_its_header(official, capsys):
    generation, path = official
    assert run(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"generation {generation} (dev)" in shown
    assert f"{STREAMS[generation]['audio']:,}" in shown
    assert "text to video with sound (T2AV)" in shown
    assert "needs\n    the text encoder: google/gemma-3-12b-it-qat-q4_0-unquantized" in shown


def test_inspect_needs_no_data_at_all(official, tmp_path, capsys):
    generation, path = official
    with path.open("rb") as file:
        head = file.read(8)
        header = head + file.read(int.from_bytes(head, "little"))
    alone = tmp_path / "header.safetensors"
    alone.write_bytes(header)
    assert run(["inspect", str(alone), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["generation"] == generation
    assert summary["is_complete"] is False
    assert summary["bytes"] > 40 * 10**9


def test_extra_statistics_of_2_0_are_allowed_by_name(tmp_path):
    extra = {f"vae.per_channel_statistics.{name}": [128] for name in ("channel", "mean-of-stds")}
    checkpoint = open_checkpoint(write_sparse(tmp_path / "ltx.safetensors", "2.0", extra=extra))
    with torch.device("meta"):
        network = VideoVAE(VideoVAEConfig.from_header(checkpoint.section("vae")))
    allowed = checkpoint.allowed_unused(keymap.VIDEO_VAE)
    check_names(network.state_dict(), checkpoint.part(keymap.VIDEO_VAE), what="vae", unused=allowed)
    assert allowed >= {name.removeprefix("vae.") for name in extra}
