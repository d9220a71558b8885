"""Figures: well-formed, escaped, with pictures that decode, and axes with round numbers."""

import base64
import io
import xml.etree.ElementTree as ET

import av
import pytest
import torch

from soundstage.media.colour_map import colours
from soundstage.media.image import encode_png
from soundstage.media.svg import Drawing, ticks

NAMESPACE = "{http://www.w3.org/2000/svg}"


def test_drawing_is_an_svg_with_what_was_drawn() -> None:
    drawing = Drawing(200, 100, "a <title> & more")
    drawing.rect(1, 2, 30, 40, stroke="#123456")
    drawing.line((0, 0), (10, 20.123), dash="3 4")
    drawing.dot(5, 6, 2, fill="red", opacity=0.5)
    drawing.text(10, 20, "1 < 2", anchor="middle", bold=True, turned=True)
    root = ET.fromstring(drawing.render())
    assert root.get("viewBox") == "0 0 200 100"
    assert root.find(f"{NAMESPACE}title").text == "a <title> & more"
    assert [child.tag.removeprefix(NAMESPACE) for child in root] == [
        "title", "rect", "rect", "line", "circle", "text",
    ]  # fmt: skip
    assert root.find(f"{NAMESPACE}line").get("y2") == "20.12"
    text = root.find(f"{NAMESPACE}text")
    assert text.text == "1 < 2"
    assert text.get("transform") == "rotate(-90 10.0 20.0)"


def test_picture_inside_a_drawing_decodes_to_itself() -> None:
    picture = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawing = Drawing(10, 10, "picture")
    drawing.image(0, 0, 10, 10, picture)
    link = ET.fromstring(drawing.render()).find(f"{NAMESPACE}image").get("href")
    data = base64.b64decode(link.removeprefix("data:image/png;base64,"))
    assert data == encode_png(picture)
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
    assert torch.equal(torch.from_numpy(frame.to_ndarray(format="rgb24")), picture)


@pytest.mark.parametrize(
    ("longest", "expected"),
    [
        (2.04, [0, 0.5, 1, 1.5, 2]),
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (20.0, [0, 5, 10, 15, 20]),
        (0.07, [0, 0.02, 0.04, 0.06]),
    ],
)
def test_ticks_are_round_and_within(longest: float, expected: list[float]) -> None:
    assert ticks(longest) == pytest.approx(expected)


def test_colours_grow_brighter_with_the_value() -> None:
    scale = colours(torch.linspace(0, 1, 64)).float() @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert (scale.diff() > 0).all()


def test_colours_clip_what_lies_outside() -> None:
    assert torch.equal(colours(torch.tensor([-3.0, 7.0])), colours(torch.tensor([0.0, 1.0])))
