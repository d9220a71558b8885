"""`soundstage evaluate`: measure what a model generates, from the files it writes."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from soundstage.cli.console import ProgressConsole
from soundstage.core.errors import RequestError
from soundstage.core.files import check_writable

if TYPE_CHECKING:
    from soundstage.evaluation.suite import SuiteResult
    from soundstage.pipelines.pipeline import Pipeline

REQUEST_FIELDS = (
    "num_inference_steps",
    "guidance_scale",
    "audio_guidance_scale",
    "modality_scale",
    "audio_modality_scale",
)


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Generate clips from held-out captions and measure them by detectors that know nothing of the model.

    Beside the model's numbers stand those of the world's own clips, as they are and through the model's VAEs.

    Example:
        soundstage evaluate --report outputs/evaluation -n 64 --seed 1
        soundstage evaluate --clips outputs --report outputs/evaluation
    """

    report: Path
    """Folder for the clips, `report.json` and `report.html`; made if it does not exist."""
    model: str = "embedded"
    """The model inside the package, the name of a release (see `soundstage models`), or a path."""
    suite: Literal["world"] = "world"
    """Where the captions come from: the procedural world's combinations kept from training."""
    num_clips: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """How many clips."""
    seed: int = 1
    """Seed of the first scene and of its clip's noise; the others follow."""
    clips: Path | None = None
    """Measure the .mp4 files of this folder instead of generating; no model is loaded."""
    ablate_cross_attention: bool = False
    """Generate everything once more without attention between picture and sound."""
    num_inference_steps: Annotated[int | None, tyro.conf.arg(aliases=["--steps"])] = None
    """Steps of the sampler; the model's own number if not given."""
    guidance_scale: float | None = None
    """Picture: towards the prompt; 1 = off."""
    audio_guidance_scale: float | None = None
    """Sound: towards the prompt; 1 = off."""
    modality_scale: float | None = None
    """Picture: towards what the sound demands; 1 = off."""
    audio_modality_scale: float | None = None
    """Sound: towards what the picture demands; 1 = off."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1 ...; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the weights; by default float32 for small models on a CPU, bfloat16 otherwise."""
    json: bool = False
    """Write the report as JSON to stdout instead of tables, and no progress."""
    quiet: bool = False
    """Show no progress."""

    def run(self) -> int:
        """Check the flags, load the model, evaluate, write the report, then show it."""
        if self.clips is not None and not self.clips.is_dir():
            raise RequestError(f"--clips {self.clips} is not a folder of .mp4 files")
        if self.clips is not None and self.ablate_cross_attention:
            raise RequestError("--clips measures existing files; --ablate-cross-attention needs a model")
        try:
            self.report.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"cannot make folder {self.report}: {error.strerror or error}") from error
        check_writable(self.report / "report.json")
        with ProgressConsole(quiet=self.quiet or self.json) as console:
            result = self._evaluate(console)
        self._show(result)
        return 0

    def _evaluate(self, console: ProgressConsole) -> "SuiteResult":
        from soundstage.evaluation.suite import SuitePlan, run_suite

        plan = SuitePlan(
            suite=self.suite,
            num_clips=self.num_clips,
            seed=self.seed,
            directory=self.report,
            clips=self.clips,
            ablate_cross_attention=self.ablate_cross_attention,
            fields=self._fields(),
        )
        return run_suite(plan, self._load(console), on_progress=console)

    def _load(self, console: ProgressConsole) -> "Pipeline | None":
        if self.clips is not None:
            return None
        from soundstage.pipelines.pipeline import Pipeline

        return Pipeline.load(self.model, device=self.device, dtype=self.dtype, on_progress=console)

    def _fields(self) -> dict[str, Any]:
        """Collect what every request shall say; what is not given is the model's own choice."""
        given = {name: getattr(self, name) for name in REQUEST_FIELDS}
        return {name: value for name, value in given.items() if value is not None}

    def _show(self, result: "SuiteResult") -> None:
        from soundstage.evaluation.report import write_report

        files = write_report(result)
        if self.json:
            sys.stdout.write(json.dumps(result.to_dict(), sort_keys=True) + "\n")
        else:
            _print_tables(result)
            sys.stdout.write(f"{files.html}\n{files.json}\n")


def _print_tables(result: "SuiteResult") -> None:
    """Write the metrics of all groups, then what the detectors say about known truth."""
    from rich.console import Console
    from rich.table import Table

    from soundstage.evaluation.report import check_rows, metric_rows

    metrics = Table(title=f"{result.model or result.plan.clips}: suite {result.plan.suite}")
    metrics.add_column("metric")
    for group in result.groups:
        metrics.add_column(f"{group.title} ({len(group.clips)})", justify="right")
    for title, values in metric_rows(result.groups):
        metrics.add_row(title, *values)
    checks = Table(title="detectors on known truth")
    checks.add_column("detector")
    checks.add_column("truth", justify="right")
    checks.add_column("measured", justify="right")
    for row in check_rows(result.checks):
        checks.add_row(*row)
    console = Console()
    console.print(metrics)
    console.print(checks)
