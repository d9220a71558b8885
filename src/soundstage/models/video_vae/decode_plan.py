"""How much of a clip is decoded at once: the most that a memory budget allows.

Exact ways come first: the whole clip, then whole frames in chunks of time. Only when a single latent frame
does not fit are frames cut into tiles, which are blended where they overlap, as large as they can be. What is
predicted is what lives at once: tensors of the layer at work, and what layers keep between chunks.

Chunks stop growing where longer ones are not faster, whatever the budget. So what a decode holds, and how its
sums are rounded, depends on the size of the picture and not on the length of the clip or on how large the
device is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from soundstage.core.errors import ResourceError
from soundstage.models.video_vae.config import VideoVAEConfig

# Bytes from which on longer chunks do not make a device faster. On a GPU that is a second of 1280 x 720:
# every convolution then has millions of results, many for each of its arithmetic units. Not measured.
ENOUGH_FOR_CPU, ENOUGH_FOR_GPU = 2**30, 2**32
OVERLAP = 4  # cells that neighbouring tiles share; docs/how-it-works/video-vae.md has the seams it leaves
MANY_CHUNKS = 7  # tensors of a residual block's size that live at once where chunks wait for each other


@dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """What goes through the decoder at once, in latent cells."""

    chunk: int  # frames
    rows: int  # of a tile
    columns: int
    overlap: int = OVERLAP
    num_bytes: int = 0  # predicted, beside the weights and what has been decoded
    is_exact: bool = True  # False: frames are cut, and blended where the tiles overlap


def plan_decoding(
    config: VideoVAEConfig,
    cells: tuple[int, int, int],
    *,
    itemsize: int,
    budget: int,
    enough: int | None = ENOUGH_FOR_GPU,
) -> DecodePlan:
    """Find the largest chunk, and only if there is none, the largest tile that a budget allows.

    Args:
        cells: Frames, rows and columns of the latents.
        itemsize: Bytes of an activation.
        budget: Bytes beside the weights.
        enough: Bytes from which on longer chunks are not worth while, whatever the budget.

    Raises:
        ResourceError: Not even the smallest tile fits.
    """
    ways = ways_to_decode(config, cells, itemsize, enough)
    for plan in ways:
        if plan.num_bytes <= budget:
            return plan
    least = min(plan.num_bytes for plan in ways)
    raise ResourceError(
        f"decoding {cells[2]}x{cells[1]} latent cells takes at least {least / 2**20:.0f} MiB and "
        f"{budget / 2**20:.0f} MiB are free; ask for a smaller picture"
    )


def ways_to_decode(
    config: VideoVAEConfig, cells: tuple[int, int, int], itemsize: int, enough: int | None = None
) -> tuple[DecodePlan, ...]:
    """List what is worth considering: exact ways first, then tiles, each with less memory than the last.

    Args:
        cells: Frames, rows and columns of the latents.
        itemsize: Bytes of an activation.
        enough: Bytes from which on longer chunks are not worth while.
    """
    ways = list[DecodePlan]()
    for plan in _candidates(*cells):
        needed = decoding_bytes(config, cells, plan, itemsize)
        if not ways or needed < ways[-1].num_bytes:  # what each tile keeps can make small ones dearer
            ways.append(replace(plan, num_bytes=needed))
    exact = [plan for plan in ways if plan.is_exact]
    beyond = [plan for plan in exact[:-1] if enough is not None and plan.num_bytes > enough]
    return tuple(plan for plan in ways if plan not in beyond)


def decoding_bytes(
    config: VideoVAEConfig, cells: tuple[int, int, int], plan: DecodePlan, itemsize: int
) -> int:
    """Predict the bytes that decoding holds at most, beside the weights and the finished frames."""
    frames, height, width = cells
    rows, columns = (
        _cover(length, size, plan.overlap) for length, size in ((height, plan.rows), (width, plan.columns))
    )
    area = min(plan.rows, height) * min(plan.columns, width)
    chunk = min(plan.chunk, frames)
    is_whole = chunk == frames
    copies = _copies(config, -(-frames // chunk))
    at_work = kept = 0
    for layer in _layers(config):
        work, keep = layer.elements(
            (chunk - 1) * layer.frames + 1 if is_whole else chunk * layer.frames + 2, copies
        )
        at_work, kept = max(at_work, work), kept + (0 if is_whole else keep)
    tiled = rows * columns > height * width
    blended = 2 * layer.out_channels * layer.pixels * frames_out(config, chunk) if tiled else 0
    return itemsize * (area * at_work + rows * columns * kept + height * width * blended)


def decoding_operations(config: VideoVAEConfig) -> int:
    """Count the operations of decoding a latent cell, two per multiply-add."""
    count = 0
    for layer in _layers(config):
        kernel = 27 * layer.channels**2 * (2 if layer.convolutions == 2 else layer.growth)
        count += 2 * kernel * layer.frames * layer.pixels
    return count


def _cover(length: int, size: int, overlap: int) -> int:
    """Add up the extents of the tiles along an axis: what they share counts for each."""
    if size >= length:
        return length
    return length + (-(-(length - overlap) // (size - overlap)) - 1) * overlap


def _copies(config: VideoVAEConfig, num_chunks: int) -> int:
    """Count the tensors of a residual block's size that live at once; measured, see the tests of forecasts.

    A convolution has its input, the input padded in time, its output and the shortcut's; one that mirrors
    edges has the input padded in space, too. Of three chunks and more, those that wait for others count.
    """
    if num_chunks > 2:
        return MANY_CHUNKS
    return 5 if num_chunks == 2 or config.decoder_padding == "reflect" else 4


def frames_out(config: VideoVAEConfig, chunk: int) -> int:
    """Say how many frames a chunk of latent frames becomes."""
    return chunk * config.geometry.temporal_factor


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One layer of the decoder, by what it holds; per latent cell."""

    channels: int
    out_channels: int
    frames: int  # of this layer's input per latent frame
    pixels: int  # of this layer's input per latent cell
    growth: int = 1  # elements of the output by those of the input; 1 for a residual block
    convolutions: int = 2
    rearranged: int = 3  # tensors of the output's size: convolved, in its new order, with its shortcut

    def elements(self, frames: int, copies: int) -> tuple[int, int]:
        """Return the elements at work on that many frames, and those kept from chunk to chunk."""
        frame = self.channels * self.pixels
        if self.convolutions == 2:
            return copies * frames * frame, 6 * frame  # two frames a convolution, two of the shortcut
        return frames * frame * (3 + self.rearranged * self.growth), 3 * frame


def _layers(config: VideoVAEConfig) -> Iterator[_Layer]:
    channels, frames, pixels = config.decoder_base_channels, 1, 1
    for block in config.decoder_blocks:
        channels *= block.multiplier
    for block in reversed(config.decoder_blocks):
        shape = {"channels": channels, "frames": frames, "pixels": pixels}
        if block.kind == "res_x":
            for _ in range(block.num_layers):
                yield _Layer(**shape, out_channels=channels)
            continue
        time, rows, columns = block.stride
        volume = time * rows * columns
        yield _Layer(**shape, out_channels=channels, growth=-(-volume // block.multiplier), convolutions=1)
        channels, frames, pixels = channels // block.multiplier, frames * time, pixels * rows * columns
    colours = 3 * config.patch_size**2
    yield _Layer(
        channels=channels,
        out_channels=colours,
        frames=frames,
        pixels=pixels,
        growth=-(-colours // channels),
        convolutions=1,
        rearranged=1,
    )


def _candidates(frames: int, height: int, width: int) -> Iterator[DecodePlan]:
    """List plans from the largest down: shorter and shorter chunks, then smaller and smaller tiles."""
    yield DecodePlan(chunk=frames, rows=height, columns=width)
    chunk = 2 ** ((frames - 1).bit_length() - 1) if frames > 1 else 0
    while chunk:
        yield DecodePlan(chunk=chunk, rows=height, columns=width)
        chunk //= 2
    for parts in range(2, max(height, width)):
        size = -(-(max(height, width) + (parts - 1) * OVERLAP) // parts)
        if size < 2 * OVERLAP:
            return
        yield DecodePlan(chunk=1, rows=min(size, height), columns=min(size, width), is_exact=False)
