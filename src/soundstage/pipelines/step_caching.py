"""The step cache of a stage, as a request asks for it."""

from collections.abc import Sequence

from soundstage.core.errors import RequestError
from soundstage.core.types import AV
from soundstage.diffusion.flow import Stream
from soundstage.diffusion.rehearsal import rehearse
from soundstage.models.transformer.step_cache import FEWEST_CALLS, CacheRule, StepCache
from soundstage.pipelines.plan import Stage


def step_cache(threshold: float, stage: Stage, streams: AV[Stream]) -> StepCache | None:
    """Make the cache of one stage; none if it is off, or the stage too short for one."""
    num_calls = len(rehearse(stage.recipe, streams.map(lambda stream: stream.frozen))) if threshold else 0
    if num_calls < FEWEST_CALLS:
        return None
    return StepCache(CacheRule(threshold=threshold, num_calls=num_calls))


def check_step_cache(threshold: float, stages: Sequence[Stage]) -> None:
    """Refuse a cache that no stage is long enough for.

    Raises:
        RequestError: All stages are too short.
    """
    if not threshold:
        return
    longest = max(len(stage.recipe.sigmas) - 1 for stage in stages)
    if longest < FEWEST_CALLS:
        raise RequestError(
            f"step_cache={threshold:g} needs a stage of {FEWEST_CALLS} steps or more, and the longest has "
            f"{longest}: so few differ too much from each other; leave it out, or ask for more steps"
        )
