"""Tables of positions: rotations for self-attention and towards the other stream, waves for the tokens."""

import math
from typing import NamedTuple

from torch import Tensor

from soundstage.models.transformer.config import Stream, TransformerConfig
from soundstage.models.transformer.inputs import TokenPositions
from soundstage.nn.embeddings import position_waves
from soundstage.nn.rope import Rope, rope_table

OCTAVES = 7  # of absolute positions, from half a turn over `max_pos`


class StreamRope(NamedTuple):
    """Tables of one stream; they depend on positions alone and can be kept for a whole run."""

    own: Rope  # self-attention, on all axes
    cross: Rope  # attention between the streams, on seconds; a row for all tokens of a latent frame
    waves: Tensor | None = None  # what tokens are told of where they are, if they are


def stream_rope(config: TransformerConfig, stream: Stream, positions: TokenPositions) -> StreamRope:
    """Tabulate the positions of a stream's tokens, each at the middle of its interval."""
    shape = config.video if stream == "video" else config.audio
    middle = positions.float().mean(-1)
    seconds = middle[:, :1, :: tokens_at_once(positions[:, :1])]
    ladder = (config.rope_theta, config.rope_kind, config.rope_precision)
    return StreamRope(
        own=rope_table(middle, shape.max_pos, shape.dim, shape.heads, *ladder),
        cross=rope_table(seconds, config.cross_max_pos, config.audio.dim, config.audio.heads, *ladder),
        waves=position_waves(middle, shape.max_pos, OCTAVES) if config.absolute_positions else None,
    )


def tokens_at_once(times: TokenPositions) -> int:
    """Find how many tokens share each time, if equally many that follow each other share every one.

    This looks at the values, which waits for the device; without any (`meta`) it is 1.

    Args:
        times: [start, end) in seconds.
    """
    if times.is_meta:
        return 1
    changes = (times[..., 1:, :] != times[..., :-1, :]).any(-1).flatten(0, -2).any(0)
    begins = changes.nonzero().flatten() + 1
    return math.gcd(times.shape[-2], *begins.tolist())
