"""The recorded reference outputs of the audio path: front-end, VAE, vocoder."""

import pytest
import torch

from golden_cases import Case, cases, load_case, load_checkpoint
from soundstage.dsp.mel import MelConfig, log_mel
from soundstage.dsp.resample import resample
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE


def audio_vae(checkpoint: str) -> AudioVAE:
    config, tensors = load_checkpoint(checkpoint, "audio_vae.")
    with torch.device("meta"):
        vae = AudioVAE(AudioVAEConfig.from_header(config["audio_vae"]))
    vae.load_state_dict(tensors, assign=True)
    return vae.eval()


def mel_config(case: Case) -> MelConfig:
    params = case.params
    return MelConfig(
        sample_rate=params["sampling_rate"],
        n_fft=params["n_fft"],
        win_length=params["win_length"],
        hop_length=params["hop_length"],
        num_mels=params["n_mels"],
        f_min=params["f_min"],
        f_max=params["f_max"],
        log_floor=params["log_floor"],
    )


@pytest.mark.parametrize("case_id", cases("mel"))
def test_front_end(case_id: str) -> None:
    case = load_case(case_id)
    config = mel_config(case)
    waveform = case.inputs["waveform"]
    if "input_sampling_rate" in case.params:
        waveform = resample(waveform, case.params["input_sampling_rate"], config.sample_rate)
        case.check("resampled", waveform)
    case.check("mel", log_mel(waveform, config))


@pytest.mark.parametrize("case_id", cases("audio_vae"))
@torch.no_grad()
def test_audio_vae(case_id: str) -> None:
    case = load_case(case_id)
    vae = audio_vae(case.spec["checkpoint"])
    if "mel" in case.outputs:
        case.check("mel", vae.decode(case.inputs["latent"]))
        return
    mel = case.inputs["mel"] if "mel" in case.inputs else log_mel(case.inputs["waveform"], vae.config.mel)
    case.check("latent", vae.encode(mel))
