"""Attention maps as figures: which moment attends to which, and how far from its own time.

Shares of attention are shown as multiples of an even share, so that 1 means "no preference" whatever the
length of the clip.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.media.colour_map import colours
from soundstage.media.svg import FAINT, INK, Drawing, ticks
from soundstage.models.transformer.config import Stream
from soundstage.pipelines.attention_recorder import AttentionMaps

TITLES: dict[Stream, str] = {
    "audio": "Sound looks at the picture",
    "video": "The picture listens to the sound",
}
ROWS: dict[Stream, str] = {
    "audio": "each row is a moment of sound, each column a moment of the picture it looks at",
    "video": "each row is a moment of the picture, each column a moment of sound it listens to",
}
STRENGTH = "attention, as a multiple of an even share"
_PIXELS = 240  # of one map along each axis
_LEAST_TOP = 2.0  # smallest top of a colour scale: below it, differences are not blown up
_COLOURS: dict[Stream, str] = {"audio": "#a82c5c", "video": "#2f6f8f"}
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def time_maps(maps: AttentionMaps, reader: Stream) -> str:
    """Draw which moment of the other stream each moment attends to: the mean large, each block small."""
    own, seen, shares = _sides(maps, reader)
    even = shares * shares.shape[-1]
    top = max(_quantiles(even, [0.998])[0], _LEAST_TOP)
    side, gap, left, head = 104.0, 12.0, 356.0, 92.0
    columns = min(max(math.ceil(math.sqrt(len(even) * 1.5)), 3), 10)
    rows = math.ceil(len(even) / columns)
    height = head + max(rows * (side + gap + 14), 300) + 56
    drawing = Drawing(left + columns * (side + gap) + 20, height, f"{TITLES[reader]}: time against time")
    drawing.text(24, 34, TITLES[reader], size=19, bold=True)
    drawing.text(24, 54, ROWS[reader], fill=FAINT)
    axes = ("time of the picture, s", "time of the sound, s")
    large = _Panel(64.0, head, 250.0, maps.duration)
    large.draw(drawing, even.mean(0), own, seen, top, axes=axes if reader == "audio" else axes[::-1])
    drawing.text(64, head - 8, "all blocks", size=12, bold=True)
    for block, table in enumerate(even):
        x = left + block % columns * (side + gap)
        y = head + block // columns * (side + gap + 14)
        _Panel(x, y, side, maps.duration).draw(drawing, table, own, seen, top)
        drawing.text(x, y - 5, f"block {block}", size=10)
    _scale(drawing, 64.0, height - 28, 250.0, top)
    return drawing.render()


def distances(maps: AttentionMaps) -> str:
    """Draw how far from its own time each block attends, next to what even attention would give."""
    chances = {reader: float(maps.chance(reader).median()) for reader in TITLES}
    figures = {reader: maps.distance(reader) for reader in TITLES}
    highest = [_quantiles(values, [0.95])[0] for per_block in figures.values() for values in per_block]
    top, blocks = 1.04 * max(*highest, *chances.values()), len(maps.looking)
    width = max(26.0 * blocks, 300.0)
    drawing = Drawing(2 * width + 180, 410, "Distance in time between what attends and what it attends to")
    drawing.text(24, 34, "How far from its own time each block attends", size=19, bold=True)
    drawing.text(
        24, 54, "|mean time attended to - own time|: box 25-75 %, whiskers 5-95 %; dots: the heads' medians; "
        "dashed: even attention", fill=FAINT,
    )  # fmt: skip
    for index, (reader, values) in enumerate(figures.items()):
        plot = _Plot(70 + index * (width + 70), 100.0, width, 240.0, top)
        plot.axes(drawing, TITLES[reader], blocks)
        plot.reference(drawing, chances[reader])
        for block, per_head in enumerate(values):
            plot.box(drawing, (block + 0.5) / blocks, width / blocks, per_head, _COLOURS[reader])
    return drawing.render()


def on_clock(
    table: Float[Tensor, "queries keys"], own: Tensor, seen: Tensor, duration: float, size: int = _PIXELS
) -> Float[Tensor, "size size"]:
    """Spread a table over even clocks: tokens last differently long. Rows run from late to early."""
    clock = (torch.arange(size) + 0.5) / size * duration
    rows = torch.searchsorted(own[:, 1].contiguous(), clock, right=True).clamp(max=len(own) - 1)
    columns = torch.searchsorted(seen[:, 1].contiguous(), clock, right=True).clamp(max=len(seen) - 1)
    return table[rows.flip(0)][:, columns]


def _quantiles(values: Tensor, at: Sequence[float]) -> list[float]:
    """Return quantiles; of a tensor too large for `Tensor.quantile`, those of an even part of it."""
    part = values.flatten()[:: values.numel() // 2**23 + 1]
    found: list[float] = part.quantile(torch.tensor(at)).tolist()
    return found


def _sides(maps: AttentionMaps, reader: Stream) -> tuple[Tensor, Tensor, Tensor]:
    """Return the reader's times, those of what it reads, and the shares per block."""
    if reader == "audio":
        return maps.audio_times, maps.video_times, maps.looking
    return maps.video_times, maps.audio_times, maps.listening


@dataclass(frozen=True)
class _Panel:
    """One map: time against time, early at the lower left."""

    x: float
    y: float
    side: float
    duration: float

    def draw(
        self, drawing: Drawing, table: Tensor, own: Tensor, seen: Tensor, top: float,
        axes: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        x, y, side = self.x, self.y, self.side
        drawing.image(x, y, side, side, colours(on_clock(table, own, seen, self.duration) / top))
        drawing.line((x, y + side), (x + side, y), stroke="#ffffff", width=0.8, dash="3 4")
        for second in ticks(self.duration, 4):
            place = second / self.duration * side
            length = 4 if axes else 3
            drawing.line((x + place, y + side), (x + place, y + side + length), stroke=FAINT)
            drawing.line((x, y + side - place), (x - length, y + side - place), stroke=FAINT)
            if axes:
                drawing.text(x + place, y + side + 16, f"{second:g}", size=10, anchor="middle")
                drawing.text(x - 8, y + side - place + 3.5, f"{second:g}", size=10, anchor="end")
        if axes:
            drawing.text(x + side / 2, y + side + 34, axes[0], anchor="middle")
            drawing.text(x - 34, y + side / 2, axes[1], anchor="middle", turned=True)


def _scale(drawing: Drawing, x: float, y: float, width: float, top: float) -> None:
    """Draw the colour scale."""
    drawing.image(x, y - 8, width, 8, colours(torch.linspace(0, 1, 256)[None]))
    for value in ticks(top, 4):
        place = x + value / top * width
        drawing.line((place, y), (place, y + 3), stroke=FAINT)
        drawing.text(place, y + 14, f"{value:g}", size=9, anchor="middle")
    drawing.text(x + width + 14, y, STRENGTH, size=10, fill=FAINT)


@dataclass(frozen=True)
class _Plot:
    """One plot of distances over blocks."""

    x: float
    y: float
    width: float
    height: float
    top: float  # seconds

    def axes(self, drawing: Drawing, title: str, blocks: int) -> None:
        drawing.text(self.x, self.y - 14, title, size=13, bold=True)
        for second in ticks(self.top):
            y = self._place(second)
            drawing.line((self.x, y), (self.x + self.width, y), stroke="#e6e6ee")
            drawing.text(self.x - 8, y + 3.5, f"{second:g}", size=10, anchor="end")
        every = math.ceil(blocks / 16)
        for block in range(0, blocks, every):
            x = self.x + (block + 0.5) / blocks * self.width
            drawing.text(x, self.y + self.height + 16, str(block), size=10, anchor="middle")
        drawing.text(self.x + self.width / 2, self.y + self.height + 36, "block", anchor="middle")
        drawing.text(self.x - 44, self.y + self.height / 2, "seconds", anchor="middle", turned=True)

    def reference(self, drawing: Drawing, chance: float) -> None:
        y = self._place(chance)
        drawing.line((self.x, y), (self.x + self.width, y), stroke=INK, width=1.2, dash="5 4")

    def box(self, drawing: Drawing, place: float, room: float, per_head: Tensor, colour: str) -> None:
        x, half = self.x + place * self.width, min(room * 0.32, 16)
        low, first, middle, third, high = (self._place(q) for q in _quantiles(per_head, _QUANTILES))
        drawing.line((x, low), (x, high), stroke=colour)
        drawing.rect(x - half, third, 2 * half, first - third, fill="#f4f0f4", stroke=colour)
        drawing.line((x - half, middle), (x + half, middle), stroke=colour, width=2)
        medians = per_head.median(-1).values.tolist()
        for head, value in enumerate(medians):
            shift = (head / max(len(medians) - 1, 1) - 0.5) * 1.3 * half
            drawing.dot(x + shift, self._place(value), 1.9, fill=colour, opacity=0.75)

    def _place(self, seconds: float) -> float:
        return self.y + self.height * (1 - min(seconds / self.top, 1.0))
