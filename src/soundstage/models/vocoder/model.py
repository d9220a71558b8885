"""The choice between the two vocoders: by what the checkpoint's header describes."""

from soundstage.models.vocoder.bandwidth_extension import BandwidthExtensionVocoder
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.models.vocoder.hifigan import HiFiGANVocoder

Vocoder = HiFiGANVocoder | BandwidthExtensionVocoder


def build_vocoder(config: VocoderConfig) -> Vocoder:
    """Build the 2.0 vocoder, or with bandwidth extension the 2.3 one."""
    return HiFiGANVocoder(config) if config.bandwidth_extension is None else BandwidthExtensionVocoder(config)
