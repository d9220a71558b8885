"""What is predicted is what is measured: sizes of weights exactly, activations within 15 %."""

import dataclasses
from pathlib import Path

import pytest
import torch

import tiny
from live_bytes import LiveBytes
from setups import setup_of
from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import StoredTensor
from soundstage.checkpoints.header import TensorEntry
from soundstage.checkpoints.releases import RELEASES
from soundstage.core.errors import CheckpointError, RequestError, ResourceError
from soundstage.core.types import AV
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.inputs import StreamInput
from soundstage.models.transformer.model import AVTransformer
from soundstage.pipelines.fitting import fit
from soundstage.pipelines.forecast import (
    TEXT,
    TRANSFORMER,
    Given,
    forecast,
)
from soundstage.pipelines.kept_weights import Format
from soundstage.pipelines.loading import load_components
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.sketch import open_or_sketch, sketch, text_tower, unknown_sizes
from soundstage.pipelines.transformer_costs import Computing, kinds_of_layers, transformer_activations

GB = 10**9
TOLERANCE = 0.15
MIDDLE = {
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 128,
    "cross_attention_dim": 512,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 256,
}


def middle(generation):
    config = TransformerConfig.from_header({**tiny.config(generation)["transformer"], **MIDDLE})
    model = AVTransformer(config)
    tiny.randomise(model, generation)
    return model.requires_grad_(False).eval()


def tokens(config, name, count):
    stream = config.video if name == "video" else config.audio
    return StreamInput(
        latents=torch.ones(1, count, stream.in_channels),
        timesteps=torch.full((1, count), 0.5),
        sigma=torch.tensor([0.5]),
        positions=torch.rand(1, len(stream.max_pos), count, 2),
        context=torch.ones(1, 128, config.caption_channels or stream.context_dim),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_activations_of_the_transformer_are_within_15_percent(generation, dtype):
    model = middle(generation).to(dtype)
    video, audio = tokens(model.config, "video", 1024), tokens(model.config, "audio", 64)
    with torch.no_grad(), LiveBytes().ignore(model) as live:
        ropes = model.prepare(video.positions, audio.positions)
        model(video, audio, ropes=ropes)
    predicted = transformer_activations(model.config, AV(1024, 64), Computing(itemsize=dtype.itemsize))
    print(f"{generation} {dtype}: {live.peak / 1e6:.2f} MB measured, {predicted / 1e6:.2f} MB predicted")
    assert predicted == pytest.approx(live.peak, rel=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_a_given_first_frame_takes_no_more(generation, dtype):
    """Its noise level is another one, which must not make a row of modulation per token."""
    model, peaks = middle(generation).to(dtype), []
    video, audio = tokens(model.config, "video", 1024), tokens(model.config, "audio", 64)
    for kept in (0, 128):
        timesteps = torch.full((1, 1024), 0.5)
        timesteps[:, :kept] = 0
        given = dataclasses.replace(video, timesteps=timesteps)
        with torch.no_grad(), LiveBytes().ignore(model) as live:
            model(given, audio)
        peaks.append(live.peak)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.05)


@pytest.fixture(scope="module")
def setup():
    checkpoint, is_sketch = open_or_sketch("ltx-2-19b-dev")
    assert is_sketch
    return setup_of(
        checkpoint, gpu="RTX 4090", placing=Placing(quantize="fp8"), dtype=torch.bfloat16, is_fused=True
    )


def request(**fields):
    return GenerationRequest(**{"prompt": "a", "width": 1280, "height": 704, "num_frames": 121, **fields})


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("ltx-2-19b-dev", 1e-3),
        ("ltx-2.3-22b-dev", 1e-3),
        ("ltx-2.3-22b-dev-fp8", 0.02),
        ("ltx-2-19b-dev-fp8", 0.03),
    ],
)
def test_a_sketch_is_as_large_as_the_release(name, tolerance):
    release = RELEASES[name]
    assert sketch(name, release.generation).num_bytes == pytest.approx(release.num_bytes, rel=tolerance)


def test_a_release_of_which_nothing_is_known_says_which_are():
    name = "ltx-2.5-spatial-upscaler-x2"
    expected = rf"{name} without its files; known are .*ltx-2-19b.*ltx-2\.5-22b"
    with pytest.raises(CheckpointError, match=expected):
        open_or_sketch(name)


def test_a_sketch_of_2_5_has_the_published_counts():
    checkpoint, is_sketch = open_or_sketch("ltx-2.5-22b-dev")
    assert is_sketch
    transformer, connectors = (checkpoint.part(part) for part in (keymap.TRANSFORMER, keymap.CONNECTORS))
    assert sum(stored.entry.num_elements for stored in transformer.values()) == 18_987_859_200
    counted = 2_016_166_400 + 1_156_061_184  # connectors, projections
    assert sum(stored.entry.num_elements for stored in connectors.values()) == counted
    assert len(transformer) == 4091
    wide = [name for name, stored in transformer.items() if stored.entry.dtype == "F32"]
    assert len(wide) == 290


def test_what_stands_in_for_the_text_encoder_of_2_5_is_said():
    checkpoint, _ = open_or_sketch("ltx-2.5-22b-dev")
    (note,) = unknown_sizes(checkpoint, None)
    assert "vocabulary, feed-forward, numbers of heads" in note
    assert "23.5 GB, where its file leaves at most 24.4 GB" in note
    stand_in = text_tower(checkpoint, None)
    assert f"{sum(stored.entry.num_bytes for stored in stand_in.values()) / 1e9:.1f} GB" in note
    assert unknown_sizes(open_or_sketch("ltx-2.3-22b-dev")[0], None) == ()


@pytest.mark.parametrize("skip", [(), ("*.0",)], ids=["all", "but_for_the_first_block"])
@pytest.mark.parametrize("quantize", [None, "none", "fp8", "int8", "int4"])
def test_weights_are_counted_as_they_are_kept(tmp_path, quantize, skip):
    file, skip = tiny.write_embedded(tmp_path / "m.safetensors"), () if quantize == "none" else skip
    placing = Placing(quantize=quantize, quantize_text=quantize, quantize_skip=skip, quantize_text_skip=skip)
    loaded = load_components(file, components=("transformer", "text"), placing=placing)
    checkpoint, _ = open_or_sketch(file)
    setup = setup_of(checkpoint, placing=placing)
    from soundstage.pipelines.forecast import _parts

    parts = _parts(setup, Given(), has_upsampler=False)
    for name, module in ((TRANSFORMER, loaded.transformer), (TEXT, loaded.text.gemma)):
        kept = sum(tensor.nbytes for tensor in module.state_dict().values())
        # Scales weigh more in tiny layers than at real widths, for which the bits per weight are stated.
        assert parts[name].num_bytes == pytest.approx(kept, rel=1e-6 if quantize in (None, "none") else 0.12)


def test_of_shared_weights_a_share_counts_and_the_blocks_that_are_whole(setup):
    plan = fit(setup, request(), 24 * GB).plan
    plain = dataclasses.replace(setup, placing=Placing())
    whole, shared = (
        forecast(dataclasses.replace(plain, num_shares=count), plan, Given()).parts[TRANSFORMER]
        for count in (1, 8)
    )
    assert shared.num_bytes == pytest.approx(whole.num_bytes / 8 + 4 * whole.block, abs=1)
    assert shared.num_bytes < 0.21 * whole.num_bytes
    assert not shared.blocks  # they stay where they are


def test_blocks_that_are_skipped_count_in_full_and_are_multiplied_in_bfloat16(setup):
    skip = ("transformer_blocks.0", "transformer_blocks.47")
    some = dataclasses.replace(setup, placing=Placing(quantize="fp8", quantize_skip=skip))
    whole, part = (fit(one, request(), 40 * GB) for one in (setup, some))
    before, now = (fitted.parts[TRANSFORMER].blocks for fitted in (whole, part))
    assert [a == b for a, b in zip(before, now, strict=True)] == [False, *[True] * 46, False]
    assert now[0] == pytest.approx(2 * before[0], rel=0.01)
    times = [{p.phase.name: p.phase.seconds for p in fitted.device.phases} for fitted in (whole, part)]
    assert (
        1.01 < times[1]["denoise"] / times[0]["denoise"] < 1.05
    )  # 2 of 48 blocks take twice as long at most
    assert times[1]["decode"] == times[0]["decode"]


def test_a_pattern_that_names_no_layer_is_refused_before_anything_is_loaded(setup):
    wrong = dataclasses.replace(
        setup, placing=Placing(quantize="fp8", quantize_skip=("transformer_blocks.48",))
    )
    with pytest.raises(RequestError, match=r"transformer_blocks\.48.*did you mean 'transformer_blocks\."):
        fit(wrong, request(), 40 * GB)


@pytest.mark.parametrize(
    ("vram", "quantize", "kind"),
    [
        (80, None, "resident"),
        (48, None, "turns"),
        (24, "fp8", "turns"),
        (16, "fp8", "streamed"),
        (12, "fp8", "streamed"),
    ],
)
def test_720p_fits_the_cards_people_own(setup, vram, quantize, kind):
    placed = dataclasses.replace(setup, placing=Placing(quantize=quantize))
    fitted = fit(placed, request(), vram * GB)
    print(f"{vram} GB: {fitted.device.kind}, {fitted.device.peak / GB:.2f} GB, {fitted.device.streamed}")
    assert fitted.device.kind == kind
    assert fitted.device.peak <= vram * GB


def test_fused_kernels_leave_room_for_blocks(setup):
    """24 GB hold the transformer in fp8 at 720p; plain PyTorch rounds in float32, and blocks stream."""
    plain = dataclasses.replace(setup, is_fused=False)
    fitted, other = (fit(one, request(), 24 * GB).device for one in (setup, plain))
    assert (fitted.kind, other.kind) == ("turns", "streamed")
    assert fitted.peak == pytest.approx(21.2 * GB, rel=0.03)  # 19.2 of weights, 1.2 of one row, 0.8 reserved
    beside = [
        max(p.activations for p in plan.phases if p.phase.name == "denoise") for plan in (fitted, other)
    ]
    assert beside[1] > 2 * beside[0]
    assert fitted.seconds < other.seconds


BLOCK = "transformer_blocks.0.attn1.to_q"
INPUTS_SCALED = {f"{BLOCK}.weight": "F8_E4M3", f"{BLOCK}.input_scale": "F32"}


@pytest.mark.parametrize(
    ("dtypes", "quantize", "kinds"),
    [
        ({f"{BLOCK}.weight": "BF16"}, None, set()),
        ({f"{BLOCK}.weight": "F8_E4M3"}, None, {"widened"}),
        ({f"{BLOCK}.weight": "F8_E4M3"}, "none", set()),
        ({f"{BLOCK}.weight": "F8_E4M3"}, "fp8", {"fp8", "fp8-fixed"}),
        (INPUTS_SCALED, "fp8", {"fp8-fixed"}),
        (INPUTS_SCALED, "fp8-bf16", {"widened"}),
        ({f"{BLOCK}.weight": "Q4_K"}, None, {"packed"}),
        ({f"{BLOCK}.weight": "BF16"}, "int8-int8", {"integers"}),
    ],
)
def test_layers_are_told_by_the_file_and_the_format(dtypes, quantize, kinds):
    form = Format(itemsize=2, inside="transformer_blocks", quantize=quantize)
    file = Path("m.safetensors")
    tensors = {n: StoredTensor(file, n, TensorEntry(dtype, (64, 64), 0, 64)) for n, dtype in dtypes.items()}
    assert kinds_of_layers(tensors, form) == kinds


def test_time_is_mostly_denoising_and_grows_with_passes(setup):
    guided = fit(setup, request(), 24 * GB).device
    scales = {"guidance_scale": 1.0, "modality_scale": 1.0, "stg_scale": 0.0}
    off = scales | {f"audio_{name}": scale for name, scale in scales.items()}
    plain = fit(setup, request(**off), 24 * GB).device
    by_name = {planned.phase.name: planned.seconds for planned in guided.phases}
    assert by_name["denoise"] > 0.9 * guided.seconds
    share = {planned.phase.name: planned.seconds for planned in plain.phases}["denoise"] / by_name["denoise"]
    assert 1 / share == pytest.approx(3.3, abs=0.1)  # four passes that share what they have in common


def test_two_stages_enlarge_between_them(setup):
    task = forecast(setup, fit(setup, request(plan="two_stage"), 80 * GB).plan, Given())
    assert [phase.name for phase in task.phases][2:5] == [
        "denoise (generate)",
        "upsample",
        "denoise (refine)",
    ]
    assert "upsampler" in task.parts


def test_what_does_not_fit_comes_with_what_would(setup):
    resident = dataclasses.replace(setup, placing=Placing(offload="none"))
    with pytest.raises(ResourceError, match=r"--offload stream"):
        fit(resident, request(), 24 * GB)
    with pytest.raises(ResourceError, match=r"--size \d+x\d+"):
        fit(setup, request(width=3840, height=2176, num_frames=241), 12 * GB)


@pytest.mark.gpu
def test_activations_on_a_gpu_are_within_15_percent():
    model = middle("2.0").to("cuda", torch.bfloat16)
    with torch.device("cuda"):
        video, audio = tokens(model.config, "video", 8192), tokens(model.config, "audio", 128)
    with torch.no_grad():
        model(video, audio)  # workspaces
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(video, audio)
    way = Computing(itemsize=2, is_gpu=True)
    predicted = transformer_activations(model.config, AV(8192, 128), way)
    assert predicted == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=TOLERANCE)
