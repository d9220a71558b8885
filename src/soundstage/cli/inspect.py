"""`soundstage inspect`: explain a checkpoint or a result file."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from soundstage.checkpoints.keymap import PART_TITLES, STREAM_TITLES
from soundstage.checkpoints.lora_summary import lora_lines
from soundstage.checkpoints.summary import Summary

RESULT_SUFFIXES = (".mp4", ".mov", ".wav", ".png")


@dataclass(frozen=True, kw_only=True)
class InspectCommand:
    """Say what a file is: of a checkpoint generation, parts, sizes, what it can do and what it needs besides;
    of a generated clip the request that makes it again. Reads headers only.

    Example: soundstage inspect ltx-2.3-22b-dev.safetensors
    """

    file: Annotated[Path, tyro.conf.Positional]
    """A .safetensors file, a directory of them, a generated clip, or the name of a model."""
    json: bool = False
    """Write machine-readable output."""

    def run(self) -> int:
        """Print the explanation."""
        if self.file.suffix.lower() in RESULT_SUFFIXES:
            sys.stdout.write(_explain_clip(self.file, as_json=self.json))
            return 0
        from soundstage.checkpoints.checkpoint import open_checkpoint
        from soundstage.checkpoints.releases import resolve
        from soundstage.checkpoints.summary import summarise

        summary = summarise(open_checkpoint(resolve(self.file), require_data=False))
        sys.stdout.write(_to_json(asdict(summary)) if self.json else _to_text(summary))
        return 0


def _explain_clip(path: Path, *, as_json: bool) -> str:
    from soundstage.core.errors import MediaError
    from soundstage.media.mux import read_metadata

    metadata = read_metadata(path)
    if not metadata:
        raise MediaError(f"{path} carries no record of how it was made; soundstage did not write it")
    if as_json:
        return _to_json(metadata)
    lines = [f"{path}: made by soundstage"]
    for key, value in metadata.items():
        if isinstance(value, dict):
            lines += [f"  {key}", *(f"    {name:<22} {item}" for name, item in value.items())]
        else:
            lines.append(f"  {key:<24} {value}")
    return "\n".join(lines) + "\n"


def _to_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _to_text(summary: Summary) -> str:
    version = f", model_version {summary.model_version}" if summary.model_version != "not stated" else ""
    generation = (
        "unknown generation" if summary.generation == "unknown" else f"generation {summary.generation}"
    )
    lines = [
        *summary.files,
        f"  {summary.kind}, {generation}{f' ({summary.variant})' if summary.variant else ''}{version}",
        f"  {_count(summary.parameters)} values, {_size(summary.bytes)}"
        + ("" if summary.is_complete else " according to the header; the data are not all here"),
        "",
        f"  {'part':<34}{'tensors':>8}{'values':>18}{'size':>10}  type",
    ]
    for part in summary.parts:
        size, types = _size(part.bytes), ", ".join(part.dtypes)
        lines.append(
            f"  {PART_TITLES[part.part]:<34}{part.tensors:>8}{part.parameters:>18,}{size:>10}  {types}"
        )
        if part.part == "transformer":
            lines += [
                f"    {STREAM_TITLES[stream]:<32}{'':>8}{count:>18,}"
                for stream, count in summary.streams.items()
            ]
    for title, entries in (
        ("adapts", lora_lines(summary.lora) if summary.lora else ()),
        ("quantised", (summary.quantisation,) if summary.quantisation else ()),
        ("can", summary.can),
        ("needs", summary.needs),
        ("note", summary.notes),
    ):
        if entries:
            lines += ["", f"  {title}", *(f"    {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"


def _count(number: int) -> str:
    for limit, unit in ((10**9, "billion"), (10**6, "million")):
        if number >= limit:
            return f"{number / limit:.2f} {unit}"
    return f"{number:,}"


def _size(num_bytes: int) -> str:
    for limit, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:.1f} {unit}"
    return f"{num_bytes} B"
