"""The vocoder of LTX-2.0: log-mel to stereo sound by five upsampling stages.

mel (2, T, 64) → (128, T) → conv → [leaky ReLU → upsample → mean of three residual blocks] × 5
                                 → leaky ReLU → conv → tanh → (2, 240 T)
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.types import LogMel
from soundstage.dsp.mel import MelConfig
from soundstage.models.vocoder.config import GeneratorConfig, VocoderConfig
from soundstage.models.vocoder.layers import Signal, WideConv1d, WideUpsample1d, initialise, widen
from soundstage.models.vocoder.tones import ToneBank

SLOPE = 0.1
FINAL_SLOPE = 0.01  # the released weights were trained with this one in the last place

Sound = Float[Tensor, "b ch samples"]


def stack_channels(mel: LogMel, like: Tensor) -> Float[Tensor, "b c n"]:
    """Lay the bins of the left channel over those of the right, in the dtype that `like` computes in."""
    return rearrange(mel, "b ch t m -> b (ch m) t").to(widen(like.new_empty(0)).dtype)


def finish(waveform: Sound, config: GeneratorConfig) -> Sound:
    """Keep the waveform within [-1, 1] in the way that the weights were trained with, if any."""
    if not config.apply_final_activation:
        return waveform
    return torch.tanh(waveform) if config.use_tanh_at_final else waveform.clamp(-1, 1)


class ResBlock(nn.Module):
    """Pairs of convolutions, the first of each dilated, each pair around a skip."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            WideConv1d(channels, channels, kernel_size, dilation=dilation) for dilation in dilations
        )
        self.convs2 = nn.ModuleList(WideConv1d(channels, channels, kernel_size) for _ in dilations)

    def forward(self, x: Signal) -> Signal:
        """Add the residuals one after the other."""
        for first, second in zip(self.convs1, self.convs2, strict=True):
            h = first(F.leaky_relu(x, SLOPE))
            x = x + second(F.leaky_relu(h, SLOPE))
        return x


class HiFiGANVocoder(nn.Module):
    """Synthesise a waveform from log-mel; always computes in at least float32.

    Source: Kong et al. 2020, arXiv 2010.05646; widened to two channels at once in LTX-2, arXiv 2601.03233.
    """

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        generator = self.generator = config.generator
        widths = generator.widths
        channels = generator.channels_at_once
        self.conv_pre = WideConv1d(channels * generator.num_mels, widths[0], 7)
        self.ups = nn.ModuleList(
            WideUpsample1d(widths[i], widths[i + 1], kernel, rate)
            for i, (rate, kernel) in enumerate(
                zip(generator.upsample_rates, generator.upsample_kernel_sizes, strict=True)
            )
        )
        self.resblocks = nn.ModuleList(
            ResBlock(width, kernel, dilations)
            for width in widths[1:]
            for kernel, dilations in zip(
                generator.resblock_kernel_sizes, generator.resblock_dilation_sizes, strict=True
            )
        )
        self.conv_post = WideConv1d(widths[-1], channels, 7, bias=generator.use_bias_at_final)
        initialise(self)
        if generator.tone_gates:
            mel = MelConfig(num_mels=generator.num_mels)
            self.tones = ToneBank(mel, generator.tone_gates, generator.upsample_factor)
            self.tone_gates = WideConv1d(widths[1], generator.tone_gates, 7)
            nn.init.zeros_(self.tone_gates.weight)  # at first, sines are as loud as the spectrogram says
            nn.init.ones_(self.tone_gates.get_parameter("bias"))

    @property
    def sample_rate(self) -> int:
        """Hz of the waveform."""
        return self.config.sample_rate

    def forward(self, mel: LogMel) -> Sound:
        """Synthesise; 240 samples per mel frame in the released model."""
        if self.generator.one_ear:
            ears = mel.shape[1]
            tones = self.tones(mel).flatten(0, 1) if self.generator.tone_gates else None
            each = self._synthesise(rearrange(mel, "b ears t m -> (b ears) 1 t m"), tones)
            return rearrange(each, "(b ears) 1 samples -> b ears samples", ears=ears)
        return self._synthesise(mel)

    def _synthesise(self, mel: LogMel, tones: Float[Tensor, "b groups samples"] | None = None) -> Sound:
        heard: Tensor | float = 0.0
        x = self.conv_pre(stack_channels(mel, self.conv_pre.weight))
        parallel = len(self.generator.resblock_kernel_sizes)
        for i, upsample in enumerate(self.ups):
            x = upsample(F.leaky_relu(x, SLOPE))
            blocks = self.resblocks[i * parallel : (i + 1) * parallel]
            x = sum(block(x) for block in blocks) / parallel
            if i == 0 and tones is not None:
                gates = F.interpolate(self.tone_gates(x), size=tones.shape[-1], mode="linear")
                heard = (gates * tones).sum(1, keepdim=True)
        x = self.conv_post(F.leaky_relu(x, FINAL_SLOPE)) + heard
        return finish(x, self.generator)
