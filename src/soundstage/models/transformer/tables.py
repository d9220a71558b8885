"""The blocks' own tables, added to what modulates a stream for all blocks at once."""

from dataclasses import replace

from torch import nn

from soundstage.models.transformer.block import TransformerBlock
from soundstage.models.transformer.conditioning import StreamConditioning
from soundstage.models.transformer.config import Stream
from soundstage.models.transformer.modulation import ACROSS, GATE


def add_tables(blocks: nn.ModuleList, name: Stream, given: StreamConditioning) -> StreamConditioning:
    """Add the tables of all blocks to what modulates a stream, in one operation per kind of table.

    Blocks that are brought to the device one by one add their own as they come.
    """
    if type(blocks) is not nn.ModuleList:
        return given
    own = [block for block in blocks if isinstance(block, TransformerBlock)]
    layers = [block.layers(name) for block in own]
    if given.enabled:
        given = replace(given, modulation=given.modulation.plus_all([one.table for one in layers]))
        text = given.texts[0]
        if text.kept is None and text.modulation is not None:
            shared = text.modulation.plus_all([one.context_table for one in layers])
            given = replace(given, texts=[replace(text, modulation=shared) for text in given.texts])
    if given.cross_modulation is not None and given.cross_gate is not None:
        tables = [block.cross_table(name) for block in own]
        given = replace(
            given,
            cross_modulation=given.cross_modulation.plus_all(tables, ACROSS),
            cross_gate=given.cross_gate.plus_all(tables, GATE),
        )
    return given
