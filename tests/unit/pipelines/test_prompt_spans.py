"""Prompts that hold for a part of the clip: how they are written, and how much each holds when."""

import math

import pytest

from soundstage.core.errors import RequestError
from soundstage.pipelines.prompt_spans import PromptSpan, prompt_shares


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("0-2s:a ball: red", 0, 2),
        ("0.5s-1.25s:a ball: red", 0.5, 1.25),
        (" 1 - 2 s : a ball: red", 1, 2),
        ("2-:a ball: red", 2, math.inf),
        ("-2s:a ball: red", 0, 2),
        (".5-1.:a ball: red", 0.5, 1),
    ],
)
def test_span_is_read(text: str, start: float, end: float) -> None:
    assert PromptSpan.of(text) == PromptSpan(start=float(start), end=float(end), prompt="a ball: red")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a ball", "'a ball' is not of the form START-END:PROMPT, such as 0-2s:a ball"),
        ("0-2m:a ball", "is not of the form"),
        ("2-2:a ball", "the span 2-2 s is empty"),
        ("3-2s:a ball", "the span 3-2 s is empty"),
        ("0-2s: ", "has no prompt behind the colon"),
    ],
)
def test_bad_span_is_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        PromptSpan.of(text)


def shares(seconds: float, *texts: str, transition: float = 0.5) -> list[float]:
    return prompt_shares([PromptSpan.of(text) for text in texts], seconds, transition)


def test_base_prompt_holds_where_none_is_given() -> None:
    assert shares(0.5, "1-2:x") == [1, 0]
    assert shares(1.5, "1-2:x") == [0, 1]
    assert shares(2.5, "1-2:x") == [1, 0]


def test_border_is_crossed_half_way_and_smoothly() -> None:
    assert shares(1.0, "1-2:x") == [0.5, 0.5]
    rising = [shares(0.75 + 0.05 * i, "1-2:x")[1] for i in range(11)]
    assert rising == sorted(rising)
    assert rising[0] == 0
    assert rising[-1] == 1
    assert rising[2] == pytest.approx(1 - rising[-3])


def test_first_and_last_moment_belong_to_a_span_that_reaches_there() -> None:
    assert shares(0.0, "0-2:x") == [0, 1]
    assert shares(-1.0, "0-2:x") == [0, 1]
    assert shares(99.0, "1-:x") == [0, 1]


def test_neighbours_pass_into_each_other_without_the_base_prompt() -> None:
    for i in range(21):
        base, first, second = shares(0.5 + 0.05 * i, "0-1:x", "1-:y")
        assert base == pytest.approx(0)
        assert first + second == pytest.approx(1)


def test_overlapping_spans_share() -> None:
    assert shares(1.5, "1-2:x", "1-2:y") == [0, 0.5, 0.5]


def test_without_a_transition_prompts_change_at_once() -> None:
    assert shares(0.999, "1-2:x", transition=0.0) == [1, 0]
    assert shares(1.0, "1-2:x", transition=0.0) == [0, 1]
    assert shares(2.0, "1-2:x", transition=0.0) == [1, 0]
