"""`soundstage batch`: many clips from a file of requests."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from soundstage.cli.flags import PlacingFlags
from soundstage.core.errors import RequestError
from soundstage.core.files import check_folder
from soundstage.pipelines.batch import EngineName


@dataclass(frozen=True, kw_only=True)
class BatchCommand:
    """Make a clip of every line of a file. Begun again, it goes on where it stopped.

    A line has the fields of a request: {"prompt": "a ball falls", "seed": 7, "name": "ball"}

    Example: soundstage batch prompts.jsonl --out clips
    """

    requests: Annotated[Path, tyro.conf.Positional]
    """File with a JSON object per line: fields of a request, and perhaps the name of the clip's file."""
    out: Path
    """Folder for the clips and manifest.jsonl, which says what became of each line."""
    engine: EngineName = "local"
    """Who does the work: this process, or workers on a Ray cluster (pip install 'soundstage[batch]')."""
    workers: int | None = None
    """Workers on the cluster; as many as it has GPUs by default."""
    model: str = "embedded"
    """The model inside the package, the name of a release (see `soundstage models`), or a path."""
    text_encoder: Path | None = None
    """Directory or GGUF file of the Gemma text encoder, for checkpoints that come without."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1 ...; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the weights; by default float32 for small models on a CPU, bfloat16 otherwise."""
    weights: Annotated[PlacingFlags, tyro.conf.arg(name="", prefix_name=False)]

    def run(self) -> int:
        """Make what is missing; 0 if every line has its clip in the end, 2 otherwise."""
        from soundstage.pipelines.batch import (
            ENGINES,
            Workplace,
            read_jobs,
            requests_of,
            run_batch,
            unfinished,
        )

        if self.workers is not None and self.workers < 1:
            raise RequestError(f"workers={self.workers} is not positive; the least is 1")
        placing = self.weights.placing()
        jobs = read_jobs(self.requests, self.model)
        check_folder(self.out)
        missing = unfinished(jobs, self.out)
        sys.stderr.write(f"soundstage: {len(jobs) - len(missing)} of {len(jobs)} clips are there\n")
        if not missing:
            return 0
        place = Workplace(
            model=self.model,
            folder=str(self.out.resolve()),
            device=self.device,
            dtype=self.dtype,
            text_encoder=None if self.text_encoder is None else str(self.text_encoder),
            placing=placing,
            requests=requests_of(missing),
        )
        failed = 0
        for outcome in run_batch(missing, place, engine=ENGINES[self.engine], workers=self.workers):
            failed += outcome.error is not None
            sys.stdout.write(json.dumps(outcome.to_dict(), ensure_ascii=False) + "\n")
            sys.stdout.flush()
        if failed:
            sys.stderr.write(f"soundstage: {failed} of {len(missing)} clips failed; mend and run again\n")
        return 2 if failed else 0
