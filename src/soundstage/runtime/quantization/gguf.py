"""Weights as GGUF files have them: blocks of small integers with their scales, decoded for use.

Nothing is rounded again: the layer computes with exactly the weight that the file describes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.nn.gguf_formats import BLOCK_FORMATS, decode_rows
from soundstage.runtime.quantization.layer import QuantizedLinear

ROWS_AT_ONCE = 512  # decoded together; bounds what decoding needs beside the weight


class GgufLinear(QuantizedLinear):
    """A linear layer with a weight in GGUF blocks."""

    codes: Tensor  # (outputs, bytes), uint8

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kind: str,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        """Make an empty layer.

        Args:
            kind: Name of the block format, such as "Q4_K".
        """
        super().__init__(in_features, out_features, bias=bias, dtype=dtype, device=device)
        self.kind = kind
        shape = (out_features, BLOCK_FORMATS[kind].row_bytes(in_features))
        self.register_buffer("codes", torch.empty(shape, dtype=torch.uint8, device=device))

    def take_stored(self, name: str, value: Tensor) -> None:
        """Take the bytes of the weight."""
        assert name == "weight"
        self.codes = value

    def take_rows(self, start: int, rows: Float[Tensor, "rows inputs"]) -> None:
        """Refuse: these formats are made elsewhere; LoRAs on them are computed beside the layer."""
        raise AssertionError(f"{self.kind} is read, not written (rows {start} to {start + len(rows)})")

    def rows_of_weight(self, start: int, stop: int) -> Float[Tensor, "rows inputs"]:
        """Decode some rows."""
        rows = torch.empty(stop - start, self.in_features, dtype=self.dtype, device=self.codes.device)
        for first in range(start, stop, ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, stop)
            rows[first - start : last - start] = decode_rows(self.kind, self.codes[first:last])
        return rows
