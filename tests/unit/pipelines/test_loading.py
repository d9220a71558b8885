"""From files to networks: whole models, split ones, parts, and everything that does not fit."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import tiny
from golden_cases import GOLDEN
from soundstage.checkpoints import keymap, releases
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.load import TensorMismatchError
from soundstage.checkpoints.save import write_safetensors
from soundstage.core.errors import CheckpointError, ConfigError
from soundstage.pipelines.loading import (
    SMALL_MODEL_BYTES,
    audio_geometry,
    default_dtype,
    load_checkpoint,
    load_components,
    load_upsampler,
    video_geometry,
)

PARTS = ("transformer", "connectors", "video_vae", "audio_vae", "vocoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    for generation in ("2.0", "2.3"):
        tiny.write_model(path / f"{generation}.safetensors", generation)
    return path


def edit(path, out, *, config=None, tensors=None, metadata=None):
    """Copy a file with changes."""
    with safe_open(path, "pt") as file:
        known = {key: value for key, value in file.metadata().items() if key != "format"}
    known["config"] = json.loads(known["config"])
    if config is not None:
        config(known["config"])
    if metadata is not None:
        metadata(known)
    state = load_file(path)
    if tensors is not None:
        tensors(state)
    write_safetensors(out, state, known)
    return out


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_every_part_holds_the_files_values(generation, folder):
    components = load_components(folder / f"{generation}.safetensors", components=PARTS)
    assert components.generation.name == generation
    for part, module in tiny.modules(generation).items():
        loaded = getattr(components, part)
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        for name, tensor in module.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)


def test_only_what_is_asked_for_is_loaded(folder):
    components = load_components(folder / "2.3.safetensors", components=("vocoder",))
    assert components.vocoder is not None
    assert components.transformer is components.text is components.video_vae is components.audio_vae is None
    assert components.defaults.num_inference_steps == 30


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_sound_alone_reads_no_weight_of_the_picture(generation, folder):
    components = load_components(
        folder / f"{generation}.safetensors", components=("transformer", "connectors"), streams=("audio",)
    )
    shared = {"text_embedding_projection.aggregate_embed.weight"}  # 2.0 projects once for both streams
    for part in ("transformer", "connectors"):
        state, whole = getattr(components, part).state_dict(), tiny.modules(generation)[part].state_dict()
        assert {name for name in state if "audio" not in name} <= shared
        assert 0 < len(state) < len(whole)
        assert all(torch.equal(tensor, whole[name]) for name, tensor in state.items())


def test_split_files_load_from_any_of_them_and_from_the_directory(tmp_path):
    transformer = tiny.write_pack(tmp_path)
    for path in (transformer, tmp_path):
        components = load_components(path, components=PARTS)
        assert components.generation.name == "2.5"
        assert components.transformer.config.keyframe_embedding
        assert components.video_vae.encoder is not None
        assert components.vocoder.sample_rate == 48_000


def test_the_embedded_kind_brings_its_own_text_encoder(tiny_model):
    components = load_components(tiny_model)
    assert components.generation.name == "embedded"
    assert components.text.tokenizer.max_length == tiny.MAX_LENGTH
    context = components.text.encode([tiny.CAPTIONS[0]])
    assert context.video.shape == (1, tiny.MAX_LENGTH, 24)
    assert context.video.isfinite().all()
    video = components.video_geometry
    assert (video.spatial_factor, video.temporal_factor, video.patch_size, video.token_size) == (8, 8, 2, 16)


def test_a_text_encoder_directory_is_used_when_the_file_has_none(tmp_path):
    tower = tiny.modules("embedded")[keymap.TEXT_TOWER]
    gemma = tmp_path / "gemma"
    gemma.mkdir()
    names = sorted(tower.state_dict())
    for i, share in enumerate((names[::2], names[1::2])):  # two files, as large ones come
        state = {f"language_model.{name}": tower.state_dict()[name].clone() for name in share}
        write_safetensors(gemma / f"model-0000{i}-of-00002.safetensors", state, {})
    (gemma / "config.json").write_text(json.dumps(tiny.gemma_config()))
    (gemma / "tokenizer.json").write_bytes(tiny.tokenizer_bytes())
    whole = tiny.write_embedded(tmp_path / "whole.safetensors")

    def without_text(state):
        for name in [
            n for n in state if n.startswith(("model.layers", "model.embed", "model.norm", "token"))
        ]:
            del state[name]

    path = edit(whole, tmp_path / "bare.safetensors", tensors=without_text)
    prompts = [tiny.CAPTIONS[1]]
    inside = load_components(whole, components=("text",)).text.encode(prompts)
    beside = load_components(path, components=("text",), text_encoder=gemma).text.encode(prompts)
    assert torch.equal(inside.video, beside.video)
    assert torch.equal(inside.audio, beside.audio)


def test_a_missing_text_encoder_says_what_to_get(folder, monkeypatch):
    monkeypatch.setattr("soundstage.pipelines.text_source.find_release", lambda _: None)
    with pytest.raises(CheckpointError) as caught:
        load_components(folder / "2.3.safetensors", components=("text",))
    message = str(caught.value)
    assert "needs its text encoder, google/gemma-3-12b-it-qat-q4_0-unquantized" in message
    assert "soundstage models download gemma-3-12b-it" in message
    assert "--text-encoder" in message


@pytest.mark.parametrize("given", [False, True])
def test_a_model_that_does_not_read_gemma_3_gets_no_gemma_3(given, tmp_path):
    """That of 2.5 has as many layers, as wide: nothing else would tell."""
    gemma = tmp_path / "gemma"
    gemma.mkdir()
    transformer = tiny.write_pack(tmp_path)
    with pytest.raises(CheckpointError, match="reads prompts with a text encoder of its own, gemma4-12b"):
        load_components(transformer, components=("text",), text_encoder=gemma if given else None)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: None, "is not a directory with config.json"),
        (lambda p: p.mkdir(), r"holds no \.safetensors files"),
        (lambda p: (p.mkdir(), tiny.write_lora(p / "x.safetensors")), "config.json cannot be read"),
    ],
)
def test_a_directory_that_is_no_text_encoder_is_told(make, reason, folder, tmp_path):
    make(tmp_path / "gemma")
    with pytest.raises(CheckpointError, match=reason):
        load_components(folder / "2.3.safetensors", components=("text",), text_encoder=tmp_path / "gemma")


def test_sound_is_computed_in_float32_whatever_the_weights_are(folder):
    components = load_components(folder / "2.3.safetensors", components=PARTS, dtype=torch.bfloat16)
    for name in ("transformer", "connectors", "video_vae"):
        assert {p.dtype for p in getattr(components, name).parameters()} == {torch.bfloat16}
    for name in ("audio_vae", "vocoder"):
        assert {p.dtype for p in getattr(components, name).parameters()} == {torch.float32}


def test_small_models_are_float32_on_a_cpu_and_everything_else_bfloat16():
    assert default_dtype("cpu", 10**6) == torch.float32
    assert default_dtype("cpu", SMALL_MODEL_BYTES + 1) == torch.bfloat16
    assert default_dtype("cuda", 10**6) == torch.bfloat16


def test_progress_is_told(folder):
    events = []
    load_components(folder / "2.0.safetensors", components=("audio_vae",), on_progress=events.append)
    assert {event.stage for event in events} == {"load"}
    assert events[-1].step == events[-1].num_steps


def test_geometry_comes_from_the_header(folder):
    checkpoint = open_checkpoint(folder / "2.0.safetensors")
    video, audio = video_geometry(checkpoint), audio_geometry(checkpoint)
    assert (video.spatial_factor, video.temporal_factor, video.channels) == (32, 8, 4)
    assert (audio.token_channels, audio.output_sample_rate) == (16, 24_000)


def test_a_vae_of_another_model_is_refused_before_loading(folder, tmp_path):
    path = edit(
        folder / "2.3.safetensors",
        tmp_path / "m.safetensors",
        config=lambda c: c["vae"].update(latent_channels=6),
    )
    with pytest.raises(CheckpointError, match="video VAE makes tokens of 6 channels"):
        load_components(path, components=PARTS)


def test_an_audio_vae_of_another_model_is_refused(folder, tmp_path):
    def wider(config):
        config["audio_vae"]["model"]["params"]["ddconfig"]["z_channels"] = 2

    path = edit(folder / "2.3.safetensors", tmp_path / "m.safetensors", config=wider)
    with pytest.raises(CheckpointError, match="audio VAE makes tokens of 32 channels"):
        load_components(path, components=("transformer",))


def test_a_vae_of_another_generation_inside_a_file_is_told_by_its_tensors(folder, tmp_path):
    other = {n: t for n, t in load_file(folder / "2.0.safetensors").items() if n.startswith("vocoder.")}

    def swap(state):
        for name in [n for n in state if n.startswith("vocoder.")]:
            del state[name]
        state.update(other)

    path = edit(folder / "2.3.safetensors", tmp_path / "m.safetensors", tensors=swap)
    with pytest.raises(TensorMismatchError, match=r"the vocoder of .*m\.safetensors does not fit") as caught:
        load_components(path, components=("vocoder",))
    assert "conv_pre.weight" in caught.value.unexpected
    assert "vocoder.conv_pre.weight" in caught.value.missing


def test_tensors_of_no_part_are_refused(folder, tmp_path):
    path = edit(
        folder / "2.0.safetensors",
        tmp_path / "m.safetensors",
        tensors=lambda s: s.update({"ema.decay": torch.zeros(1)}),
    )
    with pytest.raises(CheckpointError, match=r"has 1 tensors of no part of the model: ema\.decay"):
        load_components(path)


def test_unused_statistics_of_2_0_are_tolerated(folder, tmp_path):
    extra = {"vae.per_channel_statistics.channel": torch.zeros(4)}
    path = edit(folder / "2.0.safetensors", tmp_path / "m.safetensors", tensors=lambda s: s.update(extra))
    assert load_components(path, components=("video_vae",)).video_vae is not None


def test_half_a_vae_is_loaded_as_half(folder, tmp_path):
    def drop_encoder(state):
        for name in [n for n in state if n.startswith("vae.encoder.")]:
            del state[name]

    path = edit(folder / "2.3.safetensors", tmp_path / "m.safetensors", tensors=drop_encoder)
    vae = load_components(path, components=("video_vae",)).video_vae
    assert vae.encoder is None
    assert vae.decoder is not None


def test_a_configuration_error_names_the_file(folder, tmp_path):
    path = edit(
        folder / "2.3.safetensors",
        tmp_path / "m.safetensors",
        config=lambda c: c["vae"].update(norm_layer="group_norm"),
    )
    with pytest.raises(ConfigError, match=r"m\.safetensors: .*norm_layer"):
        load_components(path, components=("video_vae",))


def test_the_diffusion_decoder_names_the_file_to_take_instead(tmp_path):
    path = tmp_path / "ltx-2.5-video-vae-bf16.safetensors"
    config = {"vae": {"_class_name": "CausalDiffusionVAE"}}
    tensors = {"vae.decoder.det_stages.0.x": torch.zeros(1)}
    write_safetensors(path, tensors, {"config": config, "model_version": "2.5.0"})
    with pytest.raises(CheckpointError, match=r"use vae/ltx-2\.5-video-vae-conv-bf16\.safetensors"):
        load_components(path, components=("video_vae",))


def test_a_lora_is_not_a_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no transformer; it holds: LoRA"):
        load_components(tiny.write_lora(tmp_path / "style.safetensors"), components=("transformer",))


def test_the_text_encoders_size_is_read_off_the_projection(folder):
    checkpoint = open_checkpoint(folder / "2.0.safetensors")
    config = load_checkpoint(checkpoint, components=("connectors",)).connectors.config
    assert (config.hidden_size, config.num_states) == (12, 3)


def test_upsamplers_load_alone():
    upsampler = load_upsampler(GOLDEN / "checkpoints" / "tiny-upsampler-x1.5-2.3.safetensors")
    assert upsampler.config.spatial_scale == 1.5
    assert {p.dtype for p in upsampler.parameters()} == {torch.float32}


def test_a_model_is_not_an_upsampler(folder):
    with pytest.raises(CheckpointError, match="holds no latent upsampler; it holds: transformer"):
        load_upsampler(folder / "2.0.safetensors")


def test_a_missing_embedded_model_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(releases, "EMBEDDED_FILE", tmp_path / "embedded.safetensors")
    with pytest.raises(CheckpointError, match="the embedded model is missing from this installation"):
        load_components("embedded")
