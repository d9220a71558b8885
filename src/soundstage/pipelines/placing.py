"""Where and in which format the weights of a model are to live: what a user may choose. No torch.

`None` and "auto" leave the choice to the plan, which sees the device, the model and the clip.
"""

from dataclasses import dataclass
from typing import Literal

from soundstage.core.errors import RequestError

QuantizeName = Literal["none", "fp8", "fp8-bf16", "int8", "int8-int8", "int4"]
OffloadName = Literal["auto", "none", "stream", "disk"]

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, kw_only=True)
class Placing:
    """How a model is loaded.

    Raises:
        RequestError: A value is not allowed; says which would be.
    """

    quantize: QuantizeName | None = None  # of the transformer; as the file has it when absent
    quantize_text: QuantizeName | None = None  # of the text encoder; as the file has it when absent
    quantize_skip: tuple[str, ...] = ()  # layers of the transformer that stay exact, such as "*_blocks.0"
    quantize_text_skip: tuple[str, ...] = ()  # layers of the text encoder
    offload: OffloadName = "auto"
    vram: str | None = None  # how much of the device to use, such as "16GB"; what is free when absent

    def __post_init__(self) -> None:
        """Check the size, and that what is skipped is quantised otherwise."""
        for name in ("quantize", "quantize_text"):
            skip = getattr(self, f"{name}_skip")
            if skip and getattr(self, name) == "none":
                raise RequestError(
                    f"{name}_skip={skip[0]!r} leaves a layer out of {name}=none, which quantises no layer; "
                    f"choose a format, or leave {name} out to skip layers that the file has quantised"
                )
        if self.vram is not None:
            parse_size("vram", self.vram)

    @property
    def vram_bytes(self) -> int | None:
        """The size in bytes."""
        return None if self.vram is None else parse_size("vram", self.vram)


def parse_size(name: str, text: str) -> int:
    """Read a size such as "16GB" or "1.5 GiB".

    Raises:
        RequestError: It is none.
    """
    plain = text.strip().upper().replace(" ", "")
    digits = len(plain) - len(plain.lstrip("0123456789."))
    number, unit = plain[:digits], plain[digits:]
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if unit not in UNITS or value <= 0:
        raise RequestError(f"{name}={text!r} is not a size; write it like 16GB, 7.5GB or 800MB")
    return int(value * UNITS[unit])
