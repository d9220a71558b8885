"""Sines that a spectrogram implies: their pitch, level and phase, and the gates that let them sound."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import plain_partials
from soundstage.core.errors import ConfigError
from soundstage.dsp.mel import MelConfig, log_mel
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.vocoder.config import GeneratorConfig, VocoderConfig
from soundstage.models.vocoder.hifigan import HiFiGANVocoder
from soundstage.models.vocoder.partials import PartialFinder, _Pairs
from soundstage.models.vocoder.tones import ToneBank
from soundstage.training.export import warm_start, write_component
from soundstage.training.recipe import DataRecipe
from soundstage.training.tasks.audio_vae import MelSource
from synchronisations import Synchronisations

MEL = MelConfig()
RATE = 24_000  # Hz, of what is made
HOP = 240
GROUPS = 12


def spectrogram(*partials: tuple[float, float], seconds: float = 1.0, right: float = 1.0):
    """Measure a sum of (hertz, amplitude) sines, the right ear `right` times as loud."""
    times = torch.arange(round(seconds * MEL.sample_rate)) / MEL.sample_rate
    sound = sum(level * torch.sin(2 * math.pi * hertz * times) for hertz, level in partials)
    return log_mel(torch.stack([sound, right * sound])[None], MEL)


def tones(mel, groups: int = GROUPS):
    return ToneBank(MEL, groups, HOP)(mel)


def strongest(sound) -> float:
    """Find the loudest pitch in Hz, between bins by a parabola."""
    sound = sound.detach()
    power = torch.fft.rfft(sound.double() * torch.hann_window(len(sound)), 8 * len(sound)).abs().log()
    place = int(power.argmax())
    left, middle, right = (float(power[place + step]) for step in (-1, 0, 1))
    return (place + 0.5 * (left - right) / (left - 2 * middle + right)) * RATE / (8 * len(sound))


def config(**changes) -> VocoderConfig:
    generator = GeneratorConfig(
        upsample_initial_channel=16,
        upsample_rates=(10, 6, 4),
        upsample_kernel_sizes=(20, 12, 8),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
        one_ear=True,
        tone_gates=GROUPS,
    )
    return VocoderConfig(generator=replace(generator, **changes))


@pytest.mark.parametrize("hertz", [150.0, 261.63, 440.0, 523.25, 659.26, 1000.0, 1760.0, 3000.0])
def test_a_steady_tone_has_its_pitch_and_level(hertz):
    made = tones(spectrogram((hertz, 0.3))).sum(2)[0, 0, RATE // 4 : 3 * RATE // 4]
    assert abs(1200 * math.log2(strongest(made) / hertz)) < 3
    assert made.abs().max() == pytest.approx(0.3, rel=0.05)


def test_the_lowest_tones_are_off_by_a_hertz_at_most():
    for hertz in (95.0, 110.0, 125.0):
        made = tones(spectrogram((hertz, 0.3))).sum(2)[0, 0, RATE // 4 : 3 * RATE // 4]
        assert strongest(made) == pytest.approx(hertz, abs=1.0)


def test_a_glide_is_one_sine_without_clicks():
    times = torch.arange(MEL.sample_rate) / MEL.sample_rate
    sound = 0.5 * torch.sin(2 * math.pi * (300 * times + 150 * times.square()))  # 300 to 600 Hz
    made = tones(log_mel(sound.expand(1, 2, -1), MEL)).sum(2)[0, 0]
    inner = made[RATE // 8 : -RATE // 8]
    assert inner.diff().abs().max() < 1.2 * 0.5 * 2 * math.pi * 600 / RATE  # the steepest that a sine is
    for start in (RATE // 4, RATE // 2, 5 * RATE // 8):
        span = 1200
        middle = 300 + 300 * (start + span / 2) / RATE
        assert strongest(made[start : start + span]) == pytest.approx(middle, rel=0.01)


def test_tones_at_once_lie_in_their_own_groups():
    made = tones(spectrogram((440.0, 0.3), (1500.0, 0.2)))[0, 0, :, RATE // 4 : 3 * RATE // 4]
    loud = [group for group in range(GROUPS) if made[group].square().mean().sqrt() > 0.05]
    assert len(loud) == 2
    assert [round(strongest(made[group]), -1) for group in loud] == [440, 1500]


def test_both_ears_hear_the_same_sine_each_as_loud_as_its_own():
    left, right = tones(spectrogram((440.0, 0.3), right=0.25)).sum(2)[0, :, RATE // 4 : 3 * RATE // 4]
    torch.testing.assert_close(right, 0.25 * left, atol=2e-3, rtol=0)


def test_groups_only_divide_the_sum():
    mel = spectrogram((440.0, 0.3), (700.0, 0.2), (2500.0, 0.1))
    torch.testing.assert_close(tones(mel, 1).sum(2), tones(mel, 7).sum(2), atol=1e-5, rtol=0)


def test_silence_and_the_floor_make_nothing():
    mel = torch.full((2, 2, 50, 64), math.log(MEL.log_floor))
    assert not tones(mel).any()
    torch.manual_seed(0)
    assert tones(mel + 0.1 * torch.randn(mel.shape)).abs().max() < 1e-4


@pytest.mark.parametrize("frames", [1, 2, 37])
def test_every_frame_gives_its_samples(frames):
    assert tones(torch.randn(3, 2, frames, 64)).shape == (3, 2, GROUPS, frames * HOP)


def test_a_clip_is_made_the_same_in_any_company():
    first, second = spectrogram((440.0, 0.3)), spectrogram((523.0, 0.1), (900.0, 0.2))
    together = tones(torch.cat([first, second]))
    torch.testing.assert_close(together, torch.cat([tones(first), tones(second)]), atol=1e-6, rtol=0)


def test_at_first_the_sines_sound_as_the_spectrogram_says():
    vocoder, mel = HiFiGANVocoder(config()), spectrogram((440.0, 0.3))
    torch.nn.init.zeros_(vocoder.conv_post.weight)
    torch.testing.assert_close(vocoder(mel), torch.tanh(tones(mel).sum(2)))


def test_a_gate_moves_its_own_sines_and_learns():
    vocoder, mel = HiFiGANVocoder(config()), spectrogram((440.0, 0.3), (1500.0, 0.2))
    torch.nn.init.zeros_(vocoder.conv_post.weight)
    energy = tones(mel)[0, 0].square().sum(-1)
    low, high = sorted(energy.topk(2).indices.tolist())
    with torch.no_grad():
        vocoder.tone_gates.bias[high] = 0
    assert strongest(vocoder(mel)[0, 0, RATE // 4 : 3 * RATE // 4]) == pytest.approx(440, rel=0.01)
    vocoder(mel).square().mean().backward()
    assert vocoder.tone_gates.weight.grad[low].abs().sum() > 0


def test_the_sines_are_no_weights():
    vocoder = HiFiGANVocoder(config())
    plain = HiFiGANVocoder(config(tone_gates=0))
    added = vocoder.state_dict().keys() - plain.state_dict().keys()
    assert added == {"tone_gates.weight", "tone_gates.bias"}


def test_a_file_from_before_the_gates_may_begin_a_training(tmp_path):
    old, new = HiFiGANVocoder(config(tone_gates=0)), HiFiGANVocoder(config())
    path = tmp_path / "vocoder.safetensors"
    write_component(
        path, {"vocoder": old.config.to_header()}, {f"vocoder.{k}": v for k, v in old.state_dict().items()}
    )
    warm_start({f"vocoder.{k}": v for k, v in new.state_dict().items()}, path)
    assert torch.equal(new.conv_pre.weight, old.conv_pre.weight)
    assert (new.tone_gates.bias == 1).all()


def test_the_header_says_so_and_that_of_released_files_does_not():
    header = config().to_header()
    assert VocoderConfig.from_header(header).generator.tone_gates == GROUPS
    del header["tone_gates"]
    assert VocoderConfig.from_header(header).generator.tone_gates == 0


def test_wrong_numbers_are_refused():
    with pytest.raises(ConfigError, match="tone_gates=-1 is below 0"):
        config(tone_gates=-1)
    with pytest.raises(ConfigError, match="tone_gates=12 needs one_ear=true"):
        config(one_ear=False)


class Operations(TorchDispatchMode):
    """Counts what the host asks a device to do."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def world_spectrograms():
    """Return 24 excerpts of 40 frames of the world's sounds, as the vocoder is trained on."""
    source = MelSource(DataRecipe(num_frames=25), AudioVAEConfig.from_header({}), torch.device("cpu"))
    return source(3, 24)[:, :, 20:60]


def test_all_spectra_are_explained_at_once():
    """Numbers of operations do not grow with the batch, and the host waits once: for the numbers of peaks."""
    bank, mel = ToneBank(MEL, GROUPS, HOP), world_spectrograms()
    with Synchronisations() as waits, Operations() as few:
        bank(mel[:4])
    with Operations() as many:
        bank(mel)
    assert waits.found == []  # `tolist` is not seen on a CPU; `PartialFinder.forward` has the only one
    assert many.count < 12_000  # 37,000 when bins were explained one after the other, with 530 waits
    assert many.count < 2 * few.count


def test_peaks_explained_at_once_are_those_explained_one_after_the_other():
    spectra = world_spectrograms().logsumexp(1).exp().flatten(0, 1).double()
    finder = PartialFinder(MEL).double()
    finder.pairs = _Pairs(finder.pitches, finder.responses, finder.places)  # in double precision as well
    found, expected = finder(spectra), plain_partials.find(finder, spectra)
    assert found.present.sum() > len(spectra)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.where(found.present, got, 0), torch.where(found.present, wanted, 0))


def test_phases_are_sums_over_time():
    bank = ToneBank(MEL, GROUPS, HOP)
    random = torch.Generator().manual_seed(0)
    pitch = 40 + 4000 * torch.rand(2, 37, 64, generator=random)
    owner = torch.randint(64, (2, 37, 64), generator=random)
    own = pitch.double().gather(-1, owner)
    phase, before = torch.zeros_like(own[:, 0]), own[:, 0]
    for time in range(37):
        belongs = owner[:, time]
        advance = math.pi / MEL.frame_rate * (own[:, time] + before.gather(-1, belongs))
        phase, before = phase.gather(-1, belongs) + advance, own[:, time]
        apart = (bank._phases(pitch, owner)[:, time] - phase).sin().abs()
        assert apart.max() < 1e-5
