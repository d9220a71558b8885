"""Rotation tables: a stream's own positions for self-attention, seconds alone towards the other stream."""

from typing import NamedTuple

from soundstage.models.transformer.config import Stream, TransformerConfig
from soundstage.models.transformer.inputs import TokenPositions
from soundstage.nn.rope import Rope, rope_table


class StreamRope(NamedTuple):
    """Tables of one stream; they depend on positions alone and can be kept for a whole run."""

    own: Rope  # self-attention, on all axes
    cross: Rope  # attention between the streams, on seconds


def stream_rope(config: TransformerConfig, stream: Stream, positions: TokenPositions) -> StreamRope:
    """Tabulate the rotations of a stream's tokens, each at the middle of its interval."""
    shape = config.video if stream == "video" else config.audio
    middle = positions.float().mean(-1)
    ladder = (config.rope_theta, config.rope_kind, config.rope_precision)
    return StreamRope(
        own=rope_table(middle, shape.max_pos, shape.dim, shape.heads, *ladder),
        cross=rope_table(middle[:, :1], config.cross_max_pos, config.audio.dim, config.audio.heads, *ladder),
    )
