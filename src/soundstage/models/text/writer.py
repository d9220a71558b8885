"""The text encoder as a writer: an instruction-tuned Gemma-3 answers, word by word, from a seed."""

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.models.text.gemma import GemmaTower
from soundstage.models.text.tokenizer import Tokenizer

TURN_BEGINS, TURN_ENDS = "<start_of_turn>", "<end_of_turn>"  # Gemma's own marks of a conversation
TOP_K = 64  # words that are in the draw, as Gemma's own configuration has it


def can_answer(tokenizer: Tokenizer) -> bool:
    """Tell whether a text encoder was tuned to hold a conversation: its tokenizer then knows turns."""
    return None not in (tokenizer.token_id(TURN_BEGINS), tokenizer.token_id(TURN_ENDS))


@torch.no_grad()
def answer(
    tower: GemmaTower,
    tokenizer: Tokenizer,
    question: str,
    *,
    generator: torch.Generator,
    temperature: float = 0.7,
    max_tokens: int = 512,
) -> str:
    """Let the text encoder answer; the same generator state gives the same answer.

    Args:
        generator: On the CPU.
        temperature: 0 takes the likeliest word each time.
        max_tokens: Longest answer.
    """
    ends = {tokenizer.eos_id, tokenizer.token_id(TURN_ENDS)}
    pending, cache, written = _conversation(tokenizer, question), None, []
    for _ in range(max_tokens):
        logits, cache = tower.next_word(torch.tensor([pending], device=tower.device), cache)
        word = _draw(logits[0].cpu(), temperature, generator)
        if word in ends:
            break
        written.append(word)
        pending = [word]
    return tokenizer.decode(written).strip()


def _conversation(tokenizer: Tokenizer, question: str) -> list[int]:
    """Lay out one question, so that an answer is what comes next. Marks of turns in it are left out."""
    for mark in (TURN_BEGINS, TURN_ENDS):
        question = question.replace(mark, "")
    asked = f"{TURN_BEGINS}user\n{question.strip()}{TURN_ENDS}\n"
    return tokenizer.ids(f"{asked}{TURN_BEGINS}model\n", strip=False)


def _draw(logits: Float[Tensor, " vocab"], temperature: float, generator: torch.Generator) -> int:
    """Draw a word from the likeliest ones."""
    if temperature == 0:
        return int(logits.argmax())
    best = logits.float().topk(min(TOP_K, len(logits)))
    place = torch.multinomial((best.values / temperature).softmax(-1), 1, generator=generator)
    return int(best.indices[place])
