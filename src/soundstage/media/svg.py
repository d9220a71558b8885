"""Figures as SVG: a drawing is a list of shapes in pixels, y pointing down; no library, crisp at any size."""

import base64
import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

from soundstage.media.image import Picture, encode_png

INK, FAINT, PAPER = "#1c1c28", "#8a8a99", "#ffffff"
FONT = "Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

Number = float | int


class Drawing:
    """Shapes on white paper; what comes later lies on top."""

    def __init__(self, width: Number, height: Number, title: str) -> None:
        """Begin with the paper.

        Args:
            title: What a reader who does not see it is told.
        """
        self.width, self.height, self.title = width, height, title
        self._shapes: list[str] = []
        self.rect(0, 0, width, height, fill=PAPER)

    def rect(
        self, x: Number, y: Number, width: Number, height: Number, *, fill: str = "none", stroke: str = "none"
    ) -> None:
        """Draw a rectangle."""
        place = {"x": x, "y": y, "width": width, "height": height}
        self._add("rect", {**place, "fill": fill, "stroke": stroke})

    def line(
        self,
        start: tuple[Number, Number],
        end: tuple[Number, Number],
        *,
        stroke: str = INK,
        width: Number = 1.0,
        dash: str | None = None,
    ) -> None:
        """Draw a straight line."""
        ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
        more = {} if dash is None else {"stroke-dasharray": dash}
        self._add("line", {**ends, "stroke": stroke, "stroke-width": width, **more})

    def dot(self, x: Number, y: Number, radius: Number, *, fill: str, opacity: Number = 1.0) -> None:
        """Draw a filled circle."""
        self._add("circle", {"cx": x, "cy": y, "r": radius, "fill": fill, "fill-opacity": opacity})

    def text(
        self,
        x: Number,
        y: Number,
        content: str,
        *,
        size: Number = 11,
        anchor: str = "start",
        fill: str = INK,
        bold: bool = False,
        turned: bool = False,
    ) -> None:
        """Write a line; (x, y) is where its baseline starts, or has its middle or end.

        Args:
            anchor: "start", "middle" or "end".
            turned: Written upwards.
        """
        more: dict[str, Number | str] = {"font-size": size, "text-anchor": anchor, "font-family": FONT}
        if bold:
            more["font-weight"] = 600
        if turned:
            more["transform"] = f"rotate(-90 {x:.1f} {y:.1f})"
        self._add("text", {"x": x, "y": y, "fill": fill, **more}, escape(content))

    def image(self, x: Number, y: Number, width: Number, height: Number, picture: Picture) -> None:
        """Place a picture, stretched to the rectangle."""
        data = base64.b64encode(encode_png(picture)).decode()
        place = {"x": x, "y": y, "width": width, "height": height}
        more = {"preserveAspectRatio": "none", "href": f"data:image/png;base64,{data}"}
        self._add("image", {**place, **more})

    def render(self) -> str:
        """Return the SVG document."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'width="{self.width:g}" height="{self.height:g}" role="img" aria-label={quoteattr(self.title)}>'
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", *self._shapes, "</svg>\n"])

    def _add(self, tag: str, attributes: Mapping[str, Number | str], content: str = "") -> None:
        def number(value: Number | str) -> str:
            return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")

        listed = " ".join(f"{name}={quoteattr(number(value))}" for name, value in attributes.items())
        self._shapes.append(f"<{tag} {listed}>{content}</{tag}>" if content else f"<{tag} {listed}/>")


def ticks(longest: float, count: int = 5) -> Sequence[float]:
    """Choose about `count` round values from 0 to `longest`: steps of 1, 2 or 5 times a power of ten."""
    rough = max(longest, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [round(i * step, 10) for i in range(int(longest / step + 1e-9) + 1)]
