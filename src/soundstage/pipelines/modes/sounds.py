"""Given sound: the copy that the model hears, voices to follow, and joining what is given to what is made."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import MediaError
from soundstage.core.rng import generator
from soundstage.dsp.loudness import integrated_loudness
from soundstage.dsp.resample import resample
from soundstage.media.audio import read_sound
from soundstage.media.probe import probe
from soundstage.media.tracks import AAC_SAMPLE_RATES
from soundstage.pipelines.canvas import Canvas
from soundstage.pipelines.conditions import StreamState, append_audio_reference
from soundstage.pipelines.given import references_of
from soundstage.pipelines.modes.mode import Setting
from soundstage.pipelines.request import GenerationRequest

LONGEST_VOICE = 10.0  # seconds of a reference sound that are followed, if it is not that of a reference clip
INAUDIBLE = 0.05  # seconds: what a file's header may be off by
CROSSFADE = 0.03  # seconds
BEND = 0.005  # seconds over which a step between two sounds is taken out
USUAL_RATE = 48_000  # Hz, for sounds whose own rate no player knows

Stereo = Float[Tensor, "2 samples"]
OtherStereo = Float[Tensor, "2 others"]


def load_sound(path: Path, *, start: float = 0.0, duration: float | None = None) -> tuple[Tensor, int]:
    """Read a sound at a rate that can be written again.

    Raises:
        MediaError: The file has no sound, or none from `start` on.
    """
    sound = read_sound(path, start=start, duration=duration)
    if sound is None or sound.waveform is None or sound.sample_rate is None or not sound.waveform.shape[1]:
        raise MediaError(f"{path} has no sound" + (f" after {start:g} s" if start else ""))
    if sound.sample_rate in AAC_SAMPLE_RATES:
        return sound.waveform, sound.sample_rate
    return resample(sound.waveform[None], sound.sample_rate, USUAL_RATE)[0], USUAL_RATE


def fit_length(waveform: Stereo, num_samples: int) -> OtherStereo:
    """Cut a sound, or follow it by silence."""
    missing = max(num_samples - waveform.shape[1], 0)
    return torch.nn.functional.pad(waveform[:, :num_samples], (0, missing))


def heard_copy(waveform: Stereo, sample_rate: int, request: GenerationRequest) -> Stereo:
    """Make the copy that the model hears: at the loudness and with the noise that the request names."""
    heard = waveform
    if request.condition_loudness is not None:
        loudness = float(integrated_loudness(heard[None], sample_rate))
        if math.isfinite(loudness):
            heard = heard * 10 ** ((request.condition_loudness - loudness) / 20)
    if request.condition_noise is not None:
        noise = torch.randn(heard.shape, generator=generator(request.seed, "condition.noise"))
        heard = heard + noise * 10 ** (request.condition_noise / 20)
    return heard.clamp(-1, 1)


class GivenSound(NamedTuple):
    """A sound that an edit puts in the place of the video's own."""

    waveform: Stereo  # what people hear
    heard: Stereo  # what the model hears


def sound_for(request: GenerationRequest, num_samples: int, sample_rate: int) -> GivenSound:
    """Read the request's sound for a part of a video, cut or followed by silence."""
    assert request.audio is not None
    own, rate = load_sound(request.audio, start=request.audio_start or 0.0)
    waveform = fit_length(resample(own[None], rate, sample_rate)[0], num_samples)
    return GivenSound(waveform, heard_copy(waveform, sample_rate, request))


def follow_voice(state: StreamState, setting: Setting, request: GenerationRequest) -> StreamState:
    """Give the request's reference sound, if it has one, as heard before the clip."""
    if request.reference_audio is None:
        return state
    waveform, rate = load_sound(request.reference_audio, duration=_followed(request, setting.canvas))
    num_tokens = max(round(waveform.shape[1] / rate * setting.audio_geometry.latents_per_second), 1)
    tokens = setting.encoders.audio_tokens(waveform, rate, num_tokens)
    return append_audio_reference(state, setting.audio_geometry, tokens)


def voice_notes(request: GenerationRequest, canvas: Canvas) -> tuple[str, ...]:
    """Say how much of the request's reference sound is followed, if that is not all.

    Raises:
        MediaError: The file has no sound.
    """
    path = request.reference_audio
    if path is None:
        return ()
    sound, followed = probe(path).audio, _followed(request, canvas)
    if sound is None:
        raise MediaError(f"{path} has no sound")
    if sound.duration <= followed + INAUDIBLE:
        return ()
    why = ", as of its picture" if _is_of_reference(request) else ""
    whole = f"{path.name} sounds for {float(sound.duration):.1f} s"
    return (f"{whole}; its first {followed:.1f} s are followed{why}",)


def _followed(request: GenerationRequest, canvas: Canvas) -> float:
    """Tell how many seconds of the reference sound are followed.

    The sound of a reference clip is followed along with its picture, for as long as the clip that is made;
    of a voice, some seconds tell how it sounds.
    """
    return float(canvas.num_frames / canvas.frame_rate) if _is_of_reference(request) else LONGEST_VOICE


def _is_of_reference(request: GenerationRequest) -> bool:
    """Tell whether the reference sound is that of a reference clip: the same file."""
    assert request.reference_audio is not None
    path = request.reference_audio.resolve()
    return any(reference.path.resolve() == path for reference in references_of(request))


def continue_sound(given: Stereo, made: OtherStereo, at: int, sample_rate: int) -> OtherStereo:
    """Let what was made go on where what was given ends, without a click and without touching what was given.

    The step between the two is taken out of the first milliseconds of what was made.

    Args:
        made: The whole length; its first `at` samples are replaced.
        at: Samples of `given` that are used.
    """
    joined = made.clone()
    joined[:, :at] = given[:, :at]
    if 0 < at < made.shape[1]:
        bend = _decaying(given[:, at - 1] - made[:, at], made.shape[1] - at, sample_rate)
        joined[:, at : at + bend.shape[1]] += bend
    return joined


def lead_to(made: Stereo, given: OtherStereo, at: int, sample_rate: int) -> Stereo:
    """Let what was given follow from sample `at` on; what was made is bent to meet it."""
    joined = made.clone()
    joined[:, at:] = given[:, : made.shape[1] - at]
    if 0 < at < made.shape[1]:
        bend = _decaying(given[:, 0] - made[:, at - 1], at, sample_rate).flip(1)
        joined[:, at - bend.shape[1] : at] += bend
    return joined


def replace_span(source: Stereo, made: Stereo, start: int, end: int, sample_rate: int) -> Stereo:
    """Put what was made into a span; the crossfades, of equal power, lie inside it.

    Every sample outside the span stays as it is. A span that touches an end of the sound has no fade there.
    """
    weight = torch.zeros(source.shape[1])
    weight[start:end] = 1
    fade = min(round(CROSSFADE * sample_rate), (end - start) // 4)
    ramp = (torch.arange(fade) + 1) / (fade + 1)
    if start > 0:
        weight[start : start + fade] = ramp
    if end < source.shape[1]:
        weight[end - fade : end] = ramp.flip(0)
    mixed = source * (1 - weight).sqrt() + made * weight.sqrt()
    return torch.where(weight > 0, mixed, source)


def _decaying(step: Float[Tensor, " 2"], available: int, sample_rate: int) -> OtherStereo:
    """Let a step fade to nothing within 5 ms."""
    length = min(round(BEND * sample_rate), available)
    return step[:, None] * torch.cos(torch.arange(length) / length * torch.pi / 2) ** 2
