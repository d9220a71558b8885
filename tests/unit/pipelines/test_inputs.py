"""What users write about media is read, and what is malformed is refused by name."""

from fractions import Fraction
from pathlib import Path

import pytest

from soundstage.core.errors import RequestError
from soundstage.pipelines.inputs import (
    ImageInput,
    Moment,
    ReferenceInput,
    parse_canvas,
    parse_extension,
    parse_size,
    parse_span,
)


@pytest.mark.parametrize(
    ("text", "frame"),
    [("0", 0), ("12", 12), ("-1", 48), ("last", 48), ("1.5s", 36), ("1s", 24), ("0s", 0)],
)
def test_moment_is_a_frame_of_the_clip(text, frame):
    assert Moment.parse(text).frame(49, Fraction(24)) == frame


@pytest.mark.parametrize(("text", "message"), [("49", "moment 49"), ("-50", "moment -50"), ("3s", "at 2s")])
def test_moment_outside_the_clip_is_an_error_that_names_the_last(text, message):
    with pytest.raises(RequestError, match=message):
        Moment.parse(text).frame(49, Fraction(24))


@pytest.mark.parametrize("text", ["", "1.5", "s", "first", "1,5s"])
def test_moment_of_another_form_is_refused(text):
    with pytest.raises(RequestError, match="none of a frame"):
        Moment.parse(text)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a.png", ImageInput(Path("a.png"))),
        ("a.png@last", ImageInput(Path("a.png"), Moment(-1))),
        ("a.png@1.5s:0.8", ImageInput(Path("a.png"), Moment(1.5, "seconds"), 0.8)),
        ("me@home/a.png", ImageInput(Path("me@home/a.png"))),
        ("me@home/a.png@3", ImageInput(Path("me@home/a.png"), Moment(3))),
        ("C:/a.png", ImageInput(Path("C:/a.png"))),
    ],
)
def test_image_has_a_path_a_moment_and_a_strength(text, read):
    assert ImageInput.parse(text) == read


@pytest.mark.parametrize("text", ["", "@3", "a.png@3:2", "a.png@3:much", "a.png@soon"])
def test_malformed_image_is_refused(text):
    with pytest.raises(RequestError):
        ImageInput.parse(text)


def test_reference_has_a_path_and_a_strength():
    assert ReferenceInput.parse("a.mp4") == ReferenceInput(Path("a.mp4"))
    assert ReferenceInput.parse("a.mp4:0.5") == ReferenceInput(Path("a.mp4"), 0.5)
    assert ReferenceInput.parse("C:/a.mp4") == ReferenceInput(Path("C:/a.mp4"))
    with pytest.raises(RequestError, match=r"in \[0, 1\]"):
        ReferenceInput.parse("a.mp4:5")


def test_span_is_two_moments_in_order():
    assert parse_span("2.0-3.5") == (2.0, 3.5)
    assert parse_span("0s-1s") == (0.0, 1.0)
    for text in ("2", "2-", "-2-3", "a-b"):
        with pytest.raises(RequestError, match="START-END"):
            parse_span(text)
    with pytest.raises(RequestError, match="empty"):
        parse_span("3-3")


def test_extension_is_seconds_per_direction():
    assert parse_extension(["forward=3s"]) == {"forward": 3.0}
    assert parse_extension(["backward=0.5", "forward=2"]) == {"backward": 0.5, "forward": 2.0}
    with pytest.raises(RequestError, match="did you mean 'forward'"):
        parse_extension(["forwards=3s"])
    for text in ("forward", "forward=", "forward=0s", "forward=-1s"):
        with pytest.raises(RequestError, match="how many seconds"):
            parse_extension([text])
    with pytest.raises(RequestError, match="twice"):
        parse_extension(["forward=1s", "forward=2s"])


def test_size_is_width_times_height():
    assert parse_size("96x64") == (64, 96)
    for text in ("96", "0x64", "96x", "axb"):
        with pytest.raises(RequestError, match="WIDTHxHEIGHT"):
            parse_size(text)


def test_canvas_lies_around_the_middle_or_adds_to_sides():
    assert parse_canvas("97x64", 64, 64) == (0, 0, 16, 17)
    assert parse_canvas("left=8,top=2", 64, 64) == (2, 0, 8, 0)
    for text, message in (
        ("64x64", "not larger"),
        ("32x96", "not larger"),
        ("lef=8", "did you mean 'left'"),
        ("left=0", "adds nothing"),
    ):
        with pytest.raises(RequestError, match=message):
            parse_canvas(text, 64, 64)
