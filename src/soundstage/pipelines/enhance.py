"""A short prompt to a full one: the text encoder rewrites it, if it is a model that can.

The models were trained with captions that tell a scene from beginning to end, picture and sound. A few words
leave most of that open. What the rewriting adds is a guess, so it is off unless asked for, and both prompts
are shown.
"""

import re

from soundstage.core.errors import RequestError
from soundstage.core.rng import generator
from soundstage.models.text.writer import answer, can_answer
from soundstage.pipelines.prompt_encoder import PromptEncoder
from soundstage.runtime.residency import bring

INSTRUCTIONS = """\
You turn a short wish for a video clip into the caption that such a clip would have.

Write one paragraph of plain English, at most 150 words, in the present tense, and nothing else: no title,
no list, no comment on what you do.
- Begin with the kind of picture it is, for example a film scene, an animation or a moving close-up.
- Then tell what is seen, in the order in which it happens: who or what, what it looks like, where, in what
  light, how it moves.
- Say what is heard at each point, as concretely as what is seen: what makes the sound, how loud, how near,
  and what the room or the place sounds like. Silence is worth saying too.
- Keep everything that the wish says. Add only what goes without saying in such a scene: no new characters,
  no story, no text in the picture.
- Let people speak only if the wish has them speak; then quote their words exactly.
- Do not move the camera unless the wish does.

The wish:
"""
MAX_TOKENS = 512
TEMPERATURE = 0.7

_PLAIN = str.maketrans(
    {
        "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u2032": "'", "\u201c": '"', "\u201d": '"',
        "\u201e": '"', "\u2033": '"', "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-",
        "\u2014": "-", "\u2212": "-", "\u00a0": " ", "\u202f": " ",
    }
)  # fmt: skip


def check_can_enhance(prompts: PromptEncoder) -> None:
    """Refuse enhancement where the text encoder cannot write.

    Raises:
        RequestError: It cannot; says what could.
    """
    if prompts.tokenizer is not None and not can_answer(prompts.tokenizer):
        raise RequestError(
            "enhance needs a text encoder that can write, an instruction-tuned Gemma-3 as LTX-2.0 and 2.3 "
            "have it; this model's only reads"
        )


def enhance(prompts: PromptEncoder, prompt: str, seed: int) -> str:
    """Rewrite a prompt; the same prompt and seed give the same text, which is stored beside the contexts.

    Raises:
        RequestError: The text encoder cannot write, or wrote nothing of use.
    """
    check_can_enhance(prompts)
    recipe = ("enhance", INSTRUCTIONS, prompt, seed, MAX_TOKENS, str(TEMPERATURE))
    known = None if prompts.store is None else prompts.store.text(*recipe)
    if known is not None:
        return known
    text = prompts.text
    bring(text.gemma)
    written = answer(
        text.gemma,
        text.tokenizer,
        f"{INSTRUCTIONS}{prompt.strip()}",
        generator=generator(seed, "enhance"),
        temperature=TEMPERATURE,
        max_tokens=MAX_TOKENS,
    )
    cleaned = clean(written)
    if not cleaned:
        raise RequestError(f"the text encoder made nothing of {prompt!r}; try another seed, or no enhance")
    if prompts.store is not None:
        prompts.store.keep_text(cleaned, *recipe)
    return cleaned


def clean(text: str) -> str:
    """Make a caption of an answer: plain quotes and dashes, one paragraph, letters first."""
    joined = " ".join(text.translate(_PLAIN).split())
    return re.sub(r"^[\W\d_]+", "", joined).strip()
