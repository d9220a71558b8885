"""`soundstage generate`: prompts in, clips with sound out."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from soundstage.cli.console import ProgressConsole
from soundstage.core.errors import RequestError
from soundstage.core.files import check_writable
from soundstage.core.progress import Progress
from soundstage.pipelines.request import GenerationRequest

if TYPE_CHECKING:
    from soundstage.pipelines.pipeline import Pipeline

SUFFIXES = (".mp4", ".wav")


@dataclass(frozen=True, kw_only=True)
class RequestFlags(GenerationRequest):
    """The request's fields as flags: what was typed, checked when a request is made of it."""

    prompt: Annotated[str, tyro.conf.Positional] = ""  # what is to be seen and heard
    frame_rate: str | None = None  # frames per second: 24, 23.976, 24000/1001
    num_inference_steps: Annotated[int | None, tyro.conf.arg(aliases=["--steps"])] = None  # of the sampler
    loras: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="lora", metavar="PATH")
    ] = ()
    """LoRA to use, as PATH[:STRENGTH][@STAGE], such as style.safetensors:0.8@1."""

    def __post_init__(self) -> None:
        """Check nothing yet: the prompt may come from a file."""

    def request(self, prompt: str, **changes: Any) -> GenerationRequest:
        """Make the request of one clip.

        Raises:
            RequestError: A value is not allowed.
        """
        values = {field.name: getattr(self, field.name) for field in fields(GenerationRequest)}
        return GenerationRequest(**{**values, "prompt": prompt, **changes})


@dataclass(frozen=True, kw_only=True)
class GenerateCommand:
    """Make clips with sound from prompts. What is not given is the model's own choice.

    Example:
        soundstage generate "a red ball bounces on a wooden floor" -o clip.mp4 --seed 7
        soundstage generate --prompts prompts.txt --num-videos 2 -o clip.mp4 --json
    """

    request: Annotated[RequestFlags, tyro.conf.arg(name="", prefix_name=False)]

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The .mp4 to write, or .wav for the sound alone; several clips get numbers: clip-1.mp4, clip-2.mp4."""
    prompts: Path | None = None
    """Text file with a prompt per line, in place of PROMPT; the model is loaded once."""
    num_videos: int = 1
    """Clips per prompt; they take the seeds that follow."""
    size: str | None = None
    """Width and height in one, such as 64x64 pixels."""
    model: str = "embedded"
    """The model inside the package, the name of a release (see `soundstage models`), or a path."""
    text_encoder: Path | None = None
    """Directory of the Gemma text encoder, for checkpoints that come without."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1 ...; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the weights; by default float32 for small models on a CPU, bfloat16 otherwise."""
    json: bool = False
    """Write one line of JSON per clip to stdout, and no progress."""
    quiet: bool = False
    """Show no progress."""
    dry_run: bool = False
    """Show the plan (sizes, tokens, steps, passes, noise levels) and stop; nothing is loaded or written."""

    def run(self) -> int:
        """Check everything that can be checked, load the model once, then make clip after clip."""
        jobs = list(self._jobs())
        if self.dry_run:
            return self._show_plans([request for request, _ in jobs])
        for _, path in jobs:
            check_writable(path)
        with ProgressConsole(quiet=self.quiet or self.json) as console:
            pipeline = self._load(console)
            for request, _ in jobs:
                pipeline.plan(request)  # what this model cannot do is said before the first clip is begun
            for number, (request, path) in enumerate(jobs, start=1):
                console.begin(f"clip {number} of {len(jobs)}" if len(jobs) > 1 else "")
                record = _generate(pipeline, request, path, console)
                self._report(record)
        return 0

    def _show_plans(self, requests: Sequence[GenerationRequest]) -> int:
        from soundstage.pipelines.settle import basis_of, describe, lines, settle

        basis = basis_of(self.model)
        for request in requests:
            description = describe(settle(request, basis))
            text = json.dumps(description) if self.json else "\n".join(lines(description))
            sys.stdout.write(f"{text}\n")
        return 0

    def _jobs(self) -> Iterator[tuple[GenerationRequest, Path]]:
        """Pair every clip's request with the file it goes into."""
        if self.output.suffix.lower() not in SUFFIXES:
            raise RequestError(f"output {self.output} ends neither in .mp4 nor in .wav")
        if self.num_videos < 1:
            raise RequestError(f"num_videos={self.num_videos} is not positive; the least is 1")
        prompts = self._prompts()
        first = self._sized().request(prompts[0])
        count = len(prompts) * self.num_videos
        for index in range(count):
            prompt, copy = prompts[index // self.num_videos], index % self.num_videos
            path = self.output if count == 1 else self.output.with_stem(f"{self.output.stem}-{index + 1}")
            yield replace(first, prompt=prompt, seed=first.seed + copy), path

    def _prompts(self) -> list[str]:
        if self.prompts is None:
            return [self.request.prompt]
        if self.request.prompt:
            raise RequestError(f"both a prompt and --prompts {self.prompts} were given; give one")
        try:
            lines = self.prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"cannot read --prompts {self.prompts}: {error}") from error
        prompts = [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise RequestError(f"--prompts {self.prompts} has no prompt; write one per line")
        return prompts

    def _sized(self) -> RequestFlags:
        """Apply `--size`."""
        if self.size is None:
            return self.request
        if self.request.width is not None or self.request.height is not None:
            raise RequestError(f"--size {self.size} and --width or --height both say how large; give one")
        width, separator, height = self.size.lower().partition("x")
        if not (separator and width.isdecimal() and height.isdecimal()):
            raise RequestError(f"size={self.size!r} is not of the form WIDTHxHEIGHT, such as 64x64")
        return replace(self.request, width=int(width), height=int(height))

    def _load(self, console: ProgressConsole) -> "Pipeline":
        from soundstage.pipelines.pipeline import Pipeline

        return Pipeline.load(
            self.model,
            device=self.device,
            dtype=self.dtype,
            text_encoder=self.text_encoder,
            on_progress=console,
        )

    def _report(self, record: dict[str, Any]) -> None:
        """Write a clip's path, or all about it, to stdout as soon as it is there."""
        if self.json:
            sys.stdout.write(json.dumps(record) + "\n")
        else:
            for note in record["notes"]:
                sys.stderr.write(f"soundstage: note: {note}\n")
            sys.stdout.write(f"{record['path']}\n")
        sys.stdout.flush()


def _generate(
    pipeline: "Pipeline", request: GenerationRequest, path: Path, console: ProgressConsole
) -> dict[str, Any]:
    """Make and write one clip; return what a machine wants to know about it."""
    began = time.monotonic()
    plan = pipeline.plan(request)
    is_long = plan.canvas.windows is not None  # then it is written while it is made
    generation = (pipeline.stream if is_long else pipeline)(request, on_progress=console)
    made = time.monotonic()
    generation.save(path)
    written = time.monotonic()
    console(Progress(stage="write", step=1, num_steps=1, seconds=written - made))
    stages = {stage: round(seconds, 3) for stage, seconds in console.seconds.items()}
    console.seconds.clear()
    return {
        "path": str(path),
        "prompt": request.prompt,
        "seed": request.seed,
        "width": plan.canvas.width,
        "height": plan.canvas.height,
        "num_frames": plan.canvas.num_frames,
        "frame_rate": str(generation.frame_rate),
        "sample_rate": generation.sample_rate,
        "seconds": round(written - began, 3),
        "stages": stages,
        "notes": list(generation.notes),
    }
