"""`soundstage evaluate`: measure what a model generates, from the files it writes."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from soundstage.cli.console import ProgressConsole
from soundstage.core.errors import RequestError
from soundstage.core.files import check_folder

if TYPE_CHECKING:
    from soundstage.evaluation.report import Table
    from soundstage.evaluation.results import SuiteResult
    from soundstage.pipelines.pipeline import Pipeline

REQUEST_FIELDS = (
    "num_inference_steps",
    "guidance_scale",
    "audio_guidance_scale",
    "modality_scale",
    "audio_modality_scale",
    "width",
    "height",
)
PLAIN_WIDTH = 160  # characters of a line where no terminal says how many


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Generate clips from captions of the world and measure them by detectors that know nothing of the model.

    Beside the model's numbers stand those of the world's own clips, as they are and through the model's VAEs.

    Example:
        soundstage evaluate --report outputs/evaluation -n 64 --seed 1 --streams av v2a a2v
        soundstage evaluate clip.mp4 another.mp4
        soundstage evaluate --compare old/report.json new/report.json
    """

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Measure these clips, and those of these folders, instead of generating; no model is loaded."""
    report: Path | None = None
    """Folder for the clips, `report.json` and `report.html`; made if it does not exist."""
    model: str = "embedded"
    """The model inside the package, the name of a release (see `soundstage models`), or a path."""
    suite: Literal["world", "codec"] = "world"
    """Everything, or only what VAEs and vocoder lose."""
    kinds: tuple[str, ...] = ()
    """Kinds of scenes: the world's, "silent" and "off-screen"; all if not given."""
    num_clips: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """How many clips of each kind; half combine attributes as training never does."""
    seed: int = 1
    """Seed of the first scene and of its clip's noise; the others follow."""
    streams: tuple[Literal["av", "v2a", "a2v"], ...] = ("av",)
    """What is generated: both streams, sound for true pictures (v2a), pictures for true sound (a2v)."""
    compare: tuple[Path, Path] | None = None
    """Two `report.json`, the older first: show what changed, with intervals; nothing is measured."""
    clips: Path | None = None
    """Measure the .mp4 files of this folder instead of generating; no model is loaded."""
    ablate_cross_attention: bool = False
    """Generate everything once more without attention between picture and sound."""
    workers: int = 1
    """Processes that share the measuring."""
    batch: int = 1
    """Clips that are generated together."""
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
    width: int | None = None
    """Pixels; the model's own number if not given."""
    height: int | None = None
    """Pixels; the model's own number if not given."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1 ...; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the weights; by default float32 for small models on a CPU, bfloat16 otherwise."""
    json: bool = False
    """Write the report as JSON to stdout instead of tables, and no progress."""
    quiet: bool = False
    """Show no progress."""

    def run(self) -> int:
        """Check the flags, then evaluate a model, measure files, or compare two reports."""
        self._check()
        if self.compare is not None:
            self._compare(*self.compare)
        elif self.report is not None:
            check_folder(self.report)
            self._evaluate(self.report)
        else:
            with TemporaryDirectory() as folder:
                self._evaluate(Path(folder))
        return 0

    def _check(self) -> None:
        if self.clips is not None and not self.clips.is_dir():
            raise RequestError(f"--clips {self.clips} is not a folder of .mp4 files")
        if self._stored and self.ablate_cross_attention:
            raise RequestError(
                "existing files are measured as they are; --ablate-cross-attention needs a model"
            )
        if self.compare is not None and self._stored:
            raise RequestError("--compare reads two reports and measures no files; do one after the other")
        if self.compare is None and self.report is None and not self._stored:
            raise RequestError("--report is missing: the folder for the clips and the report")
        if self.batch < 1:
            raise RequestError(f"--batch {self.batch} is not positive; the least is 1")

    @property
    def _stored(self) -> tuple[Path, ...]:
        return self.files if self.clips is None else (*self.files, self.clips)

    def _evaluate(self, folder: Path) -> None:
        from soundstage.evaluation.suite import SuitePlan, run_suite

        plan = SuitePlan(
            suite=self.suite,
            kinds=self.kinds,
            num_clips=self.num_clips,
            seed=self.seed,
            directory=folder,
            clips=self._stored,
            with_truth=self.report is not None,
            streams=self.streams,
            ablate_cross_attention=self.ablate_cross_attention,
            fields=self._fields(),
            workers=self.workers,
            batch=self.batch,
        )
        with ProgressConsole(quiet=self.quiet or self.json) as console:
            result = run_suite(plan, self._load(console), on_progress=console)
        self._show(result)

    def _load(self, console: ProgressConsole) -> "Pipeline | None":
        if self._stored:
            return None
        from soundstage.pipelines.pipeline import Pipeline
        from soundstage.pipelines.request import GenerationRequest

        makes_batches = self.suite == "world" and ("av" in self.streams or self.ablate_cross_attention)
        together = self.batch if makes_batches else 1
        clip = GenerationRequest.of({"prompt": "a clip of the suite", **self._fields()})
        pipeline = Pipeline.load(
            self.model,
            device=self.device,
            dtype=self.dtype,
            requests=[clip],
            num_clips=together,
            on_progress=console,
        )
        pipeline.plan(clip, num_clips=together)  # what does not fit is said before the world is rendered
        return pipeline

    def _fields(self) -> dict[str, Any]:
        """Collect what every request shall say; what is not given is the model's own choice."""
        given = {name: getattr(self, name) for name in REQUEST_FIELDS}
        return {name: value for name, value in given.items() if value is not None}

    def _show(self, result: "SuiteResult") -> None:
        from soundstage.evaluation.report import plain, tables, write_report

        files = None if self.report is None else write_report(result)
        if self.json:
            sys.stdout.write(json.dumps(plain(result), sort_keys=True) + "\n")
            return
        _print_tables(tables(result))
        if files is not None:
            sys.stdout.write(f"{files.html}\n{files.json}\n")

    def _compare(self, old: Path, new: Path) -> None:
        from dataclasses import asdict

        from soundstage.evaluation.compare import compare
        from soundstage.evaluation.report import change_table
        from soundstage.evaluation.results import finite

        changes = compare(old, new)
        if self.json:
            plain = [finite({**asdict(change), "clear": change.is_clear}) for change in changes]
            sys.stdout.write(json.dumps(plain, sort_keys=True) + "\n")
        else:
            _print_tables([change_table(changes)], intervals=True)


def _print_tables(tables: "Iterable[Table]", *, intervals: bool = False) -> None:
    """Write tables to the terminal: without what is for whoever asks further, which is in the report."""
    from rich.console import Console
    from rich.table import Table as Drawn

    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    for table in tables:
        if table.is_detail:
            continue
        drawn = Drawn(title=table.title)
        for index, title in enumerate(table.head):
            drawn.add_column(title, justify="right" if index else "left")
        for row in table.rows:
            drawn.add_row(*(cell if intervals else cell.partition(" [")[0] for cell in row))
        console.print(drawn)
