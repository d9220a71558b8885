"""Draw a measured clip for the report: frames over its spectrogram, on one time axis, with what was found."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from soundstage.dsp.stft import hann_window
from soundstage.evaluation.detectors.events import EVENTS, seen_events
from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.observation import Observation

Picture = UInt8[Tensor, "height width 3"]
Levels = Float[Tensor, "bins columns"]

NUM_FRAMES = 12
FRAME_HEIGHT, SOUND_HEIGHT, MARK_HEIGHT = 64, 72, 5  # pixels
SHEET_GAP = 10  # pixels between the clips of a contact sheet
DYNAMICS = 70.0  # dB that the spectrogram shows
SHADES = ((0, 0, 12), (80, 18, 123), (182, 55, 122), (251, 136, 97), (252, 253, 191))
IMPACT, ONSET, GAP = (255, 80, 40), (40, 200, 255), (16, 16, 20)


def overview(seen: Observation, expected: Expected) -> Picture:
    """Show frames across the clip, marks of what is seen to happen, marks of onsets, then the spectrogram."""
    frames = _frames(seen)
    width = frames.shape[1]
    duration = seen.duration
    has_events = expected.get("kind") in EVENTS
    events = [event.time / duration for event in seen_events(seen, expected)] if has_events else []
    onsets = [onset.time / duration for onset in seen.find(find_onsets)]
    marks = [_marks(events, width, IMPACT), _marks(onsets, width, ONSET)]
    return torch.cat((frames, *marks, _spectrogram(seen, width)))


def contact_sheet(pictures: Sequence[bytes]) -> bytes:
    """Put pictures of clips, as PNG, below each other into one."""
    import av

    decoded = []
    for data in pictures:
        codec = av.CodecContext.create("png", "r")
        (frame,) = codec.decode(av.Packet(data))
        decoded.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
    width = max(picture.shape[1] for picture in decoded)
    rows = []
    for picture in decoded:
        row = torch.full((picture.shape[0] + SHEET_GAP, width, 3), 255, dtype=torch.uint8)
        row[: picture.shape[0], : picture.shape[1]] = picture
        rows.append(row)
    return png(torch.cat(rows)[:-SHEET_GAP])


def png(picture: Picture) -> bytes:
    """Encode a picture as a PNG file's bytes."""
    import av

    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width = picture.shape[:2]
    codec.pix_fmt = "rgb24"
    codec.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(picture.contiguous().numpy(), format="rgb24")
    packets = [*codec.encode(frame), *codec.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


def _frames(seen: Observation) -> Picture:
    """Put evenly spaced frames side by side; each stands in the middle of the time it covers."""
    count = len(seen.pictures)
    chosen = [min(int((index + 0.5) * count / NUM_FRAMES), count - 1) for index in range(NUM_FRAMES)]
    pictures = seen.pictures[chosen].permute(0, 3, 1, 2)
    width = max(round(FRAME_HEIGHT * pictures.shape[3] / pictures.shape[2]), 1)
    scaled = F.interpolate(pictures, (FRAME_HEIGHT, width), mode="area")
    row = scaled.permute(2, 0, 3, 1).reshape(FRAME_HEIGHT, -1, 3)
    return row.round().clamp(0, 255).to(torch.uint8)


def _marks(places: Sequence[float], width: int, colour: tuple[int, int, int]) -> Picture:
    """Draw a line of ticks at shares of the width."""
    strip = torch.tensor(GAP, dtype=torch.uint8).repeat(MARK_HEIGHT, width, 1)
    for place in places:
        column = min(max(round(place * width), 1), width - 1)
        strip[:, column - 1 : column + 1] = torch.tensor(colour, dtype=torch.uint8)
    return strip


def _spectrogram(seen: Observation, width: int) -> Picture:
    """Draw both channels together up to 8 kHz, low tones below."""
    window = 512
    hop = max(seen.waveform.shape[1] // width, 1)
    padded = F.pad(seen.waveform, (window // 2, window // 2 + hop * 2))
    shape = hann_window(window).float()
    spectrum = torch.stft(padded, window, hop, window, shape, center=False, return_complex=True)
    power = spectrum.abs().square().sum(0)[:, :width]
    levels = 10 * torch.log10(power + 1e-10)
    bright = ((levels - levels.max()) / DYNAMICS + 1).clamp(0, 1)
    edges = torch.logspace(0, 1, SOUND_HEIGHT + 1)  # from low to high on a bent scale
    bins = ((edges - 1) / 9 * (len(bright) - 1)).long()
    rows = [bright[low : max(high, low + 1)].amax(0) for low, high in pairwise(bins.tolist())]
    image = F.interpolate(torch.stack(rows[::-1])[None, None], (SOUND_HEIGHT, width))[0, 0]
    return _shade(image)


def _shade(bright: Levels) -> Picture:
    """Colour from dark to light."""
    shades = torch.tensor(SHADES, dtype=torch.float32)
    place = bright * (len(shades) - 1)
    low = place.long().clamp(max=len(shades) - 2)
    mixed = torch.lerp(shades[low], shades[low + 1], (place - low)[..., None])
    return mixed.round().to(torch.uint8)
