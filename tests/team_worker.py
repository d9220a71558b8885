"""One of the processes of `tests/unit/runtime/test_distributed.py`: makes tiny clips alone and in a team."""

import os
import sys

import torch

from soundstage.pipelines.pipeline import Pipeline
from soundstage.runtime.distributed import join_team

PROMPT = "a red ball bounces on a wooden floor"
SIZE = {"width": 48, "height": 16, "num_frames": 17, "num_inference_steps": 2, "seed": 3}  # 9 video tokens
THREE = {"guidance_scale": 3.0, "modality_scale": 2.0, "stg_scale": 0.0}
FOUR = THREE | {"stg_scale": 1.0, "stg_blocks": (0,), "audio_stg_scale": 1.0, "audio_stg_blocks": (1,)}
TEAMS = {  # name -> how the team is set up, and what is asked for
    "guidance": ({}, FOUR),
    "guidance with one pass left over": ({}, THREE),
    "sequence": ({"sequence": 2}, FOUR),
    "sequence, prompts in time": ({"sequence": 2}, THREE | {"prompt_at": ("0-0.3s:a blue cube",)}),
    "sharded": ({"shards_weights": True}, THREE),
}


def main(model: str, rank: int, out: str, *names: str) -> None:
    torch.set_num_threads(1)
    results = {}
    port = int(os.environ["MASTER_PORT"])
    for index, name in enumerate(names):
        setup, fields = TEAMS[name]
        os.environ["MASTER_PORT"] = str(port + index)  # the last meeting's may not be free yet
        pipeline = Pipeline.load(model, device="cpu")
        if rank == 0:
            alone = pipeline(PROMPT, **SIZE, **fields)
        with join_team(torch.device("cpu"), **setup) as team:
            pipeline.share(team)
            if not team.leads:
                pipeline.assist(PROMPT, **SIZE, **fields)
                continue
            made = pipeline(PROMPT, **SIZE, **fields)
        results[name] = {"alone": (alone.pixels, alone.waveform), "made": (made.pixels, made.waveform)}
    if rank == 0:
        torch.save(results, out)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
