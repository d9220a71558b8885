"""What the two streams attend to in each other while a clip is made: collected by a recorder, kept as maps.

A run that is given no recorder computes none of this. With one, the shares of attention are computed once
more for the conditional pass of a few steps, a strip of queries at a time, and only averages are kept.

"Looking" is sound reading the picture: audio tokens ask, video tokens answer; in the network's names it is
`video_to_audio`. "Listening" is the picture reading the sound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.types import AV, Sigmas
from soundstage.models.transformer.block import CrossAttentionCall, Watch
from soundstage.models.transformer.config import Stream
from soundstage.pipelines.conditions import StreamState, VideoGrid

STRIP = 2**24  # shares held at once: 64 MiB


@dataclass(frozen=True, kw_only=True)
class AttentionMaps:
    """Averages over the recorded steps, float32, on the CPU. Rows of shares add up to 1."""

    look: Float[Tensor, "t f h w"]  # where each moment of sound looks; mean of all blocks and heads
    looking: Float[Tensor, "blocks t f"]  # the same per block, added up over the picture
    listening: Float[
        Tensor, "blocks f t"
    ]  # which moment of sound each latent frame listens to; mean of heads
    look_time: Float[Tensor, "blocks heads t"]  # mean time that a moment of sound looks at, seconds
    listen_time: Float[Tensor, "blocks heads n"]  # mean time that each video token listens to, seconds
    audio_times: Float[Tensor, "t 2"]  # [start, end) of audio tokens, seconds
    video_times: Float[Tensor, "f 2"]  # the same of latent frames
    steps: tuple[int, ...]
    frames: tuple[int, int] | None = None  # the first of the clip's frames that they are about, and how many

    @property
    def duration(self) -> float:
        """Seconds that the tokens span."""
        return float(max(self.audio_times.max(), self.video_times.max()))

    def distance(self, reader: Stream) -> Float[Tensor, "blocks heads queries"]:
        """Return |mean time attended to - own time| of every query, seconds."""
        if reader == "audio":
            return (self.look_time - self.audio_times.mean(-1)).abs()
        return (self.listen_time - self._video_token_times()).abs()

    def chance(self, reader: Stream) -> Float[Tensor, " queries"]:
        """Return the distance of queries that attend to everything alike, seconds."""
        if reader == "audio":
            return (self.video_times.mean() - self.audio_times.mean(-1)).abs()
        return (self.audio_times.mean() - self._video_token_times()).abs()

    def _video_token_times(self) -> Float[Tensor, " n"]:
        per_frame = self.listen_time.shape[-1] // len(self.video_times)
        return self.video_times.mean(-1).repeat_interleave(per_frame)


def check_steps(steps: Sequence[int], count: int) -> None:
    """Refuse steps that a run of so many does not have.

    Raises:
        RequestError: There is one.
    """
    for step in steps:
        if not 0 <= step < count:
            raise RequestError(f"attention step {step} does not exist; this run's are 0 to {count - 1}")


class AttentionRecorder:
    """Collects the attention between the streams of one run; `Pipeline.__call__` takes it."""

    def __init__(self, steps: Sequence[int] | None = None) -> None:
        """Choose when to look.

        Args:
            steps: Denoising steps to average over, the first being 0; the middle third when absent.
        """
        self.steps = None if steps is None else tuple(sorted(set(steps)))
        self._run: _Run | None = None
        self._frames: tuple[int, int] | None = None

    def begin(self, sigmas: Sigmas, streams: AV[StreamState], grid: VideoGrid, num_blocks: int) -> None:
        """Prepare for a stage. Only the first one is recorded: there it is settled what happens when.

        Raises:
            RequestError: There is no such step, or only one stream.
        """
        if self._run is not None:
            self._run.is_over = True
            return
        if streams.video is None or streams.audio is None:
            raise RequestError(
                "attention maps show how picture and sound attend to each other; one is absent"
            )
        count = len(sigmas) - 1
        steps = tuple(range(count // 3, count - count // 3)) if self.steps is None else self.steps
        check_steps(steps, count)
        self._run = _Run(sigmas, steps, streams.video, streams.audio, grid, num_blocks)

    def place(self, first: int, count: int) -> None:
        """Say which of the clip's frames were generated."""
        self._frames = (first, count)

    def watch(self, sigma: float) -> Callable[[int], Watch] | None:
        """Return what is to be shown a call of the network at a noise level; None if it is of no interest."""
        run = self._run
        if run is None or run.is_over or run.step(sigma) not in run.steps:
            return None
        run.num_calls += 1
        return lambda block: lambda call: run.add(block, call)

    def maps(self) -> AttentionMaps:
        """Return what was collected.

        Raises:
            RequestError: Nothing was.
        """
        if self._run is None or not self._run.num_calls:
            raise RequestError("no attention was recorded: no chosen step of the run reached the network")
        return replace(self._run.maps(), frames=self._frames)


class _Run:
    """Sums over the recorded calls of one stage."""

    def __init__(
        self,
        sigmas: Sigmas,
        steps: tuple[int, ...],
        video: StreamState,
        audio: StreamState,
        grid: VideoGrid,
        num_blocks: int,
    ) -> None:
        self.sigmas, self.steps, self.grid = sigmas, steps, grid
        self.num_calls, self.is_over = 0, False
        self.times = {
            "video": video.positions[0, 0, : video.num_target].float(),
            "audio": audio.positions[0, 0, : audio.num_target].float(),
        }
        frames, num_audio = grid.num_latent_frames, audio.num_target
        zeros = video.positions.new_zeros
        self.look = zeros(num_audio, video.num_target, dtype=torch.float32)
        self.between = {
            "audio": zeros(num_blocks, num_audio, frames, dtype=torch.float32),
            "video": zeros(num_blocks, frames, num_audio, dtype=torch.float32),
        }
        self.mean_time: dict[Stream, list[Tensor | float]] = {
            "audio": [0.0] * num_blocks,
            "video": [0.0] * num_blocks,
        }

    def step(self, sigma: float) -> int:
        """Return the step that a noise level belongs to."""
        return max(int((self.sigmas[:-1] >= sigma).sum()) - 1, 0)

    def add(self, block: int, call: CrossAttentionCall) -> None:
        """Add one call of one block."""
        other: Stream = "audio" if call.reader == "video" else "video"
        own, seen = self.times[call.reader], self.times[other]
        middles = seen.mean(-1)
        heads = call.attention.heads
        strip = max(STRIP // (heads * call.answering.shape[1]), 1)
        means = []
        for start in range(0, len(own), strip):
            stop = min(start + strip, len(own))
            shares = call.shares(start, stop)[..., : len(seen)]
            shares = shares / shares.sum(-1, keepdim=True)  # among the clip's own tokens
            means.append(shares @ middles)
            self._add_map(block, call.reader, start, shares.mean(0))
        self.mean_time[call.reader][block] += torch.cat(means, dim=-1)

    def _add_map(self, block: int, reader: Stream, start: int, shares: Float[Tensor, "queries keys"]) -> None:
        place = slice(start, start + len(shares))
        per_frame = self.grid.tokens_per_frame
        if reader == "audio":
            self.look[place] += shares
            per_moment = reduce(shares, "t (f cells) -> t f", "sum", cells=per_frame)
            self.between["audio"][block, place] += per_moment
        else:
            frame = torch.arange(place.start, place.stop, device=shares.device) // per_frame
            self.between["video"][block].index_add_(0, frame, shares / per_frame)

    def maps(self) -> AttentionMaps:
        """Divide the sums."""
        count, grid = self.num_calls, self.grid
        look = self.look / (count * len(self.between["audio"]))

        def times(reader: Stream) -> Tensor:
            means = [torch.as_tensor(mean) for mean in self.mean_time[reader]]
            return (torch.stack(means) / count).cpu()

        return AttentionMaps(
            look=rearrange(look, "t (f h w) -> t f h w", h=grid.rows, w=grid.columns).cpu(),
            looking=(self.between["audio"] / count).cpu(),
            listening=(self.between["video"] / count).cpu(),
            look_time=times("audio"),
            listen_time=times("video"),
            audio_times=self.times["audio"].cpu(),
            video_times=self.times["video"][:: grid.tokens_per_frame].cpu(),
            steps=self.steps,
        )
