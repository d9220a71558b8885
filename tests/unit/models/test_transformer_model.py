"""The whole transformer on tiny random weights: what each switch promises."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from soundstage.core.errors import ConfigError, RequestError
from soundstage.core.geometry import VideoGeometry
from soundstage.models.transformer.inputs import Branch, Passes, Perturbation
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.transformer.positions import video_positions
from soundstage.models.transformer.ropes import tokens_at_once
from transformer_samples import FIRST_FRAME, GENERATIONS, config, inputs, item, stream_input, transformer

ISOLATED = Perturbation(skip_a2v="all", skip_v2a="all")
CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # float32; batches may be multiplied in another order

pytestmark = pytest.mark.usefixtures("_no_grad")


@pytest.fixture
def _no_grad():
    with torch.no_grad():
        yield


def forbid(module: torch.nn.Module) -> None:
    """Make a layer fail when it is used."""

    def fail(*args: object) -> None:
        raise AssertionError("this layer must not run")

    module.register_forward_pre_hook(fail)


# Streams


@pytest.mark.parametrize("generation", GENERATIONS)
def test_velocities_have_the_shape_of_the_latents(generation: str):
    model = transformer(generation)
    video, audio = inputs(model.config, batch=3)
    velocities = model(video, audio)
    assert velocities.video.shape == video.latents.shape
    assert velocities.audio.shape == audio.latents.shape
    assert velocities.video.std() > 0.1


def predicts_clean(trust: float) -> AVTransformer:
    """Make a transformer that names clean tokens, and takes a share of the noisy ones beside."""
    model = transformer("2.3")
    model.config = replace(model.config, prediction="clean")
    for name, stream in (("input_gate", model.config.video), ("audio_input_gate", model.config.audio)):
        gate = torch.nn.Linear(stream.dim, stream.out_channels)
        torch.nn.init.zeros_(gate.weight)
        torch.nn.init.constant_(gate.bias, trust)
        setattr(model, name, gate)
    return model


def test_tokens_are_told_where_they_are_only_if_configured():
    """Without it, what is at two places alike is the same up to the rotations of attention."""
    plain = transformer("2.3")
    video, audio = inputs(plain.config)
    told = AVTransformer(replace(plain.config, absolute_positions=True)).eval()
    fresh = told.state_dict()
    told.load_state_dict({**fresh, **plain.state_dict()})
    before = plain(video, audio)
    torch.testing.assert_close(told(video, audio).video, before.video, **CLOSE)  # it starts at zero
    for layer in (told.position_proj, told.audio_position_proj):
        torch.nn.init.normal_(layer.weight)
    one_place = replace(video, latents=torch.ones_like(video.latents))
    x = told.project_in("video", one_place)
    assert (x[:, 0] - x[:, 1]).abs().max() > 0.1
    x = plain.project_in("video", one_place)
    assert torch.equal(x[:, 0], x[:, 1])
    after = told(video, audio)
    assert (after.video - before.video).abs().max() > 1e-3
    assert (after.audio - before.audio).abs().max() > 1e-3


def detailed() -> AVTransformer:
    """Make a transformer with wide heads that say something."""
    plain = transformer("2.3")
    model = AVTransformer(replace(plain.config, detail_width=24)).eval()
    model.load_state_dict({**model.state_dict(), **plain.state_dict()})
    for head in (model.detail_head, model.audio_detail_head):
        torch.nn.init.normal_(head.write.weight, std=0.1)
    return model


def test_a_new_detail_head_says_nothing():
    plain = transformer("2.3")
    video, audio = inputs(plain.config)
    model = AVTransformer(replace(plain.config, detail_width=24)).eval()
    model.load_state_dict({**model.state_dict(), **plain.state_dict()})
    expected, got = plain(video, audio), model(video, audio)
    assert torch.equal(got.video, expected.video)
    assert torch.equal(got.audio, expected.audio)


def test_the_detail_head_of_a_stream_reads_its_noisy_tokens_one_by_one():
    """What it adds does not pass through the stream's width, nor from one token to the next."""
    model = detailed()
    state = torch.randn(2, 5, model.config.video.dim)
    latents = torch.randn(2, 5, model.config.video.in_channels)
    before = model.detail_head(state, latents)
    changed = latents.clone()
    changed[1, 3] += 1
    difference = (model.detail_head(state, changed) - before).abs().amax(-1)
    assert difference[1, 3] > 1e-3
    difference[1, 3] = 0
    assert not difference.any()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("rows_at_once", [None, 1])
def test_every_pass_has_the_details_of_its_own_tokens(rows_at_once: int | None, batch: int):
    model = detailed()
    video, audio = inputs(model.config, batch=batch)
    isolated = Branch(perturbation=ISOLATED)
    passes = Passes(branches=(Branch(), isolated), rows_at_once=rows_at_once)
    together = model(video, audio, passes=passes)
    alone = [model(video, audio), model(video, audio, [ISOLATED] * batch)]
    for name in ("video", "audio"):
        expected = torch.cat([getattr(velocities, name) for velocities in alone])
        torch.testing.assert_close(getattr(together, name), expected, **CLOSE)


def test_a_negative_detail_width_is_refused():
    with pytest.raises(ConfigError, match="detail_width=-1 is below 0"):
        replace(config("2.3"), detail_width=-1)


@pytest.mark.parametrize("trust", [0.0, 0.7])
def test_a_network_that_predicts_clean_tokens_gives_the_velocity_towards_them(trust: float):
    video, audio = inputs(config("2.3"))
    named = transformer("2.3")(video, audio)  # the same weights, read as velocities
    velocities = predicts_clean(trust)(video, audio)
    for given, clean, velocity in (
        (video, named.video, velocities.video),
        (audio, named.audio, velocities.audio),
    ):
        denoised = given.latents - given.timesteps[..., None] * velocity
        torch.testing.assert_close(denoised, clean + trust * given.latents, **CLOSE)


def test_every_pass_takes_its_share_of_the_noisy_tokens():
    model = predicts_clean(0.7)
    video, audio = inputs(model.config)
    isolated = Branch(perturbation=ISOLATED)
    together = model(video, audio, passes=Passes(branches=(Branch(), isolated)))
    for got, expected in (
        (together.video.chunk(2)[0], model(video, audio).video),
        (together.video.chunk(2)[1], model(video, audio, [ISOLATED] * 2).video),
        (together.audio.chunk(2)[1], model(video, audio, [ISOLATED] * 2).audio),
    ):
        torch.testing.assert_close(got, expected, **CLOSE)


def test_levels_of_their_own_for_each_token_work_when_clean_tokens_are_predicted():
    video, audio = inputs(config("2.3"))
    levels = video.timesteps.clone()
    levels[:, :FIRST_FRAME] = 0
    velocities = predicts_clean(0.7)(replace(video, timesteps=levels), audio)
    assert velocities.video.isfinite().all()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_each_stream_alone_equals_the_isolated_pair(generation: str):
    model = transformer(generation)
    video, audio = inputs(model.config)
    isolated = model(video, audio, [ISOLATED] * 2)
    alone = model(video), model(None, audio)
    torch.testing.assert_close(alone[0].video, isolated.video)
    torch.testing.assert_close(alone[1].audio, isolated.audio)
    assert alone[0].audio is None
    assert alone[1].video is None


@pytest.mark.parametrize("stream", ["video", "audio"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_one_stream_can_be_built_without_the_other(generation: str, stream: str):
    whole, part = transformer(generation), AVTransformer(config(generation), (stream,))
    state = whole.state_dict()
    assert part.state_dict().keys() < state.keys()
    part.load_state_dict({name: state[name] for name in part.state_dict()})
    counts, expected = part.parameter_counts(), whole.parameter_counts()
    assert counts == {"video": 0, "audio": 0, "cross": 0, stream: expected[stream]}
    given = {stream: stream_input(whole.config, stream)}
    assert torch.equal(getattr(part(**given), stream), getattr(whole(**given), stream))


def test_stream_that_was_not_built_is_refused():
    model = transformer("2.0", ("audio",))
    video, audio = inputs(model.config)
    with pytest.raises(RequestError, match="video tokens are given to a transformer built for audio only"):
        model(video, audio)


def test_call_without_any_stream_is_refused():
    with pytest.raises(RequestError, match="no stream is given"):
        transformer("2.0")()


@pytest.mark.parametrize("still", ["video", "audio"])
def test_disabled_stream_stands_still_but_is_heard(still: str):
    model = transformer("2.3")
    given = dict(zip(("video", "audio"), inputs(model.config), strict=True))
    other = "audio" if still == "video" else "video"
    prefix = "" if still == "video" else "audio_"
    block = model.transformer_blocks[0]
    for name in (f"{prefix}attn1", f"{prefix}attn2", f"{prefix}ff"):
        forbid(getattr(block, name))
    disabled = given | {still: replace(given[still], enabled=False)}
    heard = getattr(model(**disabled), other)
    louder = given | {still: replace(given[still], enabled=False, latents=2 * given[still].latents)}
    assert not torch.allclose(heard, getattr(model(**louder), other))


# Batches


@pytest.mark.parametrize("generation", GENERATIONS)
def test_items_of_a_batch_do_not_see_each_other(generation: str):
    model = transformer(generation)
    video, audio = inputs(model.config, batch=3)
    together = model(video, audio)
    for i in range(3):
        alone = model(item(video, i), item(audio, i))
        torch.testing.assert_close(together.video[i : i + 1], alone.video, **CLOSE)
        torch.testing.assert_close(together.audio[i : i + 1], alone.audio, **CLOSE)


def test_masked_text_is_not_heard():
    model = transformer("2.3")
    video, audio = inputs(model.config)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    louder = video.context.clone()
    louder[0, 3:] += 5
    quiet = model(replace(video, context_mask=mask), audio)
    loud = model(replace(video, context_mask=mask.bool(), context=louder), audio)
    torch.testing.assert_close(quiet.video, loud.video)
    assert not torch.allclose(model(video, audio).video, model(replace(video, context=louder), audio).video)


# Perturbations


def test_isolation_of_a_whole_batch_skips_the_work():
    model = transformer("2.3")
    for block in model.transformer_blocks:
        forbid(block.audio_to_video_attn)
        forbid(block.video_to_audio_attn)
    model(*inputs(model.config), [ISOLATED] * 2)


def test_isolation_of_one_block_leaves_the_others():
    model = transformer("2.0")
    forbid(model.transformer_blocks[1].audio_to_video_attn)
    video, audio = inputs(model.config)
    perturbed = model(video, audio, [Perturbation(skip_a2v=frozenset([1]))] * 2)
    assert not torch.allclose(perturbed.video, model(video).video)


PERTURBATIONS = (
    ISOLATED,
    Perturbation(skip_a2v=frozenset([0])),
    Perturbation(skip_v2a=frozenset([0])),
    Perturbation(skip_video_self_attention=frozenset([1]), skip_audio_self_attention="all"),
)


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_perturbation_concerns_its_item_alone(generation: str, perturbation: Perturbation):
    model = transformer(generation)
    video, audio = inputs(model.config)
    mixed = model(video, audio, [Perturbation(), perturbation])
    plain, perturbed = model(video, audio), model(video, audio, [perturbation] * 2)
    for stream in ("video", "audio"):
        got = getattr(mixed, stream)
        torch.testing.assert_close(got[0], getattr(plain, stream)[0], **CLOSE)
        torch.testing.assert_close(got[1], getattr(perturbed, stream)[1], **CLOSE)
    assert not torch.allclose(perturbed.video, plain.video)


def test_wrong_number_of_perturbations_is_refused():
    model = transformer("2.0")
    with pytest.raises(RequestError, match="3 perturbations are given for 2 batch items"):
        model(*inputs(model.config), [ISOLATED] * 3)


def test_perturbation_of_a_missing_block_is_refused():
    model = transformer("2.0")
    stg = Perturbation(skip_video_self_attention=frozenset([29]))
    with pytest.raises(RequestError, match="block 29 does not exist; blocks are 0 to 1"):
        model(*inputs(model.config), [stg] * 2)


# Noise levels


@pytest.mark.parametrize("generation", GENERATIONS)
def test_levels_per_token_can_differ(generation: str):
    model = transformer(generation)
    video, audio = inputs(model.config)
    uniform = model(video, audio)
    timesteps = video.timesteps.clone()
    timesteps[1, :FIRST_FRAME] = 0
    kept = model(replace(video, timesteps=timesteps), audio)
    torch.testing.assert_close(kept.video[0], uniform.video[0], **CLOSE)
    assert not torch.allclose(kept.video[1], uniform.video[1])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_gate_of_what_a_stream_hears_follows_the_other_streams_level(generation: str):
    model = transformer(generation, ("video", "audio"))
    video, audio = inputs(model.config)
    later = replace(audio, sigma=audio.sigma / 2)  # its tokens keep their own levels
    assert not torch.allclose(model(video, later).video, model(video, audio).video)
    isolated = [model(video, a, [ISOLATED] * 2).video for a in (audio, later)]
    assert torch.equal(*isolated)


# Positions


def test_kept_rotation_tables_give_the_same_bits():
    model = transformer("2.3")
    video, audio = inputs(model.config)
    ropes = model.prepare(video.positions, audio.positions)
    kept, fresh = model(video, audio, ropes=ropes), model(video, audio)
    assert torch.equal(kept.video, fresh.video)
    assert torch.equal(kept.audio, fresh.audio)


def test_positions_per_item_equal_shared_ones():
    model = transformer("2.0")
    video, audio = inputs(model.config)
    each = replace(video, positions=video.positions.expand(2, -1, -1, -1))
    torch.testing.assert_close(model(each, audio).video, model(video, audio).video)


def test_tokens_of_a_latent_frame_share_a_row_of_the_table_towards_the_other_stream():
    model = transformer("2.0")
    positions = video_positions(VideoGeometry(), 3, 2, 4, 24)
    rope = model.prepare(positions)
    assert rope.video.own.cos.shape[-2] == 24
    assert rope.video.cross.cos.shape[-2] == 3
    appended = torch.cat([positions, positions[:, :, :5]], dim=2)  # a reference, say: 29 tokens
    seconds = appended[:, :1].mean(-1)
    assert torch.equal(model.prepare(appended).video.cross.cos[..., :24:8, :], rope.video.cross.cos)
    assert model.prepare(appended).video.cross.cos.shape[-2] == seconds.shape[-1] == 29


def test_as_many_tokens_share_a_time_as_follow_each_other_in_every_item():
    def times(*starts):
        return torch.tensor(starts, dtype=torch.float32)[:, None, :, None].expand(-1, 1, -1, 2)

    assert tokens_at_once(times([0, 0, 0, 1, 1, 1])) == 3
    assert tokens_at_once(times([0, 0, 0, 0, 1, 1])) == 2
    assert tokens_at_once(times([0, 0, 0, 1, 1])) == 1
    assert tokens_at_once(times([0, 0, 1, 1, 0, 0])) == 2
    assert tokens_at_once(times([0, 0, 0, 0], [0, 0, 1, 1])) == 2, "one table of rows for both items"
    assert tokens_at_once(times([5, 5, 5])) == 3
    assert tokens_at_once(times([0, 0, 1, 1]).to("meta")) == 1


def test_streams_meet_in_time_alone():
    """Audio that comes later is heard otherwise; a picture moved aside is not."""
    model = transformer("2.0")
    block, video, audio = model.transformer_blocks[0], *inputs(model.config)
    aside = video.positions.clone()
    aside[:, 1:] += 500
    cross = [model.prepare(p).video.cross for p in (video.positions, aside)]
    assert torch.equal(cross[0].cos, cross[1].cos)
    later = replace(audio, positions=audio.positions + 1)
    assert not torch.allclose(model(video, later).video, model(video, audio).video)
    assert block.audio_to_video_attn.heads == model.config.audio.heads


def test_interleaved_rotation_runs():
    shape = replace(config("2.0"), rope_kind="interleaved", rope_precision="float32")
    model = AVTransformer(shape)
    model.load_state_dict(transformer("2.0").state_dict())
    video, audio = inputs(shape)
    assert not torch.allclose(model(video, audio).video, transformer("2.0")(video, audio).video)


# Keyframes (2.5)


def test_keyframe_marks_change_the_marked_tokens_input_alone():
    model = transformer("2.5")
    video = stream_input(model.config, "video")
    unmarked = replace(video, keyframe_mask=torch.zeros_like(video.keyframe_mask))
    change = model.project_in("video", video) - model.project_in("video", unmarked)
    assert change[:, FIRST_FRAME:].abs().max() == 0
    expected = model.keyframes_abs_pos_embedding.expand(2, FIRST_FRAME, -1)
    torch.testing.assert_close(change[:, :FIRST_FRAME], expected)


def test_missing_keyframe_mask_is_refused():
    model = transformer("2.5")
    with pytest.raises(RequestError, match="keyframe_mask is missing"):
        model(stream_input(model.config, "video", keyframe_mask=None))


# Weights


@pytest.mark.parametrize("generation", GENERATIONS)
def test_new_network_predicts_zero(generation: str):
    model = AVTransformer(config(generation))
    velocities = model(*inputs(model.config))
    assert velocities.video.abs().max() == 0
    assert velocities.audio.abs().max() == 0


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_parameter_learns(generation: str):
    model = transformer(generation)
    with torch.enable_grad():
        velocities = model(*inputs(model.config))
        (velocities.video.square().mean() + velocities.audio.square().mean()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_gradient_is_the_same_for_levels_per_token(generation: str):
    """One level of a token that is almost another's gives almost the gradient of a shared level."""
    gradients = []
    for nudge in (0, 1e-6):
        model = transformer(generation)
        video, audio = inputs(model.config)
        timesteps = video.timesteps.clone()
        timesteps[:, 0] += nudge
        with torch.enable_grad():
            model(replace(video, timesteps=timesteps), audio).video.square().mean().backward()
        gradients.append(model.adaln_single.linear.weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_low_precision_weights_stay_near_float32(generation: str):
    video, audio = inputs(config(generation))
    exact = transformer(generation)(video, audio)
    rounded = transformer(generation).bfloat16()(video, audio)
    assert rounded.video.dtype == torch.float32  # that of the latents
    for stream in ("video", "audio"):
        error = (getattr(rounded, stream) - getattr(exact, stream)).norm() / getattr(exact, stream).norm()
        assert error < 0.05  # bfloat16 keeps 8 bits


def test_float32_tables_work_beside_low_precision_weights():
    """2.5 files store their tables in float32 and everything else in bfloat16."""
    model = transformer("2.5").bfloat16()
    for module in (model, *model.transformer_blocks):
        for name, table in list(module.named_parameters(recurse=False)):
            if "scale_shift_table" in name:
                setattr(module, name, torch.nn.Parameter(table.float()))
    video, audio = inputs(model.config)
    got = model(replace(video, latents=video.latents.bfloat16()), audio)
    assert got.video.dtype == torch.bfloat16
    assert torch.equal(got.audio, transformer("2.5").bfloat16()(video, audio).audio)


def test_text_can_be_modulated_by_the_blocks_tables_alone():
    shape = replace(config("2.3"), prompt_adaln=False)
    model = AVTransformer(shape)
    state = transformer("2.3").state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    louder = {n: 3 * t if "prompt_scale_shift_table" in n else t for n, t in model.state_dict().items()}
    before = model(*inputs(shape)).video
    model.load_state_dict(louder)
    assert not torch.allclose(before, model(*inputs(shape)).video)


# Cost


@pytest.mark.parametrize("generation", GENERATIONS)
def test_counts_add_up_to_all_parameters(generation: str):
    model = transformer(generation)
    assert sum(model.parameter_counts().values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("present", [("video", "audio"), ("video",), ("audio",)])
def test_flops_equal_those_of_a_counter(present: tuple, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("soundstage.nn.linear._suits_onednn", lambda *_: False)  # unknown to the counter
    model = transformer("2.0")
    made = dict(zip(("video", "audio"), inputs(model.config, batch=1), strict=True))
    given = {name: made[name] for name in present}
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(**given)
    counted = counter.get_flop_counts()
    blocks = sum(
        sum(counted[f"AVTransformer.transformer_blocks.{i}"].values()) for i in range(model.config.num_layers)
    )
    tokens = [given[name].latents.shape[1] if name in given else 0 for name in ("video", "audio")]
    assert model.flops(*tokens, num_text_tokens=5) == blocks


def test_absent_streams_cost_nothing():
    model = transformer("2.0")
    whole, video, audio = model.flops(8, 6, 5), model.flops(8, 0, 5), model.flops(0, 6, 5)
    assert whole > video + audio
    assert transformer("2.0", ("audio",)).flops(8, 6, 5) == audio
