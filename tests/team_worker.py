"""One of the processes of `tests/unit/runtime/test_distributed.py`: makes tiny clips alone and in a team."""

import os
import sys

import torch

from soundstage.pipelines.pipeline import Pipeline
from soundstage.runtime.distributed import join_team

PROMPT = "a red ball bounces on a wooden floor"
SIZE = {"width": 48, "height": 16, "num_frames": 17, "num_inference_steps": 2, "seed": 3}  # 9 video tokens
UNEVEN = {"width": 80, "num_frames": 9}  # 10 video tokens
THREE = {"guidance_scale": 3.0, "modality_scale": 2.0, "stg_scale": 0.0}
FOUR = THREE | {"stg_scale": 1.0, "stg_blocks": (0,), "audio_stg_scale": 1.0, "audio_stg_blocks": (1,)}
LATER = {"prompt_at": ("0-0.3s:a blue cube",)}
TEAMS = {  # name -> how many processes, how the team is set up, and what is asked for
    "guidance": (2, {}, FOUR),
    "guidance with one pass left over": (2, {}, THREE),
    "ulysses, prompts in time": (2, {"sequence": 2}, FOUR | LATER),
    "ring": (2, {"sequence": 2, "exchange": "ring"}, FOUR),
    "ring of three, prompts in time": (3, {"sequence": 3}, THREE | LATER | UNEVEN),
    "sharded": (2, {"shards_weights": True}, THREE),
    "sharded over a ring of three": (3, {"sequence": 3, "shards_weights": True}, FOUR | UNEVEN),
}


def main(model: str, rank: int, out: str, *names: str) -> None:
    torch.set_num_threads(1)
    results = {}
    port = int(os.environ["MASTER_PORT"])
    for index, name in enumerate(names):
        size, setup, fields = TEAMS[name]
        asked = SIZE | fields
        if rank >= size:
            continue
        os.environ["WORLD_SIZE"] = str(size)
        os.environ["MASTER_PORT"] = str(port + index)  # the last meeting's may not be free yet
        if rank == 0:
            alone = Pipeline.load(model, device="cpu")(PROMPT, **asked)
        with join_team(torch.device("cpu"), **setup) as team:
            pipeline = Pipeline.load(model, device="cpu", team=team)
            if not team.leads:
                pipeline.assist(PROMPT, **asked)
                continue
            made = pipeline(PROMPT, **asked)
        results[name] = {"alone": (alone.pixels, alone.waveform), "made": (made.pixels, made.waveform)}
    if rank == 0:
        torch.save(results, out)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
