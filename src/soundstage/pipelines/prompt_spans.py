"""Prompts that hold for a part of the clip: read from text, and how strongly each holds when.

Free of torch, so that a request can check them before anything is loaded.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from soundstage.core.errors import RequestError

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_SPAN = re.compile(rf"\s*({_NUMBER})?\s*s?\s*-\s*({_NUMBER})?\s*s?\s*:\s*(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class PromptSpan:
    """One prompt and when it holds."""

    start: float  # seconds; 0 reaches back to whatever is before the clip
    end: float  # seconds; infinite = to the end
    prompt: str

    @classmethod
    def of(cls, text: str) -> "PromptSpan":
        """Read "0-2s:a ball falls"; either end may be left open, as in "2-:it rolls".

        Raises:
            RequestError: It is not of that form, the span is empty, or the prompt is.
        """
        match = _SPAN.fullmatch(text)
        if match is None:
            raise RequestError(f"prompt_at={text!r} is not of the form START-END:PROMPT, such as 0-2s:a ball")
        start, end = float(match[1] or 0), float(match[2] or math.inf)
        if start >= end:
            raise RequestError(f"prompt_at={text!r}: the span {start:g}-{end:g} s is empty")
        if not match[3].strip():
            raise RequestError(f"prompt_at={text!r} has no prompt behind the colon")
        return cls(start=start, end=end, prompt=match[3].strip())

    def share(self, seconds: float, transition: float) -> float:
        """Say how much it holds at a moment, [0, 1]; `transition` seconds wide slopes lie on its borders."""
        begun = 1.0 if self.start <= 0 else _slope(seconds - self.start, transition)
        ended = 0.0 if math.isinf(self.end) else _slope(seconds - self.end, transition)
        return max(begun - ended, 0.0)


def prompt_shares(spans: Sequence[PromptSpan], seconds: float, transition: float) -> list[float]:
    """Share a moment out between the base prompt, which comes first, and the spans; they add up to 1."""
    shares = [span.share(seconds, transition) for span in spans]
    total = max(sum(shares), 1.0)
    return [1 - sum(shares) / total, *(share / total for share in shares)]


def _slope(distance: float, width: float) -> float:
    """Rise from 0 to 1 over `width` seconds around 0, smoothly; at once when that is 0."""
    if width <= 0:
        return float(distance >= 0)
    x = min(max(distance / width + 0.5, 0.0), 1.0)
    return x * x * (3 - 2 * x)
