"""The generator of LTX-2.3 vocoders: upsampling stages with anti-aliased periodic activations."""

from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.types import LogMel
from soundstage.models.vocoder.antialias import AntiAliasedActivation
from soundstage.models.vocoder.config import GeneratorConfig
from soundstage.models.vocoder.hifigan import Sound, finish, stack_channels
from soundstage.models.vocoder.layers import Signal, WideConv1d, WideUpsample1d, initialise


class AMPBlock(nn.Module):
    """Pairs of convolutions, each behind its own anti-aliased activation, each pair around a skip."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            WideConv1d(channels, channels, kernel_size, dilation=dilation) for dilation in dilations
        )
        self.convs2 = nn.ModuleList(WideConv1d(channels, channels, kernel_size) for _ in dilations)
        self.acts1 = nn.ModuleList(AntiAliasedActivation(channels) for _ in dilations)
        self.acts2 = nn.ModuleList(AntiAliasedActivation(channels) for _ in dilations)

    def forward(self, x: Signal) -> Signal:
        """Add the residuals one after the other."""
        for conv1, conv2, act1, act2 in zip(self.convs1, self.convs2, self.acts1, self.acts2, strict=True):
            x = x + conv2(act2(conv1(act1(x))))
        return x


class AMPGenerator(nn.Module):
    """Log-mel to a waveform; unlike HiFi-GAN, nothing stands between a block and the next upsampling.

    Source: BigVGAN, arXiv 2206.04658, section 3.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.conv_pre = WideConv1d(config.channels * config.num_mels, widths[0], 7)
        self.ups = nn.ModuleList(
            WideUpsample1d(widths[i], widths[i + 1], kernel, rate)
            for i, (rate, kernel) in enumerate(
                zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
            )
        )
        self.resblocks = nn.ModuleList(
            AMPBlock(width, kernel, dilations)
            for width in widths[1:]
            for kernel, dilations in zip(
                config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
            )
        )
        self.act_post = AntiAliasedActivation(widths[-1])
        self.conv_post = WideConv1d(widths[-1], config.channels, 7, bias=config.use_bias_at_final)
        initialise(self)

    def forward(self, mel: LogMel) -> Float[Tensor, "b ch samples"]:
        """Synthesise in at least float32."""
        x = self.conv_pre(stack_channels(mel, self.conv_pre.weight))
        parallel = len(self.config.resblock_kernel_sizes)
        for i, upsample in enumerate(self.ups):
            x = upsample(x)
            blocks = self.resblocks[i * parallel : (i + 1) * parallel]
            x = sum(block(x) for block in blocks) / parallel
        waveform: Sound = self.conv_post(self.act_post(x))
        return finish(waveform, self.config)
