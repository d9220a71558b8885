"""A new audio VAE carries the difference between the ears from the start, and training can use it."""

import torch

from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.training.stereo_start import start_with_stereo


def vae(seed: int = 0) -> AudioVAE:
    torch.manual_seed(seed)
    config = AudioVAEConfig(ch=8, ch_mult=(1, 2, 4), num_res_blocks=1, z_channels=8)
    built = AudioVAE(config)
    built.per_channel_statistics.get_buffer("mean-of-means").fill_(0)
    built.per_channel_statistics.get_buffer("std-of-means").fill_(1)
    return built


def panned(seed: int, count: int = 6, frames: int = 61) -> torch.Tensor:
    """Spectrograms alike in both ears but for a level difference that holds for a while, as of blows."""
    random = torch.Generator().manual_seed(seed)
    common = torch.randn(count, 1, frames, 64, generator=random) - 5
    steps = torch.randn(count, 1, 4, 1, generator=random).repeat_interleave(16, dim=2)[:, :, :frames]
    return torch.cat([common + steps / 2, common - steps / 2], dim=1)


def side_correlation(built: AudioVAE, mel: torch.Tensor) -> float:
    with torch.no_grad():
        decoded = built.decode(built.encode(mel))
    sides = [(m[:, 0] - m[:, 1]).flatten() for m in (mel, decoded)]
    return float(torch.corrcoef(torch.stack(sides))[0, 1])


def test_the_difference_between_the_ears_passes_a_new_vae():
    built, fresh = vae(), panned(1)
    before = side_correlation(built, fresh)
    start_with_stereo(built, panned(0))
    assert side_correlation(built, fresh) > 0.8 > before + 0.4


def test_the_last_latent_channel_is_the_difference_averaged_over_cells():
    built, mel = vae(), panned(1)
    start_with_stereo(built, panned(0))
    with torch.no_grad():
        mean, log_variance = built.encode_posterior(mel)
    side = (mel[:, 0] - mel[:, 1])[:, 1:].unflatten(1, (-1, 4)).mean(2)  # the first frame has its own cell
    cells = side.unflatten(2, (-1, 4)).mean(3)
    assert float(torch.corrcoef(torch.stack([cells.flatten(), mean[:, -1, 1:].flatten()]))[0, 1]) > 0.85
    assert float(log_variance[:, -1].exp().mean()) < 0.1 * float(mean[:, -1].var())


def test_gradients_reach_both_ends_of_the_path():
    built, mel = vae(), panned(1)
    start_with_stereo(built, panned(0))
    decoded = built.decode(built.encode(mel))
    (decoded[:, 0] - decoded[:, 1] - mel[:, 0] + mel[:, 1]).abs().mean().backward()
    assert built.encoder is not None
    assert built.decoder is not None
    given, written = built.encoder.conv_in.conv.weight.grad, built.decoder.conv_out.conv.weight.grad
    assert given is not None
    assert written is not None
    assert float(given[:2, :, -1, 1].abs().min()) > 0
    assert float(written[:, :2, -1, 1].abs().min()) > 0
