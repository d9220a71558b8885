"""The block formats of GGUF files, and what their bytes stand for.

A row of a weight is cut into blocks of 32 or 256 values; a block holds small integers and the scales they are
multiplied by. In the K formats the scales are small integers, too, with a half-precision scale per block.

Source: the GGUF specification of the ggml project; held against the `gguf` package in the tests.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Blocks = UInt8[Tensor, "blocks bytes"]


class BlockFormat(NamedTuple):
    """One format."""

    values: int  # per block
    num_bytes: int  # per block
    decode: Callable[[Blocks], Float[Tensor, "blocks values"]]  # in float32

    def row_bytes(self, columns: int) -> int:
        """Size of a row."""
        return columns // self.values * self.num_bytes


def decode_rows(name: str, rows: UInt8[Tensor, "rows bytes"]) -> Float[Tensor, "rows columns"]:
    """Turn rows of bytes into values, in float32."""
    form = BLOCK_FORMATS[name]
    return form.decode(rows.reshape(-1, form.num_bytes)).reshape(len(rows), -1)


def _half(blocks: Blocks, start: int) -> Float[Tensor, "blocks 1"]:
    """Read a half-precision number."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Blocks) -> Tensor:
    """Unpack 4-bit numbers: all low halves, then all high ones."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _bits(packed: Tensor, width: int) -> Tensor:
    """Unpack numbers of 1 or 2 bits: the lowest of every byte first, then the next of every byte ..."""
    mask = (1 << width) - 1
    return torch.cat([packed >> shift & mask for shift in range(0, 8, width)], dim=-1)


def _fifth_bits(packed: Blocks) -> Tensor:
    """Unpack 32 bits, the lowest of the first byte first."""
    return torch.stack([packed >> shift & 1 for shift in range(8)], dim=-1).flatten(-2)


def _q4_0(blocks: Blocks) -> Tensor:
    return (_nibbles(blocks[:, 2:]).float() - 8) * _half(blocks, 0)


def _q4_1(blocks: Blocks) -> Tensor:
    return _nibbles(blocks[:, 4:]).float() * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: Blocks) -> Tensor:
    high = _fifth_bits(blocks[:, 2:6])
    return ((_nibbles(blocks[:, 6:]) | high << 4).float() - 16) * _half(blocks, 0)


def _q5_1(blocks: Blocks) -> Tensor:
    high = _fifth_bits(blocks[:, 4:8])
    return (_nibbles(blocks[:, 8:]) | high << 4).float() * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Blocks) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _in_groups(codes: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Multiply groups of codes by their scales and take their offsets off."""
    values = codes.float().reshape(*scale.shape, -1) * scale.unsqueeze(-1)
    return (values if offset is None else values - offset.unsqueeze(-1)).flatten(-2)


def _q2_k(blocks: Blocks) -> Tensor:
    scales, packed = blocks[:, :16], blocks[:, 16:80]
    codes = torch.cat([_bits(half, 2) for half in packed.chunk(2, dim=-1)], dim=-1)
    return _in_groups(
        codes, _half(blocks, 80) * (scales & 15).float(), _half(blocks, 82) * (scales >> 4).float()
    )


def _q3_k(blocks: Blocks) -> Tensor:
    high, packed, scales = _bits(blocks[:, :32], 1), blocks[:, 32:96], blocks[:, 96:108]
    low = torch.cat([_bits(half, 2) for half in packed.chunk(2, dim=-1)], dim=-1)
    codes = low.float() + 4 * high.float() - 4
    six_bits = _nibbles(scales[:, :8]) | _bits(scales[:, 8:], 2) << 4
    return _in_groups(codes, _half(blocks, 108) * (six_bits.float() - 32))


def _k_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack the 6-bit scales and minima of eight groups from twelve bytes."""
    first, second, third = packed.chunk(3, dim=-1)
    scale = torch.cat([first & 63, third & 15 | first >> 6 << 4], dim=-1)
    least = torch.cat([second & 63, third >> 4 | second >> 6 << 4], dim=-1)
    return scale.float(), least.float()


def _k_nibbles(packed: Blocks) -> Tensor:
    """Unpack 256 4-bit numbers, 32 bytes at a time."""
    return torch.cat([_nibbles(part) for part in packed.chunk(4, dim=-1)], dim=-1)


def _q4_k(blocks: Blocks) -> Tensor:
    scale, least = _k_scales(blocks[:, 4:16])
    return _in_groups(_k_nibbles(blocks[:, 16:]), _half(blocks, 0) * scale, _half(blocks, 2) * least)


def _q5_k(blocks: Blocks) -> Tensor:
    scale, least = _k_scales(blocks[:, 4:16])
    codes = _k_nibbles(blocks[:, 48:]) | _bits(blocks[:, 16:48], 1) << 4
    return _in_groups(codes, _half(blocks, 0) * scale, _half(blocks, 2) * least)


def _q6_k(blocks: Blocks) -> Tensor:
    low = torch.cat([_nibbles(half) for half in blocks[:, :128].chunk(2, dim=-1)], dim=-1)
    high = torch.cat([_bits(half, 2) for half in blocks[:, 128:192].chunk(2, dim=-1)], dim=-1)
    scale = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return _in_groups((low | high << 4).float() - 32, _half(blocks, 208) * scale)


BLOCK_FORMATS: Mapping[str, BlockFormat] = {
    "Q4_0": BlockFormat(32, 18, _q4_0),
    "Q4_1": BlockFormat(32, 20, _q4_1),
    "Q5_0": BlockFormat(32, 22, _q5_0),
    "Q5_1": BlockFormat(32, 24, _q5_1),
    "Q8_0": BlockFormat(32, 34, _q8_0),
    "Q2_K": BlockFormat(256, 84, _q2_k),
    "Q3_K": BlockFormat(256, 110, _q3_k),
    "Q4_K": BlockFormat(256, 144, _q4_k),
    "Q5_K": BlockFormat(256, 176, _q5_k),
    "Q6_K": BlockFormat(256, 210, _q6_k),
}
