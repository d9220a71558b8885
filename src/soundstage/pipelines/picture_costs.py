"""What encoding and enlarging pictures takes beside the weights, from the shapes of the networks."""

from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.tiling import Tiling

# Tensors of the largest layer that live at once; measured at full size, see the tests of forecasts.
ENCODER_TENSORS, ENCODER_PADDED = 4, 2.4  # of pictures; those of which two frames more are made
UPSAMPLER_WIDTH, UPSAMPLER_TENSORS = 1024, 4
UPSAMPLER_BYTES = 995_765_578  # of the released one


def encoding_bytes(config: VideoVAEConfig, num_frames: int, size: tuple[int, int], itemsize: int) -> int:
    """Bytes that encoding pictures takes beside the weights: the pictures, and the work on one tile.

    Args:
        size: Height and width in pixels.
    """
    tiling = Tiling()
    rows, columns = (min(extent, tiling.size) / config.patch_size for extent in size)
    frames = min(num_frames, tiling.num_frames + 1)
    tensor = config.encoder_base_channels * rows * columns
    at_work = tensor * (ENCODER_TENSORS * frames + ENCODER_PADDED * (frames + 2))
    return int(itemsize * (at_work + 3 * num_frames * size[0] * size[1]))


def upsampling_bytes(cells: int, itemsize: int) -> int:
    """Bytes that the released upsampler takes beside its weights for latents of so many cells."""
    return cells * 4 * UPSAMPLER_WIDTH * UPSAMPLER_TENSORS * itemsize
