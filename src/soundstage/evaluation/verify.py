"""Replay recorded calls on this installation and compare: does this machine compute what the reference did?

A directory in the format of `tests/golden` holds a `manifest.json`, checkpoints and tensors. Every case names
a component, its parameters, inputs, expected outputs and a tolerance:

    abs(got - expected) <= atol + rtol * abs(expected)          element by element

A case that cannot be run is a failure, not a skip, and so is a file that is not the recorded one.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundstage.checkpoints.checkpoint import StoredTensor
from soundstage.checkpoints.header import Header, read_header
from soundstage.checkpoints.reading import read_tensors
from soundstage.core.errors import CheckpointError, RequestError
from soundstage.evaluation.verification import maths, networks, sampling
from soundstage.evaluation.verification.bench import Bench, Case

FORMAT = 1

Runner = Callable[[Bench, Case], Mapping[str, Tensor]]

COMPONENTS: dict[str, Runner] = {
    "positions": maths.positions,
    "rope": maths.rope,
    "scheduler": maths.scheduler,
    "guidance": maths.guidance,
    "mel": maths.mel,
    "transformer": networks.transformer,
    "connectors": networks.connectors,
    "video_vae": networks.video_vae,
    "audio_vae": networks.audio_vae,
    "vocoder": networks.vocoder,
    "upsampler": networks.upsampler,
    "conditioning": sampling.conditioning,
    "e2e": sampling.e2e,
}

# Number formats below float32 cannot meet tolerances recorded in float32. For the networks that run in them
# the rule is instead |got - expected| <= bound * |expected|, in the L2 norm over the output. The bounds are
# two to three times what the fixtures give on a CPU: room for other kernels, not for mistakes.
RELATIVE_BOUNDS = {torch.bfloat16: 0.15, torch.float16: 0.02}
LOW_PRECISION = ("transformer", "connectors", "video_vae", "e2e", "upsampler")

# A network can magnify rounding beyond a case's tolerance, and then no two processors agree. So when a
# float32 output of a network is off, its inputs are changed by one unit in the last place, a few times: what
# that moves the output by, times a factor of safety, is added to the tolerance, and the result says so.
NETWORKS = (*LOW_PRECISION, "audio_vae", "vocoder")
ROUNDING_TRIALS = 4
ROUNDING_FACTOR = 2.0
LAST_PLACE = 2.0**-23  # of float32, relative


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an output may be off."""

    atol: float = 0.0
    rtol: float = 0.0
    relative: float | None = None  # bound on the relative L2 error, in place of the other two
    rounding: float = 0.0  # allowance for an output that rounding alone moves by more than the tolerance

    def __str__(self) -> str:
        if self.relative is not None:
            return f"{self.relative:g} relative"
        extra = f" + {self.rounding:.1g} rounding" if self.rounding else ""
        return f"{self.atol:g} + {self.rtol:g}|x|{extra}"

    def used(self, got: Tensor, expected: Tensor) -> float:
        """Return the largest share of the tolerance that is used, both float64; up to 1 is admitted."""
        if not got.numel():
            return 0.0
        if self.relative is not None:
            return relative_error(got, expected) / self.relative
        difference = (got - expected).abs()
        limit = self.atol + self.rounding + self.rtol * expected.abs()
        share = torch.where(difference == 0, 0.0, difference / limit)
        return float(share.max())


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """The outcome of one case: its worst output."""

    id: str
    component: str
    passed: bool
    max_error: float | None = None  # largest absolute difference; None where nothing could be compared
    relative_error: float | None = None  # L2 norm of the difference over that of the expected values
    tolerance: str = ""
    used: float | None = None  # largest share of the tolerance that is used; above 1 fails
    rounding: float = 0.0  # what the tolerance had to be widened by, see NETWORKS
    reason: str = ""  # of a failure
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """All outcomes of a directory."""

    directory: Path
    device: str
    dtype: str
    results: tuple[CaseResult, ...] = field(default_factory=tuple)

    @property
    def failures(self) -> tuple[CaseResult, ...]:
        """The cases that failed."""
        return tuple(result for result in self.results if not result.passed)

    @property
    def passed(self) -> bool:
        """Whether there are results, all of them good."""
        return bool(self.results) and not self.failures


def verify(
    directory: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    on_result: Callable[[CaseResult], None] | None = None,
) -> Report:
    """Run every recorded case of a directory.

    Args:
        dtype: Of the networks' weights; sound, schedules and guidance are computed in float32 whatever it is.
        on_result: Told of every outcome as it comes.

    Raises:
        RequestError: The directory has no readable manifest.
    """
    manifest = _read_manifest(directory)
    bench = Bench(directory=directory, manifest=manifest, device=torch.device(device), dtype=dtype)
    bad_files = _check_files(directory, manifest)
    results = []
    with torch.no_grad(), _strict_float32():
        for result in _run_all(bench, manifest, bad_files):
            results.append(result)
            if on_result is not None:
                on_result(result)
    return Report(
        directory=directory,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        results=tuple(results),
    )


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Divide the L2 norm of the difference by that of the expected values."""
    difference, size = float((got - expected).norm()), float(expected.norm())
    return difference / size if size else difference


def _run_all(bench: Bench, manifest: Mapping[str, Any], bad: Mapping[str, str]) -> Iterator[CaseResult]:
    headers: dict[Path, Header] = {}
    for name, reason in bad.items():
        yield CaseResult(id=name, component="files", passed=False, reason=reason)
    for spec in manifest["cases"]:
        yield _run_case(bench, spec, bad, headers)


def _run_case(
    bench: Bench, spec: Mapping[str, Any], bad: Mapping[str, str], headers: dict[Path, Header]
) -> CaseResult:
    result = CaseResult(id=str(spec.get("id")), component=str(spec.get("component")), passed=False)
    begin = time.perf_counter()
    try:
        runner = COMPONENTS.get(result.component)
        if runner is None:
            known = ", ".join(COMPONENTS)
            raise RequestError(f"unknown component {result.component!r}; known are {known}")
        _reject_bad_files(spec, bad, bench)
        case = Case(
            spec=spec,
            inputs=_tensors(bench.directory, spec, "inputs", headers),
            outputs=_tensors(bench.directory, spec, "outputs", headers),
        )
        compared = _compare(bench, case, runner)
    except Exception as error:  # any failure of a case is its result, and the others still run
        return replace(result, reason=f"{type(error).__name__}: {error}")
    return replace(compared, id=result.id, component=result.component, seconds=time.perf_counter() - begin)


def _compare(bench: Bench, case: Case, runner: Runner) -> CaseResult:
    """Compare all outputs and report the worst: first what fails, then what is furthest off."""
    got = runner(bench, case)
    results = [_compare_one(bench, case, name, got.get(name)) for name in case.outputs]
    if not results:
        return CaseResult(id="", component="", passed=False, reason="the case records no outputs")
    component = case.spec["component"]
    is_float32 = bench.dtype == torch.float32 or component not in LOW_PRECISION
    if (
        component in NETWORKS
        and is_float32
        and any(not result.passed and result.max_error is not None for result in results)
    ):
        moved = _moved_by_rounding(bench, case, runner, got)
        results = [
            _compare_one(bench, case, name, got.get(name), moved.get(name, 0.0)) for name in case.outputs
        ]
    return min(results, key=lambda result: (result.passed, -(result.used or 0.0)))


def _compare_one(
    bench: Bench, case: Case, name: str, got: Tensor | None, rounding: float = 0.0
) -> CaseResult:
    expected = case.outputs[name]
    tolerance = _tolerance(bench, case, name)
    result = CaseResult(id="", component="", passed=False, tolerance=str(tolerance))
    if got is None:
        return replace(result, reason=f"output {name} is not computed")
    if got.shape != expected.shape:
        shapes = f"{list(got.shape)}, expected {list(expected.shape)}"
        return replace(result, reason=f"{name} has shape {shapes}")
    ours, theirs = got.detach().cpu().double(), expected.double()
    error = float((ours - theirs).abs().max()) if theirs.numel() else 0.0
    result = replace(result, max_error=error, relative_error=relative_error(ours, theirs))
    if not ours.isfinite().all():
        return replace(result, reason=f"{name} is not finite")
    result = replace(result, used=tolerance.used(ours, theirs))
    if tolerance.used(ours, theirs) <= 1:
        return replace(result, passed=True)
    is_continuous = expected.dtype.is_floating_point  # a step to the next integer is no measure of rounding
    widened = replace(tolerance, rounding=ROUNDING_FACTOR * rounding * is_continuous)
    result = replace(result, tolerance=str(widened), rounding=widened.rounding)
    if widened.used(ours, theirs) <= 1:
        return replace(result, passed=True)
    return replace(result, reason=f"{name} is off by {error:.3g}, more than {widened}")


def _moved_by_rounding(
    bench: Bench, case: Case, runner: Runner, got: Mapping[str, Tensor]
) -> dict[str, float]:
    """Measure how far each output moves when inputs change in their last place."""
    source = torch.Generator().manual_seed(0)
    moved = dict.fromkeys(got, 0.0)
    for _ in range(ROUNDING_TRIALS):
        inputs = {
            name: tensor * (1 + LAST_PLACE * (2 * torch.rand(tensor.shape, generator=source) - 1))
            if tensor.dtype == torch.float32
            else tensor
            for name, tensor in case.inputs.items()
        }
        for name, tensor in runner(bench, replace(case, inputs=inputs)).items():
            if tensor.numel() and tensor.isfinite().all():
                change = (tensor.double() - got[name].double()).abs().max()
                moved[name] = max(moved[name], float(change))
    return moved


def _tolerance(bench: Bench, case: Case, name: str) -> Tolerance:
    recorded = case.spec["tolerance"]
    own = recorded.get("per_output", {}).get(name, recorded)
    tolerance = Tolerance(atol=float(own["atol"]), rtol=float(own["rtol"]))
    bound = RELATIVE_BOUNDS.get(bench.dtype) if case.spec["component"] in LOW_PRECISION else None
    is_exact = not case.outputs[name].dtype.is_floating_point and not tolerance.atol  # masks, counts
    return tolerance if bound is None or is_exact else Tolerance(relative=bound)


def _tensors(
    directory: Path, spec: Mapping[str, Any], group: str, headers: dict[Path, Header]
) -> dict[str, Tensor]:
    path = _case_file(directory, spec)
    if path not in headers:
        headers[path] = read_header(path)
    entries = headers[path].tensors
    wanted = {name: entry["tensor"] for name, entry in spec.get(group, {}).items()}
    lacking = [tensor for tensor in wanted.values() if tensor not in entries]
    if lacking:
        raise CheckpointError(f"{path} has no tensor {lacking[0]}")
    return read_tensors({n: StoredTensor(path, tensor, entries[tensor]) for n, tensor in wanted.items()})


def _case_file(directory: Path, spec: Mapping[str, Any]) -> Path:
    name = str(spec["file"])
    return directory / (name if "/" in name else f"cases/{name}")


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(f"{path} does not exist; a directory of recorded cases is needed") from error
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise RequestError(f"{path} has format {found!r}; this version reads format {FORMAT}")
    if not isinstance(manifest.get("cases"), list):
        raise RequestError(f"{path} lists no cases")
    return manifest


def _check_files(directory: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Compare sizes and checksums of all listed files; return what is wrong, by file."""
    listed = {name: dict(entry) for name, entry in manifest.get("files", {}).items()}
    for checkpoint in manifest.get("checkpoints", {}).values():
        listed.setdefault(checkpoint["file"], {}).update({"sha256": checkpoint.get("sha256")})
    bad = {}
    for name, entry in listed.items():
        path = directory / name
        if not path.is_file():
            bad[name] = "the file is missing"
        elif entry.get("bytes") not in (None, path.stat().st_size):
            bad[name] = f"the file has {path.stat().st_size} bytes, {entry['bytes']} were recorded"
        elif entry.get("sha256") not in (None, _sha256(path)):
            bad[name] = "the file is not the recorded one: its SHA-256 differs"
    return bad


def _reject_bad_files(spec: Mapping[str, Any], bad: Mapping[str, str], bench: Bench) -> None:
    used = {str(_case_file(bench.directory, spec).relative_to(bench.directory))}
    used |= {
        bench.checkpoint_file(name) for name in (spec.get("checkpoint"), bench.statistics_of(spec)) if name
    }
    for name in sorted(used & bad.keys()):
        raise CheckpointError(f"{name}: {bad[name]}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _strict_float32() -> Iterator[None]:
    """Compute float32 as float32: by default cuDNN rounds the inputs of convolutions to TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])
