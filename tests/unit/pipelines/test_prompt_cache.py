"""Encoded prompts on disk: found again, told apart, bounded, and never in the way."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.fingerprint import fingerprint
from soundstage.checkpoints.save import write_safetensors
from soundstage.core.errors import CheckpointError, RequestError
from soundstage.core.types import AV
from soundstage.models.text.text_encoder import TextEncoder
from soundstage.pipelines import prompt_cache
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.prompt_cache import PromptCache, cache_folder, cache_key

PROMPT = "a red ball bounces on a wooden floor"
SMALL = {"num_frames": 9, "width": 64, "height": 64, "num_inference_steps": 1}
PLAIN = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0}
FAST = {**SMALL, **PLAIN, "modality_scale": 1.0, "audio_modality_scale": 1.0}

pytestmark = pytest.mark.usefixtures("latents_as_clip")


def pair(seed: int, size: int = 4) -> AV[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return AV(
        torch.randn(1, size, 6, generator=generator).bfloat16(), torch.randn(1, size, 3, generator=generator)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("official") / "2.3.safetensors", "2.3")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gemma(tmp_path_factory.mktemp("text") / "gemma")


def load(model: Path, gemma: Path | None, cache: Path | str, **options: Any) -> Pipeline:
    return Pipeline.load(model, device="cpu", text_encoder=gemma, prompt_cache=cache, **options)


def forbid_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the text encoder must not be needed")

    monkeypatch.setattr(TextEncoder, "__init__", fail)


# The folder


def test_what_is_stored_comes_back_bit_for_bit(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path / "new")
    cache.put("k", "e", pair(1))
    found = cache.get("k", "e")
    assert found.video.dtype == torch.bfloat16
    assert torch.equal(found.video, pair(1).video)
    assert torch.equal(found.audio, pair(1).audio)
    assert cache.get("other", "e") is None
    assert cache.get("k", "another encoder") is None


def test_without_an_encoder_whatever_was_stored_last_is_taken(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    cache.put("k", "e1", pair(1))
    cache.put("k", "e2", pair(2))
    os.utime(tmp_path / "k-e1.safetensors", (1, 1))
    assert torch.equal(cache.get("k", None).audio, pair(2).audio)


def test_texts_are_stored_too(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    cache.put_text("k", "e", "größer")
    assert cache.get_text("k", "e") == "größer"
    assert cache.get_text("k2", "e") is None


def test_least_recently_used_files_make_room(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    for number, name in enumerate("abc"):
        cache.put(name, "e", pair(1, 100))
        os.utime(tmp_path / f"{name}-e.safetensors", (number, number))
    size = (tmp_path / "a-e.safetensors").stat().st_size
    assert cache.get("a", "e") is not None, "now b was not used for longest"
    PromptCache(tmp_path, max_bytes=3 * size).put("d", "e", pair(1, 100))
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_one_file_larger_than_the_limit_stays_until_the_next(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, max_bytes=10)
    cache.put("a", "e", pair(1))
    assert cache.get("a", "e") is not None
    os.utime(tmp_path / "a-e.safetensors", (1, 1))
    cache.put("b", "e", pair(1))
    assert [path.name for path in tmp_path.iterdir()] == ["b-e.safetensors"]


def test_damaged_file_is_reported_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = PromptCache(tmp_path)
    (tmp_path / "k-e.safetensors").write_bytes(b"half a fi")
    assert cache.get("k", "e") is None
    assert "cannot be read and is made again" in caplog.text
    cache.put("k", "e", pair(1))
    assert cache.get("k", "e") is not None


def test_full_disk_is_reported_and_does_no_other_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prompt_cache, "write_safetensors", fail)
    PromptCache(tmp_path).put("k", "e", pair(1))
    assert "is not kept" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"prompt cache: cannot make the folder .* --prompt-cache off"):
        PromptCache(tmp_path / "file" / "cache")


def test_folder_follows_the_users_wishes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOUNDSTAGE_PROMPT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SOUNDSTAGE_PROMPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "soundstage" / "prompts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/soundstage/prompts").expanduser()


# The keys


def test_fingerprint_sees_a_changed_weight_and_a_changed_shape(tmp_path: Path) -> None:
    def of(tensor: Tensor) -> str:
        tmp_path.joinpath("x.safetensors").unlink(missing_ok=True)
        write_safetensors(
            tmp_path / "x.safetensors",
            tiny.official(keymap.TRANSFORMER, {"transformer_blocks.0.ff.net.0.proj.weight": tensor}),
            {"config": {"transformer": {}}, "model_version": "2.3.0"},
        )
        return fingerprint(open_checkpoint(tmp_path / "x.safetensors").part(keymap.TRANSFORMER))

    plain = torch.zeros(8, 512)
    changed = plain.clone()
    changed[0, 0] = 1
    assert len({of(plain), of(changed), of(plain.view(16, 256)), of(plain.half())}) == 4
    assert of(plain) == of(plain.clone())


def test_key_begins_with_the_connectors_and_depends_on_everything() -> None:
    keys = {cache_key("abc", parts) for parts in (["x", 1], ["x", 2], ["y", 1], ["x1"], ["x", "1"])}
    assert len(keys) == 5
    assert all(key.startswith("abc-") for key in keys)


# A model with a cache


def test_second_run_needs_no_text_encoder_and_makes_the_same_clip(
    model: Path, gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(model, gemma, "off")(PROMPT, **FAST)
    first = load(model, gemma, tmp_path)(PROMPT, **FAST)
    forbid_encoding(monkeypatch)
    second = load(model, gemma, tmp_path)(f" {PROMPT} ", seed=0, **FAST)
    assert torch.equal(first.pixels, plain.pixels)
    assert torch.equal(second.pixels, plain.pixels)
    assert torch.equal(second.waveform, plain.waveform)


def test_machine_without_the_text_encoder_runs_on_stored_prompts_alone(
    model: Path, gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUNDSTAGE_MODELS", str(tmp_path / "nothing"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="needs its text encoder"):
        load(model, None, tmp_path / "cache")
    made = load(model, gemma, tmp_path / "cache")(PROMPT, **FAST)
    alone = load(model, None, tmp_path / "cache")
    assert torch.equal(alone(PROMPT, **FAST).pixels, made.pixels)
    with pytest.raises(CheckpointError, match="needs its text encoder"):
        alone("something new", **FAST)


def test_another_text_encoder_does_not_get_the_first_ones_contexts(
    model: Path, gemma: Path, tmp_path: Path
) -> None:
    other = tiny.write_gemma(tmp_path / "other", seed="another")
    first = load(model, gemma, tmp_path / "cache").prompts.encode(PROMPT)
    second = load(model, other, tmp_path / "cache").prompts.encode(PROMPT)
    assert not torch.equal(first.video, second.video)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_formats_are_kept_apart(model: Path, gemma: Path, tmp_path: Path) -> None:
    exact = load(model, gemma, tmp_path, dtype="float32").prompts.encode(PROMPT)
    half = load(model, gemma, tmp_path, dtype="bfloat16").prompts.encode(PROMPT)
    assert (exact.video.dtype, half.video.dtype) == (torch.float32, torch.bfloat16)


def test_contexts_of_a_quantised_text_encoder_are_not_taken_for_exact_ones(
    model: Path, gemma: Path, tmp_path: Path
) -> None:
    kinds = (
        Placing(quantize_text="int8"),
        Placing(quantize_text="int8", quantize_text_skip=("*.mlp",)),
        Placing(),
    )
    made = [load(model, gemma, tmp_path, placing=placing).prompts.encode(PROMPT) for placing in kinds]
    assert not any(torch.equal(made[i].video, made[j].video) for i, j in ((0, 1), (0, 2), (1, 2)))
    again = load(model, gemma, tmp_path, placing=kinds[0]).prompts.encode(PROMPT)
    assert torch.equal(again.video, made[0].video)


def test_too_long_a_prompt_is_refused_before_the_text_encoder_is_loaded(
    model: Path, gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_encoding(monkeypatch)
    with pytest.raises(RequestError, match="this model reads 1024"):
        load(model, gemma, tmp_path)("ball " * 3000, **FAST)


def test_cache_is_off_for_the_embedded_model_and_on_for_official_ones(
    tiny_model: Path, model: Path, gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUNDSTAGE_PROMPT_CACHE", str(tmp_path / "default"))
    assert Pipeline.load(tiny_model, device="cpu").prompts.store is None
    assert not (tmp_path / "default").exists()
    assert Pipeline.load(model, device="cpu", text_encoder=gemma).prompts.store is not None
    embedded = Pipeline.load(tiny_model, device="cpu", prompt_cache="on")
    embedded.prompts.encode(PROMPT)
    assert len(list((tmp_path / "default").iterdir())) == 1
    shutil.rmtree(tmp_path / "default")
