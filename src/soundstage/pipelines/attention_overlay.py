"""Where each moment of sound looks, drawn over the clip: as a film with its sound, and as a row of stills.

For every frame, the attention of the sound of that moment to the picture's tokens of that moment. It is shown
as a multiple of an even share within the frame: what gets less than its share stays grey, what gets more
glows.
"""

import math
from collections.abc import Iterator
from fractions import Fraction

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from soundstage.core.geometry import num_audio_samples
from soundstage.media.colour_map import colours
from soundstage.media.svg import FAINT, Drawing
from soundstage.media.video import Frames, to_frames
from soundstage.pipelines.attention_figures import TITLES
from soundstage.pipelines.attention_recorder import AttentionMaps
from soundstage.pipelines.generation import Generation

LEAST_SIDE = 256  # pixels; smaller clips are enlarged
STRIP = 64  # pixels; height of the waveform under the film
GAP = 8
_DAY = (250, 250, 252)
_NIGHT, _WAVE, _PLAYED = (14, 14, 20), (84, 84, 104), (250, 188, 66)
_LEAST_TOP = 2.0  # smallest multiple at which the glow is brightest
_NUM_STILLS = 6
_QUIET = 0.0025  # of the loudest frame's power, -26 dB

Heat = Float[Tensor, "frames h w"]
Colour = tuple[int, int, int]


def heat_of(maps: AttentionMaps, num_frames: int, frame_rate: Fraction) -> Heat:
    """Say where the sound of each frame's moment looks within that frame; 1 is an even share."""
    seconds = (torch.arange(num_frames, dtype=torch.float32) + 0.5) / float(frame_rate)
    rows = _between(maps.look, maps.audio_times.mean(-1), seconds)  # (frames, f, h, w)
    own = _between(torch.eye(len(maps.video_times)), maps.video_times.mean(-1), seconds)  # (frames, f)
    now = torch.einsum("nfhw,nf->nhw", rows, own)
    return now / now.mean((1, 2), keepdim=True)


def film(clip: Generation, heat: Heat) -> Iterator[Frames]:
    """Draw frame after frame: the clip, the clip with what the sound looks at, the waveform underneath."""
    top, level = _top(heat), None
    for index in range(len(heat)):
        picture = _picture(clip, index)
        glowing = _glow(picture, heat[index], top)
        gap = _block(picture.shape[0], GAP, _NIGHT)
        above = torch.cat([picture, gap, glowing], dim=1)
        level = _level(_sound(clip), above.shape[1]) if level is None else level
        frame = torch.cat([above, _wave(level, STRIP, (index + 0.5) / len(heat))])
        yield F.pad(frame.permute(2, 0, 1), _to_even(frame)).permute(1, 2, 0)[None]


def stills(clip: Generation, heat: Heat) -> str:
    """Draw the loudest moments, early to late, and where in the waveform they lie."""
    moments = loudest(_sound(clip), len(heat), _NUM_STILLS)
    side = 168.0
    _, _, rows, columns = _pixels(clip).shape
    height = side * rows / columns
    width = len(moments) * (side + 10) - 10
    drawing = Drawing(width + 48, height + 196, "Where the sound looks at its loudest moments")
    drawing.text(24, 34, TITLES["audio"], size=19, bold=True)
    drawing.text(24, 54, "at the loudest moments; what glows gets more than an even share", fill=FAINT)
    drawing.image(24, 70, width, 56, _wave(_level(_sound(clip), round(2 * width)), 112, 0.0, _DAY))
    for number, index in enumerate(moments):
        x, place = 24 + number * (side + 10), 24 + width * (index + 0.5) / len(heat)
        drawing.line((place, 70), (place, 126), stroke="#a82c5c", width=1.5)
        drawing.line((place, 126), (x + side / 2, 146), stroke="#a82c5c", width=0.8)
        drawing.image(x, 146, side, height, _glow(_picture(clip, index, 2.5 * side), heat[index], _top(heat)))
        seconds = (index + 0.5) / float(clip.frame_rate)
        drawing.text(x + side / 2, 146 + height + 18, f"{seconds:.2f} s", anchor="middle")
    return drawing.render()


def loudest(waveform: Float[Tensor, "ch samples"], num_frames: int, count: int) -> list[int]:
    """Choose the frames with the loudest sound around them, in order; near-silent ones are left out."""
    level = F.adaptive_avg_pool1d(waveform.square().mean(0)[None], num_frames)[0]
    apart = max(num_frames // (2 * count), 1)
    around = F.max_pool1d(level[None], 2 * apart + 1, stride=1, padding=apart)[0]
    peaks = ((level == around) & (level >= _QUIET * level.max())).nonzero()[:, 0]
    chosen: list[int] = []
    for index in peaks[level[peaks].argsort(descending=True, stable=True)].tolist():
        if all(abs(index - other) > apart for other in chosen):  # a level that stays has many peaks
            chosen.append(index)
    return sorted(chosen[:count])


def _pixels(clip: Generation) -> Float[Tensor, "3 f h w"]:
    assert clip.pixels is not None
    return clip.pixels


def _sound(clip: Generation) -> Float[Tensor, "2 samples"]:
    """Return the sound, silence for a silent clip."""
    if clip.waveform is not None:
        return clip.waveform
    return torch.zeros(2, num_audio_samples(_pixels(clip).shape[1], clip.frame_rate, clip.sample_rate))


def _between(table: Float[Tensor, "n *rest"], times: Tensor, seconds: Tensor) -> Float[Tensor, "m *rest"]:
    """Read rows of a table between the times they stand for."""
    if len(times) == 1:
        return table.expand(len(seconds), *table.shape[1:])
    low = (torch.searchsorted(times.contiguous(), seconds) - 1).clamp(0, len(times) - 2)
    part = ((seconds - times[low]) / (times[low + 1] - times[low])).clamp(0, 1)
    part = part.view(-1, *[1] * (table.ndim - 1))
    return torch.lerp(table[low], table[low + 1], part)


def _top(heat: Heat) -> float:
    """Choose the multiple at which the glow is brightest, the same for the whole clip."""
    step = heat.numel() // 2**23 + 1
    return max(float(heat.flatten()[::step].quantile(0.995)), _LEAST_TOP)


def _picture(clip: Generation, index: int, widest: float = math.inf) -> UInt8[Tensor, "h w 3"]:
    """Take a frame of the clip; a small one is enlarged, one wider than `widest` made smaller."""
    frame = _pixels(clip)[:, index : index + 1].transpose(0, 1)
    factor = -(-LEAST_SIDE // min(frame.shape[2:]))
    if factor > 1:
        frame = F.interpolate(frame, scale_factor=factor, mode="bicubic")
    if frame.shape[3] > widest:
        frame = F.interpolate(frame, scale_factor=widest / frame.shape[3], mode="area")
    return to_frames(frame.transpose(0, 1))[0]


def _glow(
    picture: UInt8[Tensor, "h w 3"], heat: Float[Tensor, "rows columns"], top: float
) -> UInt8[Tensor, "h w 3"]:
    """Lay heat over a greyed picture, smoothly between the middles of its cells."""
    size = (picture.shape[0], picture.shape[1])
    spread = F.interpolate(heat[None, None], size=size, mode="bicubic")[0, 0]
    strength = ((spread - 1) / (top - 1)).clamp(0, 1)
    light = picture.float() @ torch.tensor([0.2126, 0.7152, 0.0722])
    grey = (0.55 * light)[..., None].expand(-1, -1, 3)
    glow = colours(0.25 + 0.75 * strength).float()
    return torch.lerp(grey, glow, 0.85 * strength.sqrt()[..., None]).round().to(torch.uint8)


def _level(waveform: Float[Tensor, "ch samples"], width: int) -> Float[Tensor, " width"]:
    """Measure the sound for each column of a drawing; the loudest has 1."""
    level = F.adaptive_max_pool1d(waveform.abs().amax(0)[None], width)[0]
    return level / level.max().clamp(min=1e-6)


def _wave(
    level: Float[Tensor, " width"], height: int, played: float, paper: Colour = _NIGHT
) -> UInt8[Tensor, "height width 3"]:
    """Draw the sound, the part that was played in another colour."""
    width = len(level)
    middle = (torch.arange(height) + 0.5 - height / 2).abs() / (height / 2)
    inside = middle[:, None] <= (level * 0.92).clamp(min=1.2 / height)[None]
    past = torch.arange(width)[None] < played * width
    picture = _block(height, width, paper)
    picture[inside & ~past] = torch.tensor(_WAVE, dtype=torch.uint8)
    picture[inside & past] = torch.tensor(_PLAYED, dtype=torch.uint8)
    return picture


def _block(height: int, width: int, colour: Colour) -> UInt8[Tensor, "height width 3"]:
    return torch.tensor(colour, dtype=torch.uint8).expand(height, width, 3).clone()


def _to_even(frame: Tensor) -> tuple[int, int, int, int]:
    """Say how to pad a frame to even sides, which every player shows."""
    return 0, frame.shape[1] % 2, 0, frame.shape[0] % 2
