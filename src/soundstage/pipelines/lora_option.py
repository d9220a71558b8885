"""How a user names a LoRA: PATH[:STRENGTH][@STAGE]."""

import math
import re
from dataclasses import dataclass

from soundstage.core.errors import RequestError

STAGES = (1, 2)
SUFFIX = ".safetensors"
FORM = "PATH[:STRENGTH][@STAGE], such as style.safetensors:0.8@1"

_TAIL = re.compile(r"(?::(?P<strength>[^:@]*))?(?:@(?P<stage>[^:@]*))?")
_ANY_NAME = re.compile(r"(?P<path>.+?)(?P<tail>(?::[-+]?[0-9.]+(?:e[-+]?[0-9]+)?)?(?:@[0-9]+)?)")


@dataclass(frozen=True, kw_only=True)
class LoraOption:
    """One LoRA of a request."""

    path: str  # a file, or the name of a release
    strength: float = 1.0  # 0 = no change; negative moves the other way
    stage: int | None = None  # of a generation in several stages, the first is 1; None = all

    @classmethod
    def parse(cls, text: str) -> "LoraOption":
        r"""Read one; colons and @ inside the path, as in C:\loras\a.safetensors, stay part of it.

        Raises:
            RequestError: Strength or stage is not one.
        """
        path, tail = _split(text)
        match = _TAIL.fullmatch(tail)
        if not path or match is None:
            raise RequestError(f"lora {text!r} is not of the form {FORM}")
        return cls(path=path, strength=_strength(text, match["strength"]), stage=_stage(text, match["stage"]))

    def acts_in(self, stage: int) -> bool:
        """Tell whether a stage, counted from 1, uses it."""
        return self.stage in (None, stage)


def _split(text: str) -> tuple[str, str]:
    """Cut behind the file's suffix, where there is one; otherwise before a strength or stage."""
    end = text.lower().rfind(SUFFIX) + len(SUFFIX)
    if end >= len(SUFFIX) and text[end : end + 1] in ("", ":", "@"):
        return text[:end], text[end:]
    match = _ANY_NAME.fullmatch(text)
    return (match["path"], match["tail"]) if match else ("", text)


def _strength(text: str, given: str | None) -> float:
    if given is None:
        return 1.0
    try:
        strength = float(given)
    except ValueError as error:
        raise RequestError(
            f"lora {text!r}: strength {given!r} is not a number; the form is {FORM}"
        ) from error
    if not math.isfinite(strength):
        raise RequestError(f"lora {text!r}: strength {given} is not a finite number")
    return strength


def _stage(text: str, given: str | None) -> int | None:
    if given is None:
        return None
    if given not in map(str, STAGES):
        raise RequestError(f"lora {text!r}: stage {given!r} is neither 1 nor 2; without @, all stages use it")
    return int(given)
