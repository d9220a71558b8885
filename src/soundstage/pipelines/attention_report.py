"""Attention maps to a folder: a film, figures, the numbers, and a page that shows them together.

| file | what |
|---|---|
| `index.html` | the page |
| `overlay.mp4` | where each moment of sound looks, with the sound |
| `moments.svg` | the same at the loudest moments |
| `looking.svg`, `listening.svg` | which moment attends to which, per block |
| `distance.svg` | how far from its own time each block attends |
| `numbers.json` | the distances per block and head, against even attention |
| `maps.safetensors` | the maps themselves |
"""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundstage.checkpoints.save import write_safetensors
from soundstage.core.errors import RequestError
from soundstage.core.files import atomic_output, check_folder
from soundstage.core.geometry import num_audio_samples
from soundstage.media.mux import write_clip
from soundstage.models.transformer.config import Stream
from soundstage.pipelines.attention_figures import TITLES, distances, time_maps
from soundstage.pipelines.attention_overlay import film, heat_of, stills
from soundstage.pipelines.attention_recorder import AttentionMaps
from soundstage.pipelines.generation import Generation

_NUMBERS = ("steps", "frames")  # fields that are no tensors
NAMES: dict[Stream, str] = {"audio": "looking", "video": "listening"}


def save_attention_maps(folder: Path, clip: Generation, maps: AttentionMaps) -> Path:
    """Write everything and return the page; each file is complete or absent.

    Raises:
        RequestError: The folder cannot be written.
        ResourceError: The disk is full.
    """
    check_folder(folder)
    clip = part_of(clip, maps)
    assert clip.pixels is not None
    heat = heat_of(maps, clip.pixels.shape[1], clip.frame_rate)
    write_clip(
        folder / "overlay.mp4",
        film(clip, heat),
        clip.waveform,
        frame_rate=clip.frame_rate,
        sample_rate=clip.sample_rate,
        metadata=clip.metadata,
    )
    summary = numbers(clip, maps)
    _write(folder / "moments.svg", stills(clip, heat))
    for reader, name in NAMES.items():
        _write(folder / f"{name}.svg", time_maps(maps, reader))
    _write(folder / "distance.svg", distances(maps))
    _write(folder / "numbers.json", json.dumps(summary, indent=1) + "\n")
    _write_maps(folder / "maps.safetensors", maps)
    _write(folder / "index.html", _page(clip, summary))
    return folder / "index.html"


def part_of(clip: Generation, maps: AttentionMaps) -> Generation:
    """Cut out what the maps are about: of a video that was made longer, only a stretch was generated.

    Raises:
        RequestError: The clip has no picture.
    """
    if clip.pixels is None:
        raise RequestError("attention maps are drawn over the picture, and this clip has none")
    first, count = maps.frames or (0, clip.pixels.shape[1])
    start, end = (num_audio_samples(n, clip.frame_rate, clip.sample_rate) for n in (first, first + count))
    waveform = None if clip.waveform is None else clip.waveform[:, start:end]
    return replace(clip, pixels=clip.pixels[:, first : first + count], waveform=waveform)


def numbers(clip: Generation, maps: AttentionMaps) -> dict[str, Any]:
    """Summarise: the median distance per block and head, next to that of even attention, in seconds."""
    record: dict[str, Any] = {"clip": clip.metadata, "steps": list(maps.steps), "duration": maps.duration}
    for reader, name in NAMES.items():
        values = maps.distance(reader)
        per_head = values.median(-1).values
        best = int(per_head.argmin())
        record[name] = {
            "median_distance": _seconds(values.median()),
            "median_distance_of_even_attention": _seconds(maps.chance(reader).median()),
            "median_distance_per_block": [_seconds(block.median()) for block in values],
            "median_distance_per_head": [[_seconds(v) for v in row] for row in per_head],
            "nearest_head": {
                "block": best // per_head.shape[1],
                "head": best % per_head.shape[1],
                "median_distance": _seconds(per_head.min()),
            },
        }
    return record


def _seconds(value: Tensor) -> float:
    return round(float(value), 4)


def _write(path: Path, text: str) -> None:
    with atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_maps(path: Path, maps: AttentionMaps) -> None:
    tensors = {field.name: getattr(maps, field.name) for field in fields(maps) if field.name not in _NUMBERS}
    tensors["steps"] = torch.tensor(maps.steps)
    write_safetensors(path, {name: tensor.contiguous() for name, tensor in tensors.items()}, {})


def _page(clip: Generation, summary: dict[str, Any]) -> str:
    rows = "".join(_row(TITLES[reader], summary[name]) for reader, name in NAMES.items())
    return _TEMPLATE.format(
        prompt=escape(clip.request.prompt),
        model=escape(clip.model),
        seed=clip.request.seed,
        steps=escape(", ".join(map(str, summary["steps"]))),
        rows=rows,
    )


def _row(title: str, row: Mapping[str, Any]) -> str:
    nearest = row["nearest_head"]
    where = f"block {nearest['block']}, head {nearest['head']}"
    cells = (
        escape(title),
        f"{row['median_distance']:.3f} s",
        f"{row['median_distance_of_even_attention']:.3f} s",
        f"{nearest['median_distance']:.3f} s ({where})",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


_TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What picture and sound attend to</title>
<style>
body {{ font: 16px/1.5 Inter, "Helvetica Neue", Arial, sans-serif; color: #1c1c28; max-width: 1100px;
  margin: 3rem auto; padding: 0 1.5rem }}
h1 {{ font-size: 1.5rem; margin-bottom: .2rem }} p {{ max-width: 46rem }} .faint {{ color: #6a6a78 }}
video, img {{ max-width: 100%; height: auto; display: block; margin: 1.5rem 0 }}
table {{ border-collapse: collapse; font-size: .95rem }} th {{ text-align: left; font-weight: 600 }}
td, th {{ padding: .35rem 1.6rem .35rem 0; border-bottom: 1px solid #e6e6ee }}
</style>
<h1>{prompt}</h1>
<p class="faint">{model}, seed {seed}; mean of the denoising steps {steps}</p>
<video src="overlay.mp4" controls loop></video>
<p>Left the clip, right where the sound of each moment looks within the frame: grey gets less than an even
share of attention, what glows gets more.</p>
<img src="moments.svg" alt="Where the sound looks at its loudest moments">
<table><tr><th></th><th>median distance</th><th>with even attention</th><th>nearest head</th></tr>
{rows}</table>
<p class="faint">Distance: between the mean time attended to and the own time.</p>
<img src="distance.svg" alt="Distance in time per block">
<img src="looking.svg" alt="Time against time: sound looks at the picture">
<img src="listening.svg" alt="Time against time: the picture listens to the sound">
</html>
"""
