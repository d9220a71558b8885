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
from soundstage.cli.flags import PlacingFlags, Repeated
from soundstage.cli.imports import import_for_a_clip
from soundstage.core.errors import RequestError, ResourceError
from soundstage.core.files import check_folder, check_writable
from soundstage.core.progress import Progress
from soundstage.pipelines.compute import AttentionName, CompileName, Compute, ExchangeName, KernelsName
from soundstage.pipelines.given import check_files, check_output, mode_of
from soundstage.pipelines.request import GenerationRequest

if TYPE_CHECKING:
    from soundstage.pipelines.attention_recorder import AttentionRecorder
    from soundstage.pipelines.generation import Generation
    from soundstage.pipelines.pipeline import Pipeline
    from soundstage.pipelines.preparation import Prepared
    from soundstage.pipelines.stream import ClipStream
    from soundstage.runtime.distributed import Team

SUFFIXES = (".mp4", ".wav")


@dataclass(frozen=True, kw_only=True)
class RequestFlags(GenerationRequest):
    """The request's fields as flags: what was typed, checked when a request is made of it."""

    prompt: Annotated[str, tyro.conf.Positional] = ""  # what is to be seen and heard
    frame_rate: str | None = None  # frames per second: 24, 23.976, 24000/1001
    num_inference_steps: Annotated[int | None, tyro.conf.arg(aliases=["--steps"])] = None  # of the sampler
    prompt_at: Repeated = ()  # prompt for a part: 0-2s:"a ball falls"
    # PATH[@WHEN[:STRENGTH]] to show, repeatable; WHEN: frame (0, -1), seconds (1.5s) or last
    image: Repeated = ()
    # forward=SECONDS or backward=SECONDS: make the video longer
    extend: Repeated = ()
    # PATH[:STRENGTH] to follow without showing it, repeatable
    reference_video: Repeated = ()
    loras: Annotated[Repeated, tyro.conf.arg(name="lora", metavar="PATH")] = ()
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


def sized(flags: RequestFlags, size: str | None) -> RequestFlags:
    """Apply `--size`.

    Raises:
        RequestError: It is malformed, or given beside `--width` or `--height`.
    """
    if size is None:
        return flags
    if flags.width is not None or flags.height is not None:
        raise RequestError(f"--size {size} and --width or --height both say how large; give one")
    width, separator, height = size.lower().partition("x")
    if not (separator and width.isdecimal() and height.isdecimal()):
        raise RequestError(f"size={size!r} is not of the form WIDTHxHEIGHT, such as 64x64")
    return replace(flags, width=int(width), height=int(height))


@dataclass(frozen=True, kw_only=True)
class GenerateCommand:
    """Make clips with sound from prompts. What is not given is the model's own choice.

    Example:
        soundstage generate "a red ball bounces on a wooden floor" -o clip.mp4 --seed 7
        soundstage generate --prompts prompts.txt --num-videos 2 -o clip.mp4 --json
    """

    request: Annotated[RequestFlags, tyro.conf.arg(name="", prefix_name=False)]
    weights: Annotated[PlacingFlags, tyro.conf.arg(name="", prefix_name=False)]

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
    """Directory or GGUF file of the Gemma text encoder, for checkpoints that come without."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1 ...; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the weights; by default float32 for small models on a CPU, bfloat16 otherwise."""
    attention: AttentionName = "auto"
    """What attends: auto takes the fastest exact way there is; sage is approximate, and only on request."""
    kernels: KernelsName = "auto"
    """Fused steps of the transformer: auto takes Triton's kernels on a GPU, and plain PyTorch elsewhere."""
    compile: CompileName = "off"
    """Compile the transformer's blocks, or record CUDA graphs: faster, after a slower start."""
    prompt_cache: str | None = None
    """Where encoded prompts are kept: on, off, or a folder; on for models with a large text encoder."""
    attention_maps: Path | None = None
    """Folder for maps of what picture and sound attend to in each other; open index.html in it."""
    attention_steps: tuple[int, ...] | None = None
    """Denoising steps that the maps average, from 0; the middle third by default."""
    sequence_parallel: int = 1
    """Started by torchrun: processes that share the tokens of a pass; passes are dealt out over the rest."""
    sequence_exchange: ExchangeName = "auto"
    """How they share them: ulysses, if their number divides the heads; ring, always; auto: what fits."""
    shard_weights: bool = False
    """Started by torchrun: let every process keep a share of the transformer's weights."""
    json: bool = False
    """Write one line of JSON per clip to stdout, and no progress."""
    quiet: bool = False
    """Show no progress."""
    dry_run: bool = False
    """Show the plan (sizes, tokens, steps, passes, noise levels) and stop; nothing is loaded or written."""

    def run(self) -> int:
        """Check everything that can be checked, load the model once, then make clip after clip."""
        if self.attention_steps is not None and self.attention_maps is None:
            raise RequestError("attention_steps is given without attention_maps, which it is about")
        jobs = list(self._jobs())
        for request, path in jobs:
            check_files(request)
            check_output(request, path)
        self._check_alone()
        if self.dry_run:
            return self._show_plans([request for request, _ in jobs])
        for _, path in jobs:
            check_writable(path)
        if self.attention_maps is not None:
            check_folder(self.attention_maps)
        import_for_a_clip()
        self._check_plans([request for request, _ in jobs])
        from soundstage.runtime.distributed import launched

        if launched():
            return self._run_in_team(jobs)
        with ProgressConsole(quiet=self.quiet or self.json) as console:
            sound_only = all(request.no_video and not request.loras for request, _ in jobs)
            pipeline = self._load(console, [request for request, _ in jobs], sound_only=sound_only)
            for request, _ in jobs:
                pipeline.plan(request)  # what this model cannot do is said before the first clip is begun
            for number, (request, path) in enumerate(jobs, start=1):
                console.begin(f"clip {number} of {len(jobs)}" if len(jobs) > 1 else "")
                recorder = self._recorder()
                record = _generate(pipeline, request, path, console, recorder, self._maps_of(path, len(jobs)))
                self._report(record)
        return 0

    def _check_alone(self) -> None:
        """Refuse what only several processes can do, where there is one."""
        given = {
            f"sequence_parallel={self.sequence_parallel}": self.sequence_parallel != 1,
            f"sequence_exchange={self.sequence_exchange}": self.sequence_exchange != "auto",
            "shard_weights": self.shard_weights,
        }
        flags = [flag for flag, is_given in given.items() if is_given]
        if not flags:
            return
        from soundstage.runtime.distributed import launched

        if not launched():
            are, them = ("is", "it") if len(flags) == 1 else ("are", "them")
            raise RequestError(
                f"{', '.join(flags)} {are} for several processes, and there is one; begin with "
                f"`torchrun --nproc-per-node 2 -m soundstage generate`, or leave {them} out"
            )

    def _run_in_team(self, jobs: Sequence[tuple[GenerationRequest, Path]]) -> int:
        """Make the clips together with the other processes of a `torchrun`; the first one writes them."""
        from soundstage.runtime.device import find_device
        from soundstage.runtime.distributed import join_team

        if self.attention_maps is not None:
            raise RequestError("attention maps are made by one process; leave torchrun out")
        with (
            join_team(
                find_device(self.device),
                sequence=self.sequence_parallel,
                exchange=self.sequence_exchange,
                shards_weights=self.shard_weights,
            ) as team,
            ProgressConsole(quiet=self.quiet or self.json or not team.leads) as console,
        ):
            mine = replace(self, device=str(team.device))
            requests = [request for request, _ in jobs]
            sound_only = all(request.no_video for request in requests)
            pipeline = mine._load(console, requests, sound_only=sound_only, team=team)
            for request, path in jobs:
                if team.leads:
                    self._report(_generate(pipeline, request, path, console, None, Path()))
                else:
                    pipeline.assist(request)
        return 0

    def _check_plans(self, requests: Sequence[GenerationRequest]) -> None:
        """Find what does not go together, or not with this model, before it is loaded."""
        from soundstage.checkpoints.checkpoint import open_checkpoint
        from soundstage.checkpoints.releases import resolve
        from soundstage.pipelines.attention_recorder import check_steps
        from soundstage.pipelines.loras import choose_loras
        from soundstage.pipelines.modes.pictures import check_pictures
        from soundstage.pipelines.preparation import check_attention, check_blocks, prepare
        from soundstage.pipelines.settle import basis_of

        basis = basis_of(self.model)
        common = requests[0]  # they differ in prompt and seed only
        check_pictures(common)
        if common.loras:
            num_stages = len(prepare(common, basis).plan.stages)
            choose_loras(common.loras, open_checkpoint(resolve(self.model)), num_stages=num_stages)
        for request in requests:
            job = prepare(request, basis)
            check_blocks(job.plan, basis)
            if self.attention_maps is not None:
                check_attention(job)
                check_steps(self.attention_steps or (), len(job.plan.stages[0].recipe.sigmas) - 1)

    def _show_plans(self, requests: Sequence[GenerationRequest]) -> int:
        from soundstage.pipelines.preparation import check_blocks, prepare
        from soundstage.pipelines.settle import basis_of, describe, lines
        from soundstage.runtime.distributed import is_first

        if not is_first():
            return 0
        basis = basis_of(self.model)
        jobs = [prepare(request, basis) for request in requests]
        rows, notes = self._foreseen(jobs[0])  # they differ in prompt and seed only
        for job in jobs:
            check_blocks(job.plan, basis)
            description = describe(job.plan, job.given, rows)
            description["notes"] += notes
            text = json.dumps(description) if self.json else "\n".join(lines(description))
            sys.stdout.write(f"{text}\n")
        return 0

    def _foreseen(self, job: "Prepared") -> tuple[dict[str, int], list[str]]:
        """Tell how many passes will go together, or why the clip does not fit here.

        Raises:
            CheckpointError: A LoRA does not go with the model.
        """
        from soundstage.checkpoints.checkpoint import open_checkpoint
        from soundstage.checkpoints.releases import resolve
        from soundstage.pipelines.loading import default_dtype
        from soundstage.pipelines.loras import choose_loras
        from soundstage.pipelines.opening import DTYPES
        from soundstage.pipelines.placement import foresee
        from soundstage.runtime.device import find_device

        checkpoint, device = open_checkpoint(resolve(self.model)), find_device(self.device)
        dtype = DTYPES[self.dtype] if self.dtype else default_dtype(device, checkpoint.num_bytes)
        job = replace(job, loras=choose_loras(job.request.loras, checkpoint, num_stages=len(job.plan.stages)))
        try:
            rows = foresee(
                checkpoint,
                self.weights.placing(),
                job,
                device=device,
                dtype=dtype,
                text_encoder=self.text_encoder,
                compute=self._compute(),
            )
        except ResourceError as error:
            return {}, [f"it does not fit here: {error}"]
        return rows, []

    def _jobs(self) -> Iterator[tuple[GenerationRequest, Path]]:
        """Pair every clip's request with the file it goes into."""
        if self.output.suffix.lower() not in SUFFIXES:
            raise RequestError(f"output {self.output} ends neither in .mp4 nor in .wav")
        if self.num_videos < 1:
            raise RequestError(f"num_videos={self.num_videos} is not positive; the least is 1")
        prompts = self._prompts()
        first = self._for_file(sized(self.request, self.size).request(prompts[0]))
        count = len(prompts) * self.num_videos
        for index in range(count):
            prompt, copy = prompts[index // self.num_videos], index % self.num_videos
            path = self.output if count == 1 else self.output.with_stem(f"{self.output.stem}-{index + 1}")
            yield replace(first, prompt=prompt, seed=first.seed + copy), path

    def _for_file(self, request: GenerationRequest) -> GenerationRequest:
        """Compute no picture if the file cannot hold one and nothing in the request needs it."""
        is_plain = mode_of(request) == "text_to_audio_video" and request.mode is None
        is_plain = is_plain and self.attention_maps is None
        is_sound = self.output.suffix.lower() == ".wav"
        return replace(request, no_video=True) if is_plain and is_sound else request

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

    def _load(
        self,
        console: ProgressConsole,
        requests: Sequence[GenerationRequest],
        *,
        sound_only: bool,
        team: "Team | None" = None,
    ) -> "Pipeline":
        from soundstage.pipelines.pipeline import Pipeline

        return Pipeline.load(
            self.model,
            device=self.device,
            dtype=self.dtype,
            text_encoder=self.text_encoder,
            prompt_cache=self.prompt_cache,
            sound_only=sound_only,
            placing=self.weights.placing(),
            requests=requests,
            compute=self._compute(),
            team=team,
            on_progress=console,
        )

    def _compute(self) -> Compute:
        return Compute(attention=self.attention, kernels=self.kernels, compile=self.compile)

    def _recorder(self) -> "AttentionRecorder | None":
        from soundstage.pipelines.attention_recorder import AttentionRecorder

        return None if self.attention_maps is None else AttentionRecorder(self.attention_steps)

    def _maps_of(self, path: Path, count: int) -> Path:
        """Name the folder of one clip's maps: each of several clips has one of its own."""
        folder = self.attention_maps or Path()
        return folder if count == 1 else folder / path.stem

    def _report(self, record: dict[str, Any]) -> None:
        """Write a clip's path, or all about it, to stdout as soon as it is there."""
        if self.json:
            sys.stdout.write(json.dumps(record) + "\n")
        else:
            for note in record["notes"]:
                sys.stderr.write(f"soundstage: note: {note}\n")
            if "attention_maps" in record:
                sys.stderr.write(f"soundstage: attention maps: {record['attention_maps']}\n")
            sys.stdout.write(f"{record['path']}\n")
        sys.stdout.flush()


def _generate(
    pipeline: "Pipeline",
    request: GenerationRequest,
    path: Path,
    console: ProgressConsole,
    recorder: "AttentionRecorder | None",
    maps: Path,
) -> dict[str, Any]:
    """Make and write one clip; return what a machine wants to know about it."""
    from soundstage.pipelines.generation import Generation

    began = time.monotonic()
    generation: Generation | ClipStream
    if recorder is None and pipeline.comes_in_parts(request):  # then it is written while it is made
        generation = pipeline.stream(request, on_progress=console)
    else:
        generation = pipeline(request, on_progress=console, attention=recorder)
    made = time.monotonic()
    generation.save(path)
    more = {}
    if recorder is not None and isinstance(generation, Generation):
        from soundstage.pipelines.attention_report import save_attention_maps

        more["attention_maps"] = str(save_attention_maps(maps, generation, recorder.maps()))
    written = time.monotonic()
    writing = written - made if isinstance(generation, Generation) else generation.writing
    console(Progress(stage="write", step=1, num_steps=1, seconds=writing))
    stages = {stage: round(seconds, 3) for stage, seconds in console.seconds.items()}
    console.seconds.clear()
    return {
        "path": str(path),
        "mode": mode_of(request),
        "prompt": request.prompt,
        "seed": request.seed,
        **_shape(generation),
        "frame_rate": str(generation.frame_rate),
        "sample_rate": generation.sample_rate,
        "seconds": round(written - began, 3),
        "stages": stages,
        "notes": list(generation.notes),
        **more,
    }


def _shape(generation: "Generation | ClipStream") -> dict[str, int]:
    """Tell the size of the picture, if there is one."""
    from soundstage.pipelines.generation import Generation

    if not isinstance(generation, Generation):
        return {name: getattr(generation, name) for name in ("width", "height", "num_frames")}
    if generation.pixels is None:
        return {}
    _, num_frames, height, width = generation.pixels.shape
    return {"width": width, "height": height, "num_frames": num_frames}
