"""`soundstage plan`: what a clip will take and where the model will be, before anything is loaded."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from soundstage.cli.flags import PlacingFlags
from soundstage.cli.generate import RequestFlags, sized
from soundstage.core.errors import RequestError
from soundstage.pipelines.compute import Compute, KernelsName
from soundstage.pipelines.placing import parse_size

if TYPE_CHECKING:
    import torch

    from soundstage.pipelines.fitting import Fitted
    from soundstage.pipelines.forecast import Setup

PROMPT = "a prompt of usual length"


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """Predict memory and time of a clip, part by part, and choose where the model's weights will be.

    Reads headers only; of the named releases not even those need be on this machine.

    Example:
        soundstage plan --model ltx-2-19b-dev --size 1280x704 --duration 5 --vram 24GB --quantize fp8
    """

    request: Annotated[RequestFlags, tyro.conf.arg(name="", prefix_name=False)]
    weights: Annotated[PlacingFlags, tyro.conf.arg(name="", prefix_name=False)]

    model: str = "embedded"
    """The model inside the package, the name of a release (see `soundstage models`), or a path."""
    size: str | None = None
    """Width and height in one, such as 1280x704 pixels."""
    ram: str | None = None
    """Host memory that weights may wait in, such as 32GB; what is available, if the device is here."""
    gpu: str | None = None
    """GPU to plan for, such as "RTX 4090"; the one that is here by default, or one with as much memory."""
    device: str = "auto"
    """Device to plan for: cpu, cuda ...; auto takes a GPU if there is one."""
    kernels: KernelsName = "auto"
    """Fused steps of the transformer, as of generate; auto is Triton's kernels for a GPU that is not here."""
    text_encoder: Path | None = None
    """Directory or GGUF file of the Gemma text encoder; the released one is assumed where none is found."""
    batch: int = 1
    """Clips that are made together, as `soundstage evaluate --batch` does."""
    json: bool = False
    """Write machine-readable output."""

    def run(self) -> int:
        """Print the plan."""
        if self.batch < 1:
            raise RequestError(f"--batch {self.batch} is not positive; the least is 1")
        from soundstage.pipelines.fitting import fit
        from soundstage.pipelines.sketch import unknown_sizes

        setup, budget, is_sketch = self._setup()
        request = sized(self.request, self.size).request(self.request.prompt or PROMPT)
        fitted = fit(setup, request, budget, num_clips=self.batch)
        shown = _describe(setup, fitted, self.batch)
        shown["notes"] += unknown_sizes(setup.checkpoint, self.text_encoder) if is_sketch else ()
        if self.json:
            sys.stdout.write(json.dumps(shown) + "\n")
            return 0
        about = "the released header, its files are not here" if is_sketch else "its header"
        sys.stdout.write("\n".join(_lines(shown, f"{self.model} ({about})")) + "\n")
        return 0

    def _setup(self) -> "tuple[Setup, int, bool]":
        import torch

        from soundstage.pipelines.forecast import Setup
        from soundstage.pipelines.loading import default_dtype
        from soundstage.pipelines.placement import check_device, is_fused
        from soundstage.pipelines.sketch import open_or_sketch, text_tower
        from soundstage.runtime.rates import check_vram, known_gpu, rates_of, typical_gpu, usable_memory

        placing = self.weights.placing()
        checkpoint, is_sketch = open_or_sketch(self.model)
        here = self._device_here(placing.vram_bytes)
        if here is not None:
            check_device(placing, here)
            rates, usable = rates_of(here), usable_memory(here)
            fuses = is_fused(Compute(kernels=self.kernels), here)
        else:
            assert self.gpu is not None or placing.vram_bytes is not None
            rates = typical_gpu(placing.vram_bytes or 0) if self.gpu is None else known_gpu(self.gpu)
            usable, fuses = rates.memory, self.kernels != "torch"
        check_vram(placing.vram_bytes, rates)
        on_cpu = here is not None and here.type == "cpu"
        setup = Setup(
            checkpoint=checkpoint,
            tower=text_tower(checkpoint, self.text_encoder),
            placing=placing,
            rates=rates,
            dtype=default_dtype("cpu", checkpoint.num_bytes) if on_cpu else torch.bfloat16,
            host_budget=self._host_budget(is_here=here is not None and not on_cpu),
            is_fused=fuses,
        )
        return setup, placing.vram_bytes or usable, is_sketch

    def _host_budget(self, *, is_here: bool) -> int | None:
        from soundstage.runtime.rates import host_budget

        if self.ram is not None:
            return parse_size("ram", self.ram)
        return host_budget() if is_here else None

    def _device_here(self, vram: int | None) -> "torch.device | None":
        """Find the device of this machine that is planned for; None if it is one that is not here."""
        from soundstage.runtime.device import find_device

        if self.gpu is not None:
            return None
        device = find_device(self.device)
        return None if device.type == "cpu" and self.device == "auto" and vram is not None else device


def _describe(setup: "Setup", fitted: "Fitted", num_clips: int) -> dict[str, Any]:
    """Write a plan as plain data."""
    from soundstage.pipelines.placed import MAPPED

    device, canvas = fitted.device, fitted.plan.canvas
    on_disk = [MAPPED[name] for name in device.streamed] if device.on_disk else []
    return {
        "width": canvas.width,
        "height": canvas.height,
        "num_frames": canvas.num_frames,
        "seconds_of_clip": round(float(canvas.num_frames / canvas.frame_rate), 3),
        "num_clips": num_clips,
        "device": setup.rates.name,
        "rates": setup.rates.source,
        "kernels": "triton" if setup.is_fused else "torch",
        "memory_bytes": setup.rates.memory,
        "budget_bytes": device.budget,
        "placement": device.kind,
        "on_disk": device.on_disk,
        "streamed": dict(device.streamed),
        "quantize": setup.placing.quantize,
        "quantize_text": setup.placing.quantize_text,
        "quantize_skip": list(setup.placing.quantize_skip),
        "quantize_text_skip": list(setup.placing.quantize_text_skip),
        "parts": [
            {"name": p.name, "bytes": p.num_bytes, "num_blocks": len(p.blocks), "block_bytes": p.block}
            for p in fitted.parts.values()
        ],
        "phases": [
            {
                "name": planned.phase.name,
                "parts": list(planned.phase.parts),
                "weight_bytes": planned.weights,
                "activation_bytes": planned.activations,
                "peak_bytes": planned.peak,
                "is_exact": planned.is_exact,
                "rows": planned.phase.num_rows,
                "rows_at_once": planned.rows_at_once,
                "seconds": planned.seconds,
            }
            for planned in device.phases
        ],
        "reserved_bytes": device.reserved,
        "host_bytes": device.host,
        "host_budget_bytes": device.host_budget,
        "disk_rate": setup.rates.disk if device.on_disk else None,
        "converted_bytes": sum(setup.converted_bytes(part) for part in on_disk),
        "peak_bytes": device.peak,
        "seconds": device.seconds,
        "notes": list(fitted.plan.notes),
    }


def _lines(shown: dict[str, Any], model: str) -> list[str]:
    """Write a plan for people."""
    length = f"{shown['num_frames']} frames, {shown['seconds_of_clip']:g} s"
    length += f", {shown['num_clips']} clips together" if shown["num_clips"] > 1 else ""
    lines = [
        f"{model}: {shown['width']}x{shown['height']}, {length}",
        f"on {shown['device']}, {_size(shown['budget_bytes'])} of {_size(shown['memory_bytes'])} to use",
        f"rates: {shown['rates']}; kernels: {shown['kernels']}",
        "",
        f"  {'weights':<18}{'size':>10}  format",
    ]
    formats = {"transformer": "quantize", "text encoder": "quantize_text"}
    for part in shown["parts"]:
        option = formats.get(part["name"])
        kept = (option and shown[option]) or "as stored"
        if option and shown[f"{option}_skip"]:
            kept += f" but for {', '.join(shown[f'{option}_skip'])}"
        lines.append(f"  {part['name']:<18}{_size(part['bytes']):>10}  {kept}")
    lines += ["", f"  {'phase':<18}{'weights':>10}{'beside':>10}{'peak':>10}{'time':>10}"]
    for phase in shown["phases"]:
        row = "".join(
            f"{_size(phase[key]):>10}" for key in ("weight_bytes", "activation_bytes", "peak_bytes")
        )
        lines.append(f"  {phase['name']:<18}{row}{phase['seconds']:>8.1f} s")
    lines += ["", *_batches(shown), f"placement: {_placement(shown)}"]
    lines.append(f"peak {_size(shown['peak_bytes'])}, about {shown['seconds']:.0f} s")
    if shown["converted_bytes"]:
        lines.append(f"converted once into {_size(shown['converted_bytes'])} more on disk")
    if shown["reserved_bytes"]:
        lines.append(f"the peaks include {_size(shown['reserved_bytes'])} that the driver takes")
    return lines + [f"note: {note}" for note in shown["notes"]]


def _batches(shown: dict[str, Any]) -> list[str]:
    """Say how the passes of a step go through the transformer."""
    from soundstage.pipelines.batching import said

    denoising = [phase for phase in shown["phases"] if phase["parts"] == ["transformer"]]
    return [
        f"{phase['name']}: a step is "
        + said(phase["rows"] // shown["num_clips"], shown["num_clips"], phase["rows_at_once"])
        for phase in denoising
    ]


def _placement(shown: dict[str, Any]) -> str:
    blocks = {part["name"]: part["num_blocks"] for part in shown["parts"]}
    passing = [
        f"{resident} of {blocks[name]} blocks of the {name} stay, the others pass through two slots"
        for name, resident in shown["streamed"].items()
    ]
    copies = f", and weights that LoRAs are added into wait in {_host(shown)}" if shown["host_bytes"] else ""
    texts = {
        "resident": f"everything stays on the device{copies}",
        "turns": f"networks take turns on the device, and wait in {_host(shown)}",
        "streamed": f"networks take turns on the device, and wait in {_host(shown)}",
    }
    if shown["on_disk"]:
        blocks_of = " and the ".join(shown["streamed"])
        rate = f"{shown['disk_rate'] / 1e9:g} GB a second"
        passing.append(f"blocks of the {blocks_of} that do not stay wait on disk, assumed to give {rate}")
    return "; ".join([texts[shown["placement"]], *passing])


def _host(shown: dict[str, Any]) -> str:
    """Say how much host memory is needed, and how much may be used where that is known."""
    limit = shown["host_budget_bytes"]
    return f"{_size(shown['host_bytes'])} of host memory" + (f" ({_size(limit)} to use)" if limit else "")


def _size(num_bytes: float | int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
