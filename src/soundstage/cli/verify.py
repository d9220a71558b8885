"""`soundstage verify`: check this installation against recorded reference outputs."""

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from soundstage.evaluation.verify import CaseResult, Report

EXIT_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class VerifyCommand:
    """Run every recorded case of a directory and compare: does this machine compute what the reference did?

    A case that cannot be run counts as failed; the exit status is 1 if any case fails.

    Example: soundstage verify tests/golden --device cuda
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """Directory with a manifest.json, as in tests/golden."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1 ..."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the networks; below float32 a bound on the relative error replaces the tolerances."""
    json: bool = False
    """Write machine-readable output."""

    def run(self) -> int:
        """Print the table; return 1 if any case fails."""
        import torch

        from soundstage.evaluation.verify import verify
        from soundstage.runtime.device import find_device

        device = find_device(self.device)
        show = None if self.json else _print_row
        if not self.json:
            sys.stdout.write(_row("case", "max error", "relative", "tolerance", "result"))
        report = verify(self.directory, device=device, dtype=getattr(torch, self.dtype), on_result=show)
        sys.stdout.write(_to_json(report) if self.json else _closing(report))
        return 0 if report.passed else EXIT_FAILED


def _print_row(result: "CaseResult") -> None:
    error = "" if result.max_error is None else f"{result.max_error:.2e}"
    relative = "" if result.relative_error is None else f"{result.relative_error:.2e}"
    verdict = "pass" if result.passed else "FAIL"
    sys.stdout.write(_row(result.id, error, relative, result.tolerance, verdict))
    if result.reason:
        sys.stdout.write(f"    {' '.join(result.reason.split())}\n")
    sys.stdout.flush()


def _row(name: str, error: str, relative: str, tolerance: str, verdict: str) -> str:
    return f"{name:<44}{error:>10}{relative:>10}  {tolerance:<36}{verdict}\n"


def _closing(report: "Report") -> str:
    total, failed = len(report.results), len(report.failures)
    seconds = sum(result.seconds for result in report.results)
    lines = [f"{total - failed} of {total} passed on {report.device} in {report.dtype}, {seconds:.1f} s"]
    widened = [result.id for result in report.results if result.rounding and result.passed]
    if widened:
        lines.append(
            "within rounding, which these cases magnify beyond their recorded tolerance: "
            + ", ".join(widened)
        )
    return "\n".join(lines) + "\n"


def _finite(value: object) -> object:
    """Replace what JSON has no number for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_json(report: "Report") -> str:
    content = {
        "directory": str(report.directory),
        "device": report.device,
        "dtype": report.dtype,
        "passed": report.passed,
        "num_cases": len(report.results),
        "num_failed": len(report.failures),
        "cases": [{k: _finite(v) for k, v in asdict(result).items()} for result in report.results],
    }
    return json.dumps(content, indent=2) + "\n"
