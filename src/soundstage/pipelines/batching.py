"""How many rows of a guided step a layer takes together; a row is one pass of one clip.

Rows at once save the overhead of many small operations, and take memory. How many pay depends on the size of
an activation; whether there is room for them is the plan's question. With or without a plan, the choices are
these. What a batch changes is the order of sums, and so the last digits.
"""

from soundstage.core.types import AV
from soundstage.models.transformer.config import TransformerConfig

# Numbers of one activation up to which rows are laid together. On the CPU measured, see experiments.md.
CPU_NUMBERS = 2**21
# Not measured: at 768x512 and 5 s a row of the released models (25 million) is estimated to gain a few per
# cent from larger launches, at 1280x704 (58 million) to fill a large GPU by itself. So two of the former go
# together, and no batch takes the memory of one row at 1280x704.
GPU_NUMBERS = 52_000_000


def activation_numbers(config: TransformerConfig, tokens: AV[int]) -> int:
    """Count the numbers of one activation of a row.

    Args:
        tokens: Of one row; None for a stream that is absent.
    """
    return (tokens.video or 0) * config.video.dim + (tokens.audio or 0) * config.audio.dim


def most_rows(num_numbers: int, *, is_gpu: bool) -> int:
    """Return how many rows gain by going through a layer together, however many there are.

    Args:
        num_numbers: Of one activation of a row.
    """
    return max((GPU_NUMBERS if is_gpu else CPU_NUMBERS) // max(num_numbers, 1), 1)


def batch_sizes(num_rows: int, num_numbers: int, *, is_gpu: bool) -> tuple[int, ...]:
    """List how many rows can go through a layer together and gain by it, the most first, one row last.

    Of batches as even as can be: 4 rows go 4, 2 or 1 at once, for 3 would leave one alone.

    Args:
        num_rows: Passes times clips.
        num_numbers: Of one activation of a row.
    """
    most, sizes = most_rows(num_numbers, is_gpu=is_gpu), list[int]()
    size = -(-num_rows // -(-num_rows // most))
    while size > 1:
        sizes.append(size)
        size = -(-num_rows // -(-num_rows // (size - 1)))  # of the fewest batches that are smaller
    return (*sizes, 1)


def said(num_passes: int, num_clips: int, rows_at_once: int) -> str:
    """Say for people what goes through a layer together."""
    passes = f"{num_passes} passes" if num_passes > 1 else "1 pass"
    clips = f" of each of {num_clips} clips" if num_clips > 1 else ""
    num_rows = num_passes * num_clips
    if num_rows == 1:
        return passes
    if rows_at_once >= num_rows:
        return f"{passes}{clips}, in one batch"
    return f"{passes}{clips}, " + ("one at a time" if rows_at_once == 1 else f"in batches of {rows_at_once}")
