"""What decoding sound takes per second of it, from the shapes of the codec and the vocoder."""

from collections.abc import Iterator

from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.vocoder.config import MEL_RATE, GeneratorConfig, VocoderConfig

# Tensors of the largest layer that live at once; measured at full size, see the tests of forecasts.
SOUND_TENSORS = 8.5
ALIASED_TENSORS = 10.1  # of vocoders that go to twice the rate and back


def sounding_bytes(codec: AudioVAEConfig, vocoder: VocoderConfig) -> float | int:
    """Bytes per second of sound that decoding it takes beside the weights."""
    tensors = [float(encoding_sound_bytes(codec))]
    for generator, rate in _generators(vocoder):
        copies = ALIASED_TENSORS if generator.resblock == "AMP1" else SOUND_TENSORS
        ears = generator.channels // generator.channels_at_once
        tensors += [copies * ears * 4 * width * samples for width, samples, _ in _stages(generator, rate)]
    return max(tensors)


def vocoding_operations(vocoder: VocoderConfig) -> int:
    """Operations per second of sound, two per multiply-add."""
    count = 0
    for generator, rate in _generators(vocoder):
        ears = generator.channels // generator.channels_at_once
        blocks = sum(
            2 * kernel * len(dilations)  # two convolutions a dilation
            for kernel, dilations in zip(
                generator.resblock_kernel_sizes, generator.resblock_dilation_sizes, strict=True
            )
        )
        for width, samples, overlap in _stages(generator, rate):
            count += int(ears * 2 * (blocks + 2 * overlap) * width**2 * samples)
    return count


def _generators(vocoder: VocoderConfig) -> Iterator[tuple[GeneratorConfig, int]]:
    """Pair the stacks of a vocoder with the spectra per second that they are given."""
    yield vocoder.generator, MEL_RATE
    wider = vocoder.bandwidth_extension
    if wider is not None:
        yield wider.generator, wider.input_sampling_rate // wider.hop_length


def _stages(generator: GeneratorConfig, rate: int) -> Iterator[tuple[int, int, float | int]]:
    """List of each upsampling stage: channels, samples per second, how often its kernel covers one."""
    strides = zip(generator.upsample_rates, generator.upsample_kernel_sizes, strict=True)
    for width, (factor, kernel) in zip(generator.widths[1:], strides, strict=True):
        rate *= factor
        yield width, rate, kernel / factor


def encoding_sound_bytes(config: AudioVAEConfig) -> float | int:
    """Bytes per second of the codec's first and last layers, which are its largest."""
    return (
        SOUND_TENSORS * 4 * config.ch * config.mel.num_mels * config.mel.sample_rate // config.mel.hop_length
    )
