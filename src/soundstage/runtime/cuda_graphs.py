"""One CUDA graph per kind of call of the transformer: the GPU repeats a recorded forward without Python.

    first call of its kind   run once to fill what is kept, record                 cold start, seconds
    every further one        copy latents and noise levels in, replay, copy out    no launches from Python

A kind of call is its shapes, its passes, its conditions and the state of the weights. Only latents and noise
levels may differ between calls of a kind; whatever else differs (another prompt, a LoRA) is another kind and
is recorded anew. Small sizes gain most: there, starting kernels takes longer than running them.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from soundstage.core.errors import ResourceError
from soundstage.core.types import AV
from soundstage.models.transformer.inputs import Passes, StreamInput
from soundstage.models.transformer.kept import Kept
from soundstage.runtime.compile import ColdStart

Run = Callable[[], list[Tensor]]
MOVING = ("latents", "timesteps", "sigma")  # of a stream: what steps of a run differ in
MOST = 8  # graphs that are kept; each holds the activations of a forward
logger = logging.getLogger(__name__)


@runtime_checkable
class Recorder(Protocol):
    """Records a function of static tensors, for repetition."""

    def record(self, run: Run) -> tuple[Callable[[], object], list[Tensor]]:
        """Return what repeats it, and where its results then are."""


class CudaRecorder:
    """Records CUDA graphs; all share one pool of memory, since they never run at the same time."""

    def __init__(self) -> None:
        self._pool: object | None = None

    def record(self, run: Run) -> tuple[Callable[[], object], list[Tensor]]:
        """Run once beside, so that libraries set up what must not be recorded; then record.

        Raises:
            ResourceError: Something in the function cannot be recorded, such as a wait for the GPU.
        """
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):  # type: ignore[arg-type]  # PyTorch's own handle
                outputs = run()
        except RuntimeError as error:
            raise ResourceError(
                f"this call cannot be recorded as a CUDA graph ({error}); use compile 'off' or 'blocks'"
            ) from error
        return graph.replay, outputs


@dataclass
class _Recorded:
    inputs: list[Tensor]
    replay: Callable[[], object]
    outputs: list[Tensor]
    held: tuple[object, ...]  # what the graph reads beside its inputs; it must stay where it is


@dataclass
class GraphedTransformer:
    """Calls a transformer through graphs; takes and returns what the transformer does."""

    transformer: nn.Module
    recorder: Recorder = field(default_factory=CudaRecorder)
    cold_starts: list[ColdStart] = field(default_factory=list)
    _recorded: dict[Hashable, _Recorded] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, *args: object, **kwargs: object) -> AV[Tensor]:
        """Predict velocities; of the transformer's arguments only tensors of streams may move."""
        given = [*args, *kwargs.values()]
        if kwargs.get("watch") is not None or any(_decides(value) for value in given):
            return self._plain(args, kwargs)  # shown layer by layer, or other layers in every step
        moving = [tensor for value in given for tensor in _moving(value)]
        key = (_kind(given), tuple(kwargs), _weights(self.transformer))
        recorded = self._recorded.get(key)
        if recorded is None:
            recorded = self._record(args, kwargs, moving)
            if len(self._recorded) >= MOST:
                self._recorded.pop(next(iter(self._recorded)))
            self._recorded[key] = recorded
        for static, new in zip(recorded.inputs, moving, strict=True):
            static.copy_(new)
        recorded.replay()
        outputs = iter([output.clone() for output in recorded.outputs])
        return AV(*(None if stream is None else next(outputs) for stream in given[:2]))

    def _record(
        self, args: Sequence[object], kwargs: dict[str, object], moving: Sequence[Tensor]
    ) -> _Recorded:
        begun = time.perf_counter()
        self._plain(args, kwargs)  # fills what is kept for the whole run
        inputs = [tensor.clone() for tensor in moving]
        left = iter(inputs)
        static_args = [_with_moving(value, left) for value in args]
        static_kwargs = {name: _with_moving(value, left) for name, value in kwargs.items()}

        def run() -> list[Tensor]:
            out = self._plain(static_args, static_kwargs)
            return [tensor for tensor in (out.video, out.audio) if tensor is not None]

        replay, outputs = self.recorder.record(run)
        start = ColdStart(what="recording a CUDA graph", seconds=time.perf_counter() - begun)
        logger.info("%s took %.1f s", start.what, start.seconds)
        self.cold_starts.append(start)
        return _Recorded(inputs, replay, outputs, (args, kwargs, static_args, static_kwargs))

    def _plain(self, args: Sequence[object], kwargs: dict[str, object]) -> AV[Tensor]:
        out: AV[Tensor] = self.transformer(*args, **kwargs)
        return out


def _decides(value: object) -> bool:
    return isinstance(value, Passes) and value.cache is not None


def _moving(value: object) -> list[Tensor]:
    """List the tensors of a stream's input that change from step to step; of anything else, none."""
    if not isinstance(value, StreamInput):
        return []
    levels = [] if value.levels is None else [value.levels.values]
    return [*(getattr(value, name) for name in MOVING), *levels]


def _with_moving(value: object, tensors: Iterator[Tensor]) -> object:
    """Put other tensors in the place of those."""
    if not isinstance(value, StreamInput):
        return value
    changed = replace(value, latents=next(tensors), timesteps=next(tensors), sigma=next(tensors))
    if changed.levels is None:
        return changed
    return replace(changed, levels=changed.levels._replace(values=next(tensors)))


def _kind(value: object) -> Hashable:
    """Describe everything that a recording takes as given; equal descriptions may share one."""
    if isinstance(value, StreamInput):
        still = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in MOVING}
        levels = still.pop("levels")
        shapes = tuple((tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in _moving(value))
        lookup = None if levels is None else _kind(levels.lookup)
        return (shapes, lookup, *(_kind(part) for part in still.values()))
    if isinstance(value, Tensor):
        return (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, _version(value))
    if isinstance(value, tuple | list):
        return tuple(_kind(part) for part in value)
    if is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return (type(value), *(_kind(getattr(value, f.name)) for f in fields(value)))
    if isinstance(value, Kept):
        return Kept  # says nothing that the texts and weights do not
    if value is None or isinstance(value, bool | int | float | str | frozenset):
        return value
    return id(value)


def _weights(network: nn.Module) -> Hashable:
    """Tell where the weights are, and when they were last written into."""
    tensors = [*network.parameters(), *network.buffers()]
    return tuple((tensor.data_ptr(), _version(tensor)) for tensor in tensors)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
