"""What one of several processes does: its share of the passes, on its share of the video tokens."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import Checkpoint
from soundstage.core.errors import RequestError
from soundstage.core.types import AV
from soundstage.diffusion.denoise import Denoiser
from soundstage.diffusion.guidance import Pass
from soundstage.models.transformer.model import AVTransformer
from soundstage.nn.attention_merging import part_kernel
from soundstage.nn.gguf_formats import BLOCK_FORMATS
from soundstage.pipelines.adaptation import BLOCKS, is_codable
from soundstage.pipelines.batching import activation_numbers, most_rows
from soundstage.pipelines.conditions import StreamState
from soundstage.pipelines.equipment import Equipment
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.request import GenerationRequest
from soundstage.runtime.distributed import Team
from soundstage.runtime.quantization.placing import FP8
from soundstage.runtime.quantization.registry import NONE
from soundstage.runtime.shared_tokens import choose_exchange, shared_tokens

logger = logging.getLogger(__name__)


MakeDenoiser = Callable[[AV[StreamState], int | None], Denoiser]  # for some tokens, so many rows at once


class TeamDenoiser:
    """Gives every process the same predictions, bit for bit, so that all samplers take the same steps."""

    def __init__(
        self,
        make: MakeDenoiser,
        transformer: AVTransformer,
        streams: AV[StreamState],
        team: Team,
        rows_at_once: int | None = None,
    ) -> None:
        """Share out one stage.

        Args:
            make: Is called for the tokens that are this process's own.
            rows_at_once: How many rows a layer takes together, at most; as many as gain by it when absent.

        Raises:
            RequestError: The heads cannot be dealt out to so many.
        """
        self.team = team
        self.transformer = transformer
        video = streams.video
        self.num_tokens = 0 if video is None else video.clean.shape[1]
        self.shares_tokens = team.sequence.size > 1 and self.num_tokens >= team.sequence.size
        if self.shares_tokens and video is not None:
            self.exchange = choose_exchange(team.exchange, transformer, team.sequence)
            own = AV(_cut(video, team.sequence.share(self.num_tokens)), streams.audio)
            self.denoiser = make(own, self._agreed(streams, rows_at_once))
        else:
            self.denoiser = make(streams, rows_at_once)

    def __call__(self, noisy: AV[Tensor], sigma: float, passes: Sequence[Pass]) -> list[AV[Tensor]]:
        """Return one prediction per pass, in order."""
        group = self.team.guidance
        rounds = -(-len(passes) // group.size)
        places = [turn * group.size + group.rank for turn in range(rounds)]
        mine = [passes[min(place, len(passes) - 1)] for place in places]
        if places[-1] >= len(passes) and (rounds > 1 or not self.team.in_step):
            mine.pop()  # there is nothing left for this process, and its other passes run the network anyway
        own = self._run(noisy, sigma, mine) if mine else []
        like = noisy.map(lambda x: torch.zeros_like(x, dtype=torch.float32))
        own += [like] * (rounds - len(own))
        together: list[AV[Tensor]] = []
        for prediction in own:
            gathered = prediction.map(lambda x: group.gather(x.float()[None], dim=0))
            together += [_pick(gathered, rank) for rank in range(group.size)]
        return together[: len(passes)]

    def _run(self, noisy: AV[Tensor], sigma: float, passes: Sequence[Pass]) -> list[AV[Tensor]]:
        """Predict for this process's tokens, and bring all tokens together."""
        group = self.team.sequence
        if not self.shares_tokens or noisy.video is None:
            return self.denoiser(noisy, sigma, passes)
        local = AV(noisy.video[:, group.share(self.num_tokens)], noisy.audio)
        with shared_tokens(self.transformer, group, self.num_tokens, self.exchange):
            predictions = self.denoiser(local, sigma, passes)
        return [AV(self._joined(prediction.video), prediction.audio) for prediction in predictions]

    def _agreed(self, streams: AV[StreamState], rows_at_once: int | None) -> int:
        """Return how many rows go together in every process that has tokens of these.

        Where they differed, processes would exchange different numbers of times and wait forever.
        """
        group = self.team.sequence
        if rows_at_once is None:
            tokens = streams.map(lambda state: state.clean.shape[1])
            share = AV(max(group.shares(self.num_tokens)), tokens.audio)
            numbers = activation_numbers(self.transformer.config, share)
            rows_at_once = most_rows(numbers, is_gpu=self.team.device.type != "cpu")
        own = torch.tensor([rows_at_once], device=self.team.device)
        return int(group.gather(own, dim=0).min())

    def _joined(self, video: Tensor | None) -> Tensor:
        assert video is not None
        group = self.team.sequence
        return group.gather(video, dim=1, lengths=group.shares(self.num_tokens))


def _cut(state: StreamState, tokens: slice) -> StreamState:
    """Keep some tokens of a stream; who sees whom stays that of all tokens, among which attention is."""
    cut = replace(
        state,
        latents=state.latents[:, tokens],
        clean=state.clean[:, tokens],
        denoise_mask=state.denoise_mask[:, tokens],
        positions=state.positions[:, :, tokens],
        groups=state.groups[tokens],
        strengths=state.strengths[tokens],
        keyframe_mask=None if state.keyframe_mask is None else state.keyframe_mask[:, tokens],
    )
    cut.__dict__["attention_weights"] = state.attention_weights
    return cut


def _pick(gathered: AV[Tensor], rank: int) -> AV[Tensor]:
    return gathered.map(lambda x: x[rank])


def settle_exchange(team: Team, transformer: AVTransformer, equipment: Equipment | None) -> str:
    """Choose how the tokens of a pass are shared, and say it; the ring has kernels of its own.

    Raises:
        RequestError: The heads cannot be dealt out, or attention is to be approximate and cannot be so.
    """
    exchange = choose_exchange(team.exchange, transformer, team.sequence)
    said = exchange
    if exchange == "ring":
        if equipment is not None and not equipment.is_exact:
            raise RequestError(
                f"attention {equipment.attention!r} is approximate, and sequence_exchange 'ring' attends "
                "exactly; leave attention to auto, or use 'ulysses'"
            )
        dtype = transformer.patchify_proj.weight.dtype
        kernel = part_kernel(team.device, dtype, transformer.config.video.head_dim)
        said = f"ring, attention {kernel}"
    if team.leads:
        logger.info("tokens shared by %d processes: %s", team.sequence.size, said)
    return exchange


def check_sharding(checkpoint: Checkpoint, placing: Placing, requests: Sequence[GenerationRequest]) -> None:
    """Refuse what does not go with sharded weights, before anything is loaded.

    Raises:
        RequestError: Weights would be quantised or wait elsewhere, or a request has LoRAs.
    """
    if placing.quantize not in (None, NONE):
        raise RequestError(
            f"quantize={placing.quantize} does not go with sharded weights, which stay in floating point; "
            "leave one of them out"
        )
    if placing.offload not in ("auto", NONE):
        raise RequestError(
            f"offload={placing.offload} does not go with sharded weights, which stay on the device; leave "
            "one of them out"
        )
    coded = {
        tensor.entry.dtype
        for name, tensor in checkpoint.part(keymap.TRANSFORMER).items()
        if is_codable(name, tensor, BLOCKS[keymap.TRANSFORMER])
        and (tensor.entry.dtype == FP8 or tensor.entry.dtype in BLOCK_FORMATS)
    }
    if coded and placing.quantize is None:
        raise RequestError(
            f"{checkpoint.label} has weights in {', '.join(sorted(coded))}, and sharded weights stay in "
            "floating point; use quantize=none to widen them, or leave shard_weights out"
        )
    check_loras(requests)


def check_loras(requests: Sequence[GenerationRequest]) -> None:
    """Refuse LoRAs where weights are sharded.

    Raises:
        RequestError: A request has some.
    """
    if any(request.loras for request in requests):
        raise RequestError("LoRAs do not go with sharded weights; leave one of them out")
