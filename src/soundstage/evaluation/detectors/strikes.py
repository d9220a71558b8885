"""See strikes: drum pads and bells light up at the moment they are struck."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from soundstage.data.world import pad
from soundstage.data.world.kind import COLOURS
from soundstage.evaluation.detectors.strikes_glow import find_blows
from soundstage.evaluation.detectors.ticks import turns_of
from soundstage.evaluation.observation import Observation, Pictures

LIT_SHARE = 0.45  # of the greatest rise in brightness that a lit pixel of a pad shows
LEAST_RISE = 25.0  # 8-bit steps, mean of the channels
LEAST_CORE = 0.004  # picture heights squared; that of the smallest pad has 0.03
EDGE = 0.031  # picture heights of a pad's edge that also show what is around it
LEAST_GLOW = 0.25  # of a fresh one
GLOW_STEPS = 111  # from 0 to 1.1
CLIP = 6.0  # 8-bit steps between two frames; larger changes say no more
LEAST_BRIGHTENING, BRIGHTENING_SHARE = 0.08, 0.4  # of them, mean over the picture; of the clip's greatest
SMOOTH, INSIDE = 5, 0.7  # pixels; share of the greatest mean rise that what is struck shows
FLASH_APART = 3  # frames
NEAR = 0.09  # s between a flash and the turn that belongs to it
DARK, CHROMA_STEPS, LIGHT_SHARE = 30.0, 150.0, 0.05  # how colour is told from brightness, in 8-bit steps


@dataclass(frozen=True, kw_only=True)
class SeenStrike:
    """Something that lights up because it was struck."""

    time: float  # s
    x: float  # picture heights from the left edge
    y: float  # picture heights from the top
    colour: str  # name in `COLOURS`


def find_pad_hits(seen: Observation) -> tuple[SeenStrike, ...]:
    """List the hits on all pads of a clip, in order of time."""
    pictures = seen.pictures
    height = pictures.shape[1]
    rest = pictures.quantile(0.2, 0)  # (height, width, 3)
    rise = (pictures - rest).mean(-1)
    greatest = rise.max(0).values
    if float(greatest.max()) < LEAST_RISE:
        return ()
    labels = _components(greatest > LIT_SHARE * greatest.max().clamp_min(LEAST_RISE))
    found = []
    for label in sorted(set(labels.flatten().tolist())):
        core = _core(labels == label)
        if label == 0 or int(core.sum()) < LEAST_CORE * height**2:
            continue  # light around a pad is a thin ring
        y, x = (core.nonzero().float().mean(0) + 0.5).div(height).tolist()
        colours = pictures[:, core].mean(1)  # (frames, 3)
        still = rest[core].mean(0)
        glow = _pad_glow(colours, still)
        for blow in find_blows(glow, seen.times.numpy(), fade=pad.GLOW_TIME, least=LEAST_GLOW, fresh=1.0):
            found.append(SeenStrike(time=blow.time, x=x, y=y, colour=_nearest_colour(still / pad.DIM)))
    return tuple(sorted(found, key=lambda strike: strike.time))


def _core(inside: Bool[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """Leave out the pixels at the edge."""
    edge = max(round(EDGE * len(inside)), 1)
    outside = F.max_pool2d((~inside).float()[None, None], 2 * edge + 1, 1, edge)[0, 0] > 0
    return inside & ~outside


def _pad_glow(colours: Float[Tensor, "frames 3"], still: Float[Tensor, "3"]) -> Float[np.ndarray, " frames"]:
    """How much a pad glows in each frame: the glow with which it would look most alike."""
    full = (still / (255 * pad.DIM)).clamp(0, 1)
    glow = torch.linspace(0, 1.1, GLOW_STEPS)[:, None]
    lit = full * (pad.DIM + (1 - pad.DIM) * glow)
    looks = 255 * (lit + (1 - lit) * pad.FLASH * glow)  # (steps, 3)
    nearest = torch.cdist(colours, looks).argmin(1)
    return glow[nearest, 0].double().numpy()


def find_bell_strikes(seen: Observation) -> tuple[SeenStrike, ...]:
    """List the strikes of a bell in order of time.

    In which frame comes from the share of the picture that brightens at once, for what a swinging bell covers
    on one side it uncovers on the other. When between that frame and the one before comes from where the bell
    turns round, seen in its colour, which does not know how brightly it shines.
    """
    light = seen.pictures.mean(-1)  # (frames, height, width)
    rise = light[1:] - light[:-1]
    brightening = rise.clamp(-CLIP, CLIP).mean((1, 2))
    limit = max(LEAST_BRIGHTENING, BRIGHTENING_SHARE * float(brightening.max()))
    around = F.max_pool1d(brightening[None], 2 * FLASH_APART + 1, 1, FLASH_APART)[0]
    flashes = torch.nonzero((brightening > limit) & (brightening == around))[:, 0].tolist()
    if not flashes:
        return ()
    times = seen.times.numpy()
    turns = [turn.time for turn in turns_of(_chroma(seen.pictures), times)]
    found = []
    for before in flashes:
        early, late = float(times[before]), float(times[before + 1])
        middle = (early + late) / 2
        turn = min(turns, key=lambda time: abs(time - middle), default=middle)
        if abs(turn - middle) < NEAR:
            time = min(max(turn, early), late)
        elif _is_between(middle, turns):
            continue
        else:
            time = middle
        found.append((before, time))
    if not found:
        return ()
    x, y, colour = _brightening_thing(rise, seen.pictures, [before for before, _ in found])
    return tuple(SeenStrike(time=time, x=x, y=y, colour=colour) for _, time in found)


def _is_between(time: float, turns: Sequence[float]) -> bool:
    """Whether a time lies between two turns that have none between them."""
    gaps = [after - before for before, after in pairwise(turns)]
    return any(
        before < time < after and after - before < 1.4 * float(np.median(gaps))
        for before, after in pairwise(turns)
    )


def _chroma(pictures: Pictures) -> Pictures:
    """Colour without brightness, and a little brightness for what has no colour."""
    light = pictures.mean(-1, keepdim=True)
    return (pictures - light) / (light + DARK) * CHROMA_STEPS + LIGHT_SHARE * light


def _brightening_thing(
    rise: Float[Tensor, "steps height width"], pictures: Pictures, flashes: Sequence[int]
) -> tuple[float, float, str]:
    """Find the middle and the colour of what brightens every time; its edges do so on one side only."""
    mean = rise[list(flashes)].clamp(-CLIP, CLIP).mean(0)
    smooth = F.avg_pool2d(mean[None], SMOOTH, 1, SMOOTH // 2)[0]  # a coder's noise is no light
    inside = smooth > INSIDE * smooth.max()
    y, x = (inside.nonzero().float().mean(0) + 0.5).div(rise.shape[1]).tolist()
    return x, y, _nearest_colour(pictures[list(flashes)][:, inside].flatten(0, 1).median(0).values)


def _nearest_colour(colour: Float[Tensor, "3"]) -> str:
    """Name a colour by its direction first, for how bright it is depends on the light."""
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    turned = 1 - F.cosine_similarity(palette, colour[None])
    return list(COLOURS)[int(turned.argmin())]


def _components(mask: Bool[Tensor, "height width"]) -> Int[Tensor, "height width"]:
    """Number the connected parts of a mask, 0 outside: every pixel takes its neighbours' highest number."""
    labels = torch.where(mask, torch.arange(1, mask.numel() + 1).view(mask.shape), 0).double()
    for _ in range(math.prod(mask.shape)):
        spread = F.max_pool2d(labels[None, None], 3, 1, 1)[0, 0] * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    return labels.long()
