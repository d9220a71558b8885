"""The step cache of a stage, as a request asks for it."""

from collections.abc import Sequence

from soundstage.core.errors import RequestError
from soundstage.core.types import AV
from soundstage.diffusion.flow import Stream
from soundstage.diffusion.rehearsal import rehearse
from soundstage.models.transformer.step_cache import FEWEST_CALLS, CacheRule, StepCache
from soundstage.pipelines.plan import Stage
from soundstage.runtime.distributed import Team


def step_cache(threshold: float, stage: Stage, streams: AV[Stream]) -> StepCache | None:
    """Make the cache of one stage; none if it is off, or the stage too short for one."""
    num_calls = len(rehearse(stage.recipe, streams.map(lambda stream: stream.frozen))) if threshold else 0
    if num_calls < FEWEST_CALLS:
        return None
    return StepCache(CacheRule(threshold=threshold, num_calls=num_calls))


def check_step_cache(threshold: float, stages: Sequence[Stage], team: Team) -> None:
    """Refuse a cache that no stage is long enough for, or where processes would disagree about a step.

    Raises:
        RequestError: All stages are too short; or the processes of a team compute the same pass together, of
            which each sees only its part: one would leave blocks out while others wait for it there.
    """
    if not threshold:
        return
    if team.sequence.size > 1 or team.shards_weights:
        raise RequestError(
            "step_cache does not go with sequence_parallel or shard_weights; leave one of them out"
        )
    longest = max(len(stage.recipe.sigmas) - 1 for stage in stages)
    if longest < FEWEST_CALLS:
        raise RequestError(
            f"step_cache={threshold:g} needs a stage of {FEWEST_CALLS} steps or more, and the longest has "
            f"{longest}: so few differ too much from each other; leave it out, or ask for more steps"
        )
