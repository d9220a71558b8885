"""Open a model for generation: with its text encoder, or with one that is loaded once it is needed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from soundstage.checkpoints.checkpoint import Checkpoint, open_checkpoint
from soundstage.checkpoints.releases import resolve
from soundstage.core.errors import RequestError
from soundstage.core.progress import OnProgress
from soundstage.models.transformer.config import Stream
from soundstage.pipelines.compute import Compute
from soundstage.pipelines.loading import (
    FOR_GENERATION,
    FOR_SOUND,
    Components,
    default_dtype,
    load_checkpoint,
)
from soundstage.pipelines.modes.mode import BOTH, SOUND
from soundstage.pipelines.placed import Placed
from soundstage.pipelines.placement import place
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.prompt_cache import PromptCache, cache_folder
from soundstage.pipelines.prompt_encoder import PromptEncoder
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.step_caching import check_requests
from soundstage.pipelines.teamwork import check_sharding
from soundstage.pipelines.wording import EMBEDDED
from soundstage.runtime.device import find_device
from soundstage.runtime.distributed import Team
from soundstage.runtime.sharding import WeightShares

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def open_model(
    model: str | Path,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype | None,
    text_encoder: Path | None,
    prompt_cache: str | Path | None,
    sound_only: bool,
    placing: Placing,
    requests: Sequence[GenerationRequest],
    num_clips: int = 1,
    compute: Compute | None = None,
    team: Team | None = None,
    on_progress: OnProgress | None,
) -> tuple[Components, PromptEncoder | None, Placed]:
    """Load what generation needs; see `Pipeline.load`.

    Returns:
        The networks, the text side unless it is among them, and where they are.

    Raises:
        CheckpointError: Something is missing or damaged; says what to do.
        RequestError: There is no such device or number format, kernels cannot run there, the cache cannot be
            written, or something does not go with several processes.
    """
    where, checkpoint = find_device(device), open_checkpoint(resolve(model))
    if where.index is not None and where.type == "cuda":
        torch.cuda.set_device(where)  # what launches kernels of its own does so on the current one
    wanted, cache = _dtype(dtype), _cache(prompt_cache, checkpoint)
    settled = wanted or default_dtype(where, checkpoint.num_bytes)
    streams: tuple[Stream, ...] = SOUND if sound_only else BOTH
    shares = None
    if team is not None:
        check_requests(requests, team)
    if team is not None and team.shards_weights:
        check_sharding(checkpoint, placing, requests)
        shares, placing = WeightShares(team), replace(placing, offload="none")
    placed = place(
        checkpoint,
        placing,
        device=where,
        dtype=settled,
        text_encoder=text_encoder,
        requests=requests,
        num_clips=num_clips,
        num_shares=1 if shares is None else shares.team.world.size,
        compute=compute,
    )
    prompts = None
    if cache is not None:
        prompts = PromptEncoder.lazy(
            checkpoint,
            text_encoder,
            cache,
            device=where,
            dtype=settled,
            streams=streams,
            placed=placed,
            on_progress=on_progress,
        )
    names = FOR_SOUND if sound_only else FOR_GENERATION
    components = load_checkpoint(
        checkpoint,
        device=placed.loading_device(where),
        dtype=settled,
        components=[name for name in names if prompts is None or name != "text"],
        streams=streams,
        text_encoder=text_encoder,
        placing=placing,
        mapped=placed.mapped,
        shares=shares,
        on_progress=on_progress,
    )
    return placed.take(components, where), prompts, placed


def _cache(asked: str | Path | None, checkpoint: Checkpoint) -> PromptCache | None:
    """Find the cache of encoded prompts; by default none where encoding takes no time."""
    if asked is None:
        asked = "off" if checkpoint.generation.name == EMBEDDED else "on"
    if asked == "off":
        return None
    return PromptCache(cache_folder() if asked == "on" else Path(asked).expanduser())


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    if name is None or isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise RequestError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]
