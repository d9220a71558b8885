"""Reading lessons: questions about a scene that its caption answers, asked of the contexts of both streams.

The released models begin with a language model that knows what "from the left" means. The small text tower
begins with nothing, and what a caption adds to the error of a velocity is little where words have to be put
together: a direction, the second of three syllables. So it learns to read beside: attention with a query per
question, as the transformer itself attends, must find the answer in the context.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from soundstage.core.types import AV, Context
from soundstage.data.world.scene import Scene

UNASKED = -100  # where a scene has no answer: a face has no floor
PHRASES = ("words",)  # facts that are several words in a row
TIMED = ("syllables",)  # the same words again, with times


def answers_of(scene: Scene) -> dict[str, str]:
    """Flatten what there is to know about a scene: the name of each question and its answer.

    A list gives a question for each place, and one for the place after its end, answered by "".
    """
    return dict(_flat("", scene.facts()))


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if name in TIMED:
        return
    if name in PHRASES:
        value = value.split()
    if value is None or isinstance(value, str):
        yield name, value or ""
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(f"{name}.{key}".lstrip("."), part)
    elif isinstance(value, Sequence) and all(isinstance(part, str | Mapping) for part in value):
        for place, part in enumerate(value):
            yield from _flat(f"{name}.{place}", part)
        if value and isinstance(value[0], str):
            yield f"{name}.{len(value)}", ""


class FactReader(nn.Module):
    """Answer questions from a context. Used in training only."""

    def __init__(self, scenes: Sequence[Scene], video_dim: int, audio_dim: int) -> None:
        """Collect the questions, and the answers to each, from `scenes`; one answer alone is no question."""
        super().__init__()
        found: dict[str, set[str]] = {}
        for scene in scenes:
            for question, answer in answers_of(scene).items():
                found.setdefault(question, set()).add(answer)
        self.answers = {name: sorted(known) for name, known in sorted(found.items()) if len(known) > 1}
        most = max(map(len, self.answers.values()))
        self.streams = nn.ModuleDict(
            {
                name: _StreamReader(dim, len(self.answers), most)
                for name, dim in (("video", video_dim), ("audio", audio_dim))
            }
        )

    def marks(self, scenes: Sequence[Scene]) -> Int[Tensor, "b questions"]:
        """Return the index of the answer to each question, `UNASKED` where there is none."""
        given = [answers_of(scene) for scene in scenes]
        rows = [[self._mark(name, answers.get(name)) for name in self.answers] for answers in given]
        return torch.tensor(rows)

    def forward(
        self, contexts: AV[Context], marks: Int[Tensor, "b questions"]
    ) -> tuple[Tensor, Float[Tensor, ""]]:
        """Return the cross-entropy of the answers, mean of both streams, and the share that is right."""
        losses, right = [], []
        asked = marks != UNASKED
        for name in ("video", "audio"):
            logits = self.streams[name](getattr(contexts, name))
            losses.append(F.cross_entropy(logits.flatten(0, 1), marks.flatten(), ignore_index=UNASKED))
            right.append((logits.argmax(-1) == marks)[asked].float().mean())
        return torch.stack(losses).mean(), torch.stack(right).mean()

    def _mark(self, name: str, answer: str | None) -> int:
        known = self.answers[name]
        return known.index(answer) if answer in known else UNASKED


class _StreamReader(nn.Module):
    """A query per question, then a linear choice among its answers."""

    def __init__(self, dim: int, num_questions: int, num_answers: int) -> None:
        super().__init__()
        self.scale = dim**-0.5
        self.queries = nn.Embedding(num_questions, dim)  # tables of vectors, not maps: no rotation to keep
        self.choices = nn.Embedding(num_questions * num_answers, dim)

    def forward(self, context: Context) -> Float[Tensor, "b questions answers"]:
        tokens = F.rms_norm(context, context.shape[-1:])
        scores = torch.einsum("qd,bsd->bqs", self.queries.weight, tokens) * self.scale
        read = torch.einsum("bqs,bsd->bqd", scores.softmax(-1), tokens)
        choices = self.choices.weight.view(len(self.queries.weight), -1, tokens.shape[-1])
        logits: Tensor = torch.einsum("bqd,qad->bqa", read, choices).float() * self.scale
        return logits
