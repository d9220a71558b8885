"""Prompt enhancement: who can, what is asked, what is made of the answer, and that it is not asked twice."""

import json
from pathlib import Path

import pytest

import media_samples
import tiny
from soundstage.core.errors import RequestError
from soundstage.models.text.gemma import GemmaTower
from soundstage.models.text.text_encoder import TextEncoder
from soundstage.models.text.writer import TURN_BEGINS, TURN_ENDS
from soundstage.pipelines import enhance as module
from soundstage.pipelines.enhance import INSTRUCTIONS, clean, enhance
from soundstage.pipelines.pipeline import Pipeline

PROMPT = "a red ball bounces"
SMALL = {"num_frames": 9, "width": 64, "height": 64, "num_inference_steps": 1}
PLAIN = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0}
FAST = {**SMALL, **PLAIN, "modality_scale": 1.0, "audio_modality_scale": 1.0}

pytestmark = pytest.mark.usefixtures("latents_as_clip")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("official") / "2.0.safetensors", "2.0")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a Gemma-3 with random weights that knows turns: it answers, if nothing sensible."""
    from soundstage.checkpoints.save import write_safetensors

    folder = tmp_path_factory.mktemp("gemma")
    config = tiny.tiny_gemma_config(vocab_size=302, hidden_size=12, num_layers=2, intermediate_size=16)
    config |= {"num_attention_heads": 1, "head_dim": 12}
    tower = GemmaTower.from_config(config)
    tiny.randomise(tower, "enhance")
    state = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    write_safetensors(folder / "model.safetensors", state, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    content = json.loads(tiny.tokenizer_bytes())
    size = max(content["model"]["vocab"].values()) + 1
    for offset, mark in enumerate((TURN_BEGINS, TURN_ENDS)):
        content["added_tokens"].append(
            {
                "id": size + offset, "content": mark, "special": True, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False,
            }
        )  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def load(model: Path, gemma: Path, cache: Path | str) -> Pipeline:
    return Pipeline.load(model, device="cpu", text_encoder=gemma, prompt_cache=cache)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("\u201cA ball\u201d \u2014 it\u2019s red", "A ball\" - it's red"),
        ("  1. **A ball\n\nbounces.", "A ball bounces."),
        ("a\u00a0ball", "a ball"),
        ("!!! 42", ""),
        ("1. \u00c9lan vital", "\u00c9lan vital"),
        ("\u4e00\u4e2a\u7ea2\u7403 bounces", "\u4e00\u4e2a\u7ea2\u7403 bounces"),
    ],
)
def test_answer_becomes_one_plain_paragraph(answer: str, expected: str) -> None:
    assert clean(answer) == expected


def test_embedded_model_cannot_and_says_so_before_anything_runs(tiny_model: Path) -> None:
    events: list[object] = []
    with pytest.raises(RequestError, match="enhance needs a text encoder that can write"):
        Pipeline.load(tiny_model, device="cpu")(PROMPT, enhance=True, on_progress=events.append)
    assert events == []


def test_enhanced_prompt_is_what_the_clip_follows_and_both_are_shown(
    model: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(*args: object, **options: object) -> str:
        asked.append(str(args[2]))
        return "A red ball, \u201cround\u201d, bounces with a thud."

    monkeypatch.setattr(module, "answer", answer)
    pipeline = load(model, gemma, "off")
    made = pipeline(PROMPT, enhance=True, **FAST)
    assert asked == [f"{INSTRUCTIONS}{PROMPT}"]
    enhanced = 'A red ball, "round", bounces with a thud.'
    assert made.notes[-1] == f"prompt {PROMPT!r} was enhanced to {enhanced!r}"
    assert made.request.prompt == PROMPT
    assert made.metadata["notes"] == list(made.notes)
    plain = pipeline(enhanced, **FAST)
    assert (made.pixels == plain.pixels).all()
    assert (made.waveform == plain.waveform).all()


def test_enhancing_beside_a_picture_says_that_it_was_not_seen(
    model: Path, gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "answer", lambda *_, **__: "A red ball bounces twice.")
    photo = media_samples.write_picture(tmp_path / "photo.png", height=64, width=64)
    made = load(model, gemma, "off")(PROMPT, enhance=True, image=photo, **FAST)
    assert any("enhanced without a look at what is given" in note for note in made.notes)


def test_text_encoder_writes_by_seed(model: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOKENS", 8)
    prompts = load(model, gemma, "off").prompts
    assert enhance(prompts, PROMPT, 1) == enhance(prompts, PROMPT, 1)
    assert enhance(prompts, PROMPT, 1) != enhance(prompts, PROMPT, 2)


def test_answer_is_stored_and_not_asked_for_again(
    model: Path, gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_TOKENS", 8)
    first = load(model, gemma, tmp_path)(PROMPT, enhance=True, **FAST)

    def fail(*_: object) -> None:
        raise AssertionError("the text encoder must not be needed")

    monkeypatch.setattr(TextEncoder, "__init__", fail)
    second = load(model, gemma, tmp_path)(PROMPT, enhance=True, **FAST)
    assert second.notes == first.notes
    assert (second.pixels == first.pixels).all()


def test_useless_answer_is_an_error(model: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "answer", lambda *_, **__: "...")
    with pytest.raises(RequestError, match="made nothing of 'a red ball bounces'; try another seed"):
        load(model, gemma, "off")(PROMPT, enhance=True, **FAST)
