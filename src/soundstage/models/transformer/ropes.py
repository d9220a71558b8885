"""Tables of positions: rotations for self-attention and towards the other stream, waves for the tokens."""

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
    cross: Rope  # attention between the streams, on seconds
    waves: Tensor | None = None  # what tokens are told of where they are, if they are


def stream_rope(config: TransformerConfig, stream: Stream, positions: TokenPositions) -> StreamRope:
    """Tabulate the positions of a stream's tokens, each at the middle of its interval."""
    shape = config.video if stream == "video" else config.audio
    middle = positions.float().mean(-1)
    ladder = (config.rope_theta, config.rope_kind, config.rope_precision)
    return StreamRope(
        own=rope_table(middle, shape.max_pos, shape.dim, shape.heads, *ladder),
        cross=rope_table(middle[:, :1], config.cross_max_pos, config.audio.dim, config.audio.heads, *ladder),
        waves=position_waves(middle, shape.max_pos, OCTAVES) if config.absolute_positions else None,
    )
