"""How much the codecs lose, part by part: both VAEs and the vocoder on held-out clips of the world.

Here, and only here, tensors are compared instead of files: what a part of the model loses is to be told apart
from what H.264 and AAC lose.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.core.progress import OnProgress, Progress
from soundstage.core.types import LogMel, VideoPixels, Waveform
from soundstage.data.world.sample import WorldConfig
from soundstage.dsp.mel import log_mel
from soundstage.dsp.resample import resample
from soundstage.evaluation.cases import Case
from soundstage.evaluation.sources import render
from soundstage.evaluation.statistics import Estimate, Pool, Rows, estimate, mean, mean_magnitude
from soundstage.pipelines.pipeline import Pipeline

MOTION_THRESHOLD = 0.1  # of [-1, 1]; what moves differs from the clip's median frame by more
SSIM_WINDOW, SSIM_DEVIATION = 11, 1.5  # pixels
RESOLUTIONS = (64, 128, 256, 512, 1024, 2048)  # samples per window
MAGNITUDE_FLOOR = 1e-3  # what lies 60 dB below full scale counts little
RISE = (0.025, 0.010)  # s before and after an event in which its attack is looked at
ENVELOPE = 0.001  # s over which an envelope is averaged
AUDIBLE_RISE = 0.01  # root mean square that an event must add, or its attack is not looked at
RING = (0.015, 0.125)  # s after an event in which its pitch is heard
PROMINENCE = 30.0  # factor of a peak's power over the median that makes it a pitch
NEIGHBOURHOOD = 120.0  # cents around the true pitch in which the other is sought

Sound = Float[Tensor, " samples"]
OtherSound = Float[Tensor, " others"]


@dataclass(frozen=True, kw_only=True)
class CodecMetric:
    """One line of the codec report."""

    title: str
    better: str
    pool: Pool
    unit: str = ""
    digits: int = 1


CODEC_METRICS: dict[str, CodecMetric] = {
    "psnr": CodecMetric(title="video VAE: PSNR", better="high", pool=mean, unit="dB"),
    "psnr_moving": CodecMetric(
        title="video VAE: PSNR where things move", better="high", pool=mean, unit="dB"
    ),
    "ssim": CodecMetric(title="video VAE: SSIM", better="high", pool=mean, digits=3),
    "ssim_moving": CodecMetric(title="video VAE: SSIM where things move", better="high", pool=mean, digits=3),
    "mel_l1": CodecMetric(title="audio VAE: log-mel L1", better="low", pool=mean, digits=3),
    "stft_l1": CodecMetric(
        title="vocoder: log-STFT L1, mean of 6 resolutions", better="low", pool=mean, digits=3
    ),
    "onset_smear": CodecMetric(title="vocoder: onset smear", better="low", pool=mean, unit="ms"),
    "pitch_error": CodecMetric(
        title="vocoder: pitch, mean distance", better="low", pool=mean_magnitude, unit="cents"
    ),
    "decoded_stft_l1": CodecMetric(
        title="audio VAE and vocoder: log-STFT L1", better="low", pool=mean, digits=3
    ),
    "decoded_onset_smear": CodecMetric(
        title="audio VAE and vocoder: onset smear", better="low", pool=mean, unit="ms"
    ),
    "decoded_pitch_error": CodecMetric(
        title="audio VAE and vocoder: pitch, mean distance", better="low", pool=mean_magnitude, unit="cents"
    ),
}

ClipLosses = Mapping[str, Rows]


@dataclass(frozen=True, kw_only=True)
class CodecResult:
    """What the codecs lose, clip by clip."""

    clips: tuple[tuple[str, ClipLosses], ...]  # kind of scene, evidence

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of scenes, in order."""
        return tuple(dict.fromkeys(kind for kind, _ in self.clips))

    def estimate(self, metric: str, kind: str = "") -> Estimate:
        """Pool the clips of a kind, or all."""
        rows = [losses[metric] for of, losses in self.clips if kind in ("", of)]
        return estimate(rows, CODEC_METRICS[metric].pool)

    def to_dict(self) -> dict[str, Any]:
        """Write as plain data."""
        return {
            "metrics": {name: asdict(self.estimate(name)) for name in CODEC_METRICS},
            "kinds": {
                kind: {name: asdict(self.estimate(name, kind)) for name in CODEC_METRICS}
                for kind in self.kinds
            },
            "clips": [
                {
                    "kind": kind,
                    "evidence": {name: [list(row) for row in rows] for name, rows in losses.items()},
                }
                for kind, losses in self.clips
            ],
        }


def measure_codec(
    pipeline: Pipeline,
    cases: Sequence[Case],
    config: WorldConfig,
    *,
    on_progress: OnProgress | None = None,
) -> CodecResult:
    """Pass the scenes of cases through both VAEs and the vocoder."""
    began = time.monotonic()
    clips = []
    for case in cases:
        clips.append((case.kind, _losses(pipeline, case, config)))
        if on_progress is not None:
            seconds = time.monotonic() - began
            on_progress(
                Progress(stage="measure codecs", step=len(clips), num_steps=len(cases), seconds=seconds)
            )
    return CodecResult(clips=tuple(clips))


@torch.no_grad()
def _losses(pipeline: Pipeline, case: Case, config: WorldConfig) -> ClipLosses:
    pixels, sound = render(case, config)
    assert case.scene is not None
    device = pipeline.components.device
    dtype = next(pipeline.video_vae.parameters()).dtype
    given = pixels[None].to(device, dtype)
    made = pipeline.video_vae.decode(pipeline.video_vae.encode(given)).float().cpu().clamp(-1, 1)
    made = made[:, :, : pixels.shape[1]]
    losses = dict(picture_losses(pixels[None], made))

    mel_config = pipeline.audio_vae.config.mel
    mel: LogMel = log_mel(resample(sound[None], config.sample_rate, mel_config.sample_rate), mel_config)
    mel = mel.to(device)
    audio_dtype = next(pipeline.audio_vae.parameters()).dtype
    decoded = pipeline.audio_vae.decode(pipeline.audio_vae.encode(mel.to(audio_dtype))).float()
    length = min(mel.shape[2], decoded.shape[2])
    losses["mel_l1"] = [(float((decoded[:, :, :length] - mel[:, :, :length]).abs().mean()),)]

    events = [event for event in case.scene.events_before(config.duration - RING[1]) if event.heard]
    times = [event.time for event in events]
    for prefix, spectrum in (("", mel), ("decoded_", decoded)):
        voiced = pipeline.vocoder(spectrum.to(next(pipeline.vocoder.parameters()).dtype))[0].float().cpu()
        heard = sound_losses(sound, voiced, times, config.sample_rate)
        losses |= {prefix + name: rows for name, rows in heard.items()}
    return losses


def picture_losses(true: VideoPixels, made: VideoPixels) -> ClipLosses:
    """Compare a clip with its reconstruction, whole and where things move; both in [-1, 1]."""
    error = (made - true).square().mean(1, keepdim=True)
    mask = moving(true)
    similar = structural_similarity(true, made)
    losses: dict[str, Rows] = {"psnr": [(_decibels(error.mean()),)], "ssim": [(float(similar.mean()),)]}
    losses["psnr_moving"] = losses["ssim_moving"] = []
    if bool(mask.any()):
        losses["psnr_moving"] = [(_decibels(error[mask].mean()),)]
        losses["ssim_moving"] = [(float(similar[mask[:, 0]].mean()),)]
    return losses


def moving(pixels: VideoPixels) -> Tensor:
    """Mark pixels that differ from the clip's median frame, widened by one pixel; (b, 1, f, h, w)."""
    still = pixels.median(dim=2, keepdim=True).values
    changed = ((pixels - still).abs().amax(dim=1, keepdim=True) > MOTION_THRESHOLD).float()
    return F.max_pool3d(changed, (1, 3, 3), stride=1, padding=(0, 1, 1)) > 0.5


def structural_similarity(true: VideoPixels, made: VideoPixels) -> Float[Tensor, "b frames height width"]:
    """Compare the brightness of two clips locally; 1 = equal.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", with
    its Gaussian window of 11 pixels; the edges are mirrored.
    """
    x, y = ((clip.mean(1) + 1) / 2 for clip in (true, made))
    batch, frames, height, width = x.shape
    reach = SSIM_WINDOW // 2
    bell = torch.exp(-((torch.arange(SSIM_WINDOW) - reach) ** 2) / (2 * SSIM_DEVIATION**2))
    bell = bell / bell.sum()

    def local(values: Tensor) -> Tensor:
        padded = F.pad(values.reshape(-1, 1, height, width), (reach,) * 4, mode="reflect")
        across = F.conv2d(padded, bell[None, None, None])
        return F.conv2d(across, bell[None, None, :, None]).reshape(batch, frames, height, width)

    mean_x, mean_y = local(x), local(y)
    spread_x, spread_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    common = local(x * y) - mean_x * mean_y
    low, high = 0.01**2, 0.03**2
    result: Tensor = ((2 * mean_x * mean_y + low) * (2 * common + high)) / (
        (mean_x**2 + mean_y**2 + low) * (spread_x + spread_y + high)
    )
    return result


def sound_losses(
    true: Float[Tensor, "2 samples"],
    made: Float[Tensor, "2 made"],
    times: Sequence[float],
    sample_rate: int,
) -> ClipLosses:
    """Compare a sound with its reconstruction: spectra, attacks and pitches of what begins at `times`."""
    length = min(true.shape[1], made.shape[1])
    true, made = true[:, :length], made[:, :length]
    smears = [onset_smear(true.mean(0), made.mean(0), moment, sample_rate) for moment in times]
    cents = [pitch_error(true.mean(0), made.mean(0), moment, sample_rate) for moment in times]
    return {
        "stft_l1": [(spectral_error(true[None], made[None]),)],
        "onset_smear": [(smear,) for smear in smears if smear is not None],
        "pitch_error": [(error,) for error in cents if error is not None],
    }


def spectral_error(true: Waveform, made: Waveform) -> float:
    """Average over resolutions the absolute error of log magnitudes, of both ears, their sum and difference.

    Source: multi-resolution STFT loss, Yamamoto et al. 2020 (Parallel WaveGAN), section 2.2.
    """
    errors = []
    for size in RESOLUTIONS:
        got, wanted = _magnitudes(made, size), _magnitudes(true, size)
        errors.append(((got + MAGNITUDE_FLOOR).log() - (wanted + MAGNITUDE_FLOOR).log()).abs().mean())
    return float(torch.stack(errors).mean())


def onset_smear(true: Sound, made: OtherSound, moment: float, sample_rate: int) -> float | None:
    """Measure in ms by how much an attack is displaced or drawn out; None where hardly anything begins.

    The attack is the running maximum of the envelope, from 0 before the event to 1 after it; the smear is the
    area between both. So a delay counts as itself, and a linear ramp in place of a step as half its length.
    """
    first = round((moment - RISE[0]) * sample_rate)
    last = round((moment + RISE[1]) * sample_rate)
    if first < 0 or last > len(true):
        return None
    rises = [_rise(sound[first:last], sample_rate) for sound in (true, made)]
    if rises[0] is None:
        return None
    if rises[1] is None:  # nothing begins: the whole attack is missing
        return 1000 * RISE[1]
    return 1000 * float((rises[0] - rises[1]).abs().sum()) / sample_rate


def _rise(sound: Sound, sample_rate: int) -> Sound | None:
    width = 2 * round(ENVELOPE * sample_rate / 2) + 1
    power = F.avg_pool1d(sound.square()[None, None], width, 1, count_include_pad=False, padding=width // 2)
    envelope = power[0, 0].sqrt().cummax(0).values
    before = envelope[: len(envelope) // 4].mean()
    height = envelope[-1] - before
    if float(height) < AUDIBLE_RISE:
        return None
    return ((envelope - before) / height).clamp(0, 1)


def pitch_error(true: Sound, made: OtherSound, moment: float, sample_rate: int) -> float | None:
    """Measure in cents by how much the strongest partial after an event is off; None where there is none.

    It is sought near its true place: where it is farther away, or gone, about the width of that is counted.
    """
    first, last = (round((moment + part) * sample_rate) for part in RING)
    if last > min(len(true), len(made)) or float(true[first:last].square().mean().sqrt()) < AUDIBLE_RISE:
        return None
    spectra = [_fine_spectrum(sound[first:last]) for sound in (true, made)]
    peak = int(spectra[0].argmax())
    if float(spectra[0][peak]) < PROMINENCE * float(spectra[0].median()) or peak < 8:
        return None
    reach = 2 ** (NEIGHBOURHOOD / 1200)
    low, high = int(peak / reach), int(peak * reach) + 2
    other = low + int(spectra[1][low:high].argmax())
    pitches = [_between(spectrum, place) for spectrum, place in zip(spectra, (peak, other), strict=True)]
    return float(1200 * torch.log2(torch.tensor(pitches[1] / pitches[0])))


def _fine_spectrum(sound: Sound) -> Float[Tensor, " bins"]:
    """Power spectrum, eight times finer than the window's own resolution."""
    window = torch.hann_window(len(sound), periodic=False)
    power: Tensor = torch.fft.rfft(sound * window, 8 * len(sound)).abs().square()
    return power


def _between(spectrum: Float[Tensor, " bins"], place: int) -> float:
    """Place of a peak between the bins, by a parabola through the logarithms."""
    place = min(max(place, 1), len(spectrum) - 2)
    left, middle, right = (float(spectrum[place + step].clamp_min(1e-20).log()) for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    return place + (0.5 * (left - right) / bend if bend < 0 else 0.0)


def _magnitudes(waveform: Waveform, size: int) -> Float[Tensor, "rows bins steps"]:
    left, right = waveform[:, 0], waveform[:, 1]
    views = torch.cat([left, right, (left + right) / 2, (left - right) / 2])
    window = torch.hann_window(size)
    spectrum = torch.stft(views, size, size // 4, window=window, return_complex=True, pad_mode="constant")
    magnitudes: Tensor = (spectrum.abs().square() + 1e-12).sqrt() / window.square().sum().sqrt()
    return magnitudes


def _decibels(mean_squared_error: Tensor) -> float:
    """Peak signal-to-noise ratio of values in [-1, 1]."""
    return float(10 * torch.log10(4 / mean_squared_error.clamp(min=1e-10)))
