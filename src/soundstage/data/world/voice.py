"""Sound of talking faces: glottal pulses and noise through a vocal tract that moves, exactly on time.

The source is a train of band-limited pulses, one per period; the tract is a cascade of resonances, applied in
short overlapping windows by Fourier transform. All faces are spoken at once.

Source: the source-filter theory of Fant 1960; resonances in cascade as in Klatt 1980, "Software for a
cascade/parallel formant synthesizer"; pulses as in Stilson & Smith 1996, "Alias-free digital synthesis".
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor

from soundstage.core.rng import generator
from soundstage.core.types import Waveform
from soundstage.data.world.face_speech import Track, Utterance

GRID = 1000  # points per second at which tracks are read
HOPS_PER_SECOND = 200
WINDOW_HOPS, SPAN_HOPS = 2, 8  # what a window takes in, and how long its resonance may ring

BANDWIDTHS = (70.0, 90.0, 130.0, 220.0, 300.0)  # Hz, of the five formants
UPPER_FORMANTS = (3500.0, 4500.0)  # Hz, of a low voice
NASAL_POLE, NASAL_WIDTH = 270.0, 120.0  # Hz
TILT = 300.0  # Hz above which glottal pulses fall by 6 dB per octave, radiation included

LEVEL = 0.19  # root mean square of a wide open vowel in the middle of the picture, before panning
CLOSED_LEVEL = 0.13  # of that, behind closed lips
BREATH_LEVEL = 0.4  # of that
NOISE_SHARPNESS = 0.32  # bandwidth of burst and hiss over their frequency
HIGHEST = 0.46  # of the sample rate; resonances above would fold back
NOISE_SECONDS = 8
PEAK = 0.9


@runtime_checkable
class Speaker(Protocol):
    """What the voice needs to know of a face."""

    @property
    def utterance(self) -> Utterance:
        """What is said, and when."""

    @property
    def pitch(self) -> float:
        """Of the voice, in Hz."""

    @property
    def tract(self) -> float:
        """Factor on all formants: the shorter the vocal tract, the higher."""

    @property
    def noise(self) -> int:
        """Where in a bank of noise breath and hiss begin."""

    @property
    def phase(self) -> float:
        """Of the vocal cords at time 0, in turns."""

    @property
    def pan(self) -> float:
        """Stereo position: 0 = left edge, 1 = right edge."""


def read_tracks(tracks: Sequence[Track], times: Float[Tensor, " n"]) -> Float[Tensor, "b n"]:
    """Read one track of each speaker at common times, as `Track.at` does."""
    longest = max(len(track.times) for track in tracks)
    rows = []
    for track in tracks:
        missing = longest - len(track.times)
        rows.append([*track.times, *[math.inf] * missing, *track.values, *track.values[-1:] * missing])
    keys = torch.tensor(rows, dtype=torch.float64).to(times.device)
    marks, values = keys[:, :longest].contiguous(), keys[:, longest:].float()
    wanted = times.double().expand(len(tracks), -1).contiguous()
    after = torch.searchsorted(marks, wanted, right=True)
    before = (after - 1).clamp_(min=0)
    after.clamp_(max=longest - 1)
    begin, end = marks.gather(1, before), marks.gather(1, after)
    length = (end - begin).nan_to_num(1.0).clamp_(min=1e-9)
    part = ((wanted - begin) / length).clamp_(0, 1).float()
    return torch.lerp(values.gather(1, before), values.gather(1, after), part * part * (3 - 2 * part))


def speak(
    speakers: Sequence[Speaker],
    *,
    duration: float,
    sample_rate: int,
    device: torch.device | str = "cpu",
) -> Waveform:
    """Make the stereo sound of the first `duration` seconds of each utterance."""
    device = torch.device(device)
    num_samples = round(duration * sample_rate)
    hop = round(sample_rate / HOPS_PER_SECOND)
    control = _Control(speakers, num_samples, sample_rate, device)
    voiced, breath, hiss = control.sources()
    frames = _Frames.where(voiced, breath, hiss, hop=hop)
    pulses = frames.cut(voiced + breath)
    noises = frames.cut(hiss)
    size = SPAN_HOPS * hop
    spectrum = torch.fft.rfft(pulses, size) * _tract(speakers, frames, sample_rate, size)
    spectrum += torch.fft.rfft(noises, size) * _place(speakers, frames, sample_rate, size)
    mono = frames.paste(torch.fft.irfft(spectrum, size), num_samples)
    pan = torch.tensor([speaker.pan for speaker in speakers], device=device) * (math.pi / 2)  # equal power
    gain = torch.stack((pan.cos(), pan.sin()), 1)
    return (mono[:, None] * gain[..., None]).clamp_(-PEAK, PEAK)


class _Control:
    """What the sources follow, read every millisecond and drawn out to every sample."""

    def __init__(
        self, speakers: Sequence[Speaker], num_samples: int, sample_rate: int, device: torch.device
    ) -> None:
        self.speakers = speakers
        self.num_samples = num_samples
        self.sample_rate = sample_rate
        self.times = torch.arange(math.ceil(num_samples / sample_rate * GRID) + 2, device=device) / GRID

    def sources(
        self,
    ) -> tuple[Float[Tensor, "b samples"], Float[Tensor, "b samples"], Float[Tensor, "b samples"]]:
        """Pulses of the voice, breath, and noise at the place of articulation."""
        said = [speaker.utterance for speaker in self.speakers]
        opening = self._read([one.aperture for one in said])
        voice = self._read([one.voice for one in said]) * (CLOSED_LEVEL + (1 - CLOSED_LEVEL) * opening)
        breath = self._read([one.breath for one in said])
        hiss = self._read([one.hiss for one in said])
        pulses = self._pulses([one.melody for one in said])
        white, other = self._white(0), self._white(1)
        return (
            pulses.mul_(self._draw_out(voice)),
            white.mul_(self._draw_out(breath) * BREATH_LEVEL),
            other.mul_(self._draw_out(hiss)),
        )

    def _white(self, number: int) -> Float[Tensor, "b samples"]:
        """Noise that begins at the speaker's place in the bank; source `number` is half a bank away."""
        bank = _noise(self.sample_rate, self.times.device)
        away = number * len(bank) // 2
        place = torch.tensor([(speaker.noise + away) % len(bank) for speaker in self.speakers])
        index = torch.arange(self.num_samples, device=self.times.device)
        return bank[(place.to(index)[:, None] + index) % len(bank)]

    def _read(self, tracks: Sequence[Track]) -> Float[Tensor, "b n"]:
        return read_tracks(tracks, self.times)

    def _draw_out(self, curve: Float[Tensor, "b n"]) -> Float[Tensor, "b samples"]:
        """Go from the grid to samples, linearly."""
        place = torch.arange(self.num_samples, device=curve.device, dtype=torch.float64)
        place = place * (GRID / self.sample_rate)
        whole = place.long()
        part = (place - whole).float()
        return torch.lerp(curve[:, whole], curve[:, whole + 1], part)

    def _pulses(self, melody: Sequence[Track]) -> Float[Tensor, "b samples"]:
        """One pulse per period with all harmonics below the Nyquist rate and mean power 1.

        The sum of M equal harmonics is a quotient of two sines.
        """
        device = self.times.device
        base = torch.tensor([speaker.pitch for speaker in self.speakers], device=device)[:, None]
        pitch = self._draw_out(self._read(melody) * base)  # Hz
        start = torch.tensor([speaker.phase for speaker in self.speakers], dtype=torch.float64)
        turns = (pitch.double() / self.sample_rate).cumsum(1) + start.to(device)[:, None]
        turns = (turns - turns.round()).float()  # in [-1/2, 1/2)
        harmonics = torch.floor(0.45 * self.sample_rate / pitch)
        near = turns.abs() < 1e-5
        angle = torch.where(near, torch.ones_like(turns), turns) * math.pi
        summed = torch.sin((2 * harmonics + 1) * angle) / torch.sin(angle)  # 1 + 2 sum of cosines
        summed = torch.where(near, 2 * harmonics + 1, summed)
        return (summed - 1) / torch.sqrt(2 * harmonics)


class _Frames(NamedTuple):
    """The windows in which anything sounds; silence costs nothing."""

    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]  # window k is centred on sample k * hop
    shape: tuple[int, int]  # of all windows: speakers, windows
    hop: int

    @classmethod
    def where(cls, *sources: Float[Tensor, "b samples"], hop: int) -> "_Frames":
        """Find the windows that hold sound of any source."""
        loud = torch.stack([source.abs() for source in sources]).amax(0)
        padded = F.pad(loud, (hop, hop + -loud.shape[1] % hop))
        blocks = padded.view(len(padded), -1, hop).amax(2)
        sounding = torch.maximum(blocks[:, :-1], blocks[:, 1:]) > 1e-6
        rows, columns = sounding.nonzero(as_tuple=True)
        return cls(rows, columns, (sounding.shape[0], sounding.shape[1]), hop)

    def cut(self, source: Float[Tensor, "b samples"]) -> Float[Tensor, "n window"]:
        """Take windows that overlap by half and sum to the source."""
        padded = F.pad(source, (self.hop, self.hop + -source.shape[1] % self.hop))
        windows = padded.unfold(1, WINDOW_HOPS * self.hop, self.hop)
        window = torch.hann_window(WINDOW_HOPS * self.hop, device=source.device)
        return windows[self.rows, self.columns] * window

    def paste(self, pieces: Float[Tensor, "n span"], num_samples: int) -> Float[Tensor, "b samples"]:
        """Add what the windows have become."""
        speakers, windows = self.shape
        blocks = pieces.new_zeros(speakers * (windows + SPAN_HOPS), self.hop)
        first = self.rows * (windows + SPAN_HOPS) + self.columns
        for number, part in enumerate(pieces.view(-1, SPAN_HOPS, self.hop).unbind(1)):
            blocks.index_add_(0, first + number, part)
        return blocks.view(speakers, -1)[:, self.hop : self.hop + num_samples]

    def read(self, tracks: Sequence[Track], sample_rate: int) -> Float[Tensor, " n"]:
        """Read each speaker's track at the centres of its windows."""
        device = self.rows.device
        centres = torch.arange(self.shape[1], device=device) * (self.hop / sample_rate)
        return read_tracks(tracks, centres)[self.rows, self.columns]


def _tract(
    speakers: Sequence[Speaker], frames: _Frames, sample_rate: int, size: int
) -> Complex[Tensor, "n bins"]:
    """Frequency response of each window's vocal tract, of unit power."""
    said = [speaker.utterance for speaker in speakers]
    tract = torch.tensor([speaker.tract for speaker in speakers], device=frames.rows.device)[frames.rows]
    moving = [frames.read([one.formants[number] for one in said], sample_rate) for number in range(3)]
    fixed = [torch.full_like(tract, frequency) for frequency in UPPER_FORMANTS]
    nose = frames.read([one.nose for one in said], sample_rate)
    zero = frames.read([one.antiresonance for one in said], sample_rate) * tract
    swallowed = torch.lerp(torch.full_like(zero, NASAL_POLE), zero, nose)
    bins = _Bins.of(size, sample_rate, tract.device)
    response = bins.pair(swallowed, NASAL_WIDTH * (1 + nose))
    response /= bins.pair(torch.full_like(zero, NASAL_POLE), torch.full_like(zero, NASAL_WIDTH))
    response /= 1 - math.exp(-2 * math.pi * TILT / sample_rate) * bins.delay
    for frequency, width in zip((*moving, *fixed), BANDWIDTHS, strict=True):
        response /= bins.pair(frequency * tract, torch.full_like(tract, width))
    return _levelled(response)


def _place(
    speakers: Sequence[Speaker], frames: _Frames, sample_rate: int, size: int
) -> Complex[Tensor, "n bins"]:
    """Frequency response of the narrow place where burst or hiss arises: two equal resonances."""
    centre = frames.read([speaker.utterance.hiss_pitch for speaker in speakers], sample_rate)
    bins = _Bins.of(size, sample_rate, centre.device)
    pair = bins.pair(centre, NOISE_SHARPNESS * centre)
    return _levelled((1 - bins.delay) / pair.square_())  # nothing at 0 Hz


class _Bins(NamedTuple):
    """The unit circle at the frequencies of a Fourier transform."""

    delay: Complex[Tensor, " bins"]  # 1/z
    sample_rate: int

    @classmethod
    def of(cls, size: int, sample_rate: int, device: torch.device) -> "_Bins":
        angle = torch.arange(size // 2 + 1, device=device, dtype=torch.float32) * (2 * math.pi / size)
        return cls(torch.polar(torch.ones_like(angle), -angle), sample_rate)

    def pair(self, frequency: Float[Tensor, " n"], width: Float[Tensor, " n"]) -> Complex[Tensor, "n bins"]:
        """Evaluate the polynomial in 1/z with a pair of roots at `frequency`, `width` inside the circle.

        Each pair is evaluated by itself: the coefficients of their product cancel to nothing in float32.
        """
        radius = torch.exp(-math.pi / self.sample_rate * width)[:, None]
        angle = 2 * math.pi * (frequency / self.sample_rate).clamp(max=HIGHEST)[:, None]
        root = torch.polar(radius, angle)
        return (1 - root * self.delay) * (1 - root.conj() * self.delay)


def _levelled(response: Complex[Tensor, "n bins"]) -> Complex[Tensor, "n bins"]:
    """Scale so that what comes in with power 1 comes out with that of `LEVEL`."""
    power = response.abs().square().mean(1, keepdim=True)
    return response * (LEVEL / power.sqrt())


@lru_cache(maxsize=8)
def _noise(sample_rate: int, device: torch.device) -> Float[Tensor, " samples"]:
    """White noise with root mean square 1, the same on every device."""
    count = NOISE_SECONDS * sample_rate
    return torch.randn(count, generator=generator(0, "world.voice")).to(device)
