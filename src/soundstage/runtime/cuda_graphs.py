"""One CUDA graph per kind of call of the transformer: the GPU repeats a recorded forward without Python.

    first call of its kind     run once, which fills what is kept of texts; record     cold start, seconds
    every further one          copy in what is new, replay, copy out                   no launches from Python
    first one of other texts   copy in, run once, which renews what is kept in place   2.0 alone keeps texts

A kind of call is its shapes, its passes and its conditions, without the values of any tensor. Every tensor of
a call is copied to a place that the graph reads, so that clips, windows and stages of one size share a
recording. Small sizes gain most: there, starting kernels takes longer than running them.
"""

import logging
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from soundstage.core.errors import ResourceError
from soundstage.core.types import AV
from soundstage.models.transformer.attention_weights import FactoredAttentionWeights, cut_up
from soundstage.models.transformer.block import Watch
from soundstage.models.transformer.inputs import Passes, Perturbation, StreamInput, Text
from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.transformer.modulation import NoiseLevels
from soundstage.models.transformer.ropes import StreamRope
from soundstage.runtime.compile import ColdStart
from soundstage.runtime.residency import bring, visits

T = TypeVar("T")
Run = Callable[[], list[Tensor]]
MOST = 8  # recordings that are held; each holds its inputs, its results and what it reads of texts
RUNS = 2  # for which a recording is held without being used: the two stages of a clip take turns
logger = logging.getLogger(__name__)


@runtime_checkable
class Recorder(Protocol):
    """Records a function of static tensors, for repetition."""

    def record(self, run: Run) -> tuple[Callable[[], object], list[Tensor]]:
        """Return what repeats it, and where its results then are."""


class CudaRecorder:
    """Records CUDA graphs; all share one pool of memory, since they never run at the same time."""

    def __init__(self) -> None:
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

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
        other = next(iter(self._graphs), None)  # a pool lasts only as long as some graph uses it
        pool = torch.cuda.graph_pool_handle() if other is None else other.pool()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                outputs = run()
        except RuntimeError as error:
            raise ResourceError(
                f"this call cannot be recorded as a CUDA graph ({error}); use compile 'off' or 'blocks'"
            ) from error
        self._graphs.add(graph)
        return graph.replay, outputs


class _Call(NamedTuple):
    """What the transformer is given, save for what looks on."""

    video: StreamInput | None
    audio: StreamInput | None
    perturbations: tuple[Perturbation, ...] | None
    ropes: AV[StreamRope]
    passes: Passes | None


@dataclass
class _Recorded:
    places: list["_Place"]  # of the call's tensors, in their order
    replay: Callable[[], object]
    outputs: list[Tensor]
    static: _Call
    texts: list["_Place"]  # of which something is kept
    seen: tuple[int, ...]  # how often those had been written when what is kept was made; () = before
    last_run: int  # that used it


@dataclass
class GraphedTransformer:
    """Calls a transformer through graphs; takes and returns what the transformer does.

    Weights are looked at when a run begins (with other tables of positions), or when the network has been
    away. Where they are elsewhere, all is recorded anew; where they were written into, what is kept is
    renewed.
    """

    transformer: AVTransformer
    recorder: Recorder = field(default_factory=CudaRecorder)
    cold_starts: list[ColdStart] = field(default_factory=list)
    _recorded: dict[Hashable, _Recorded] = field(default_factory=dict)  # the one used last is the last
    _kept: "_KeptInPlace" = field(default_factory=lambda: _KeptInPlace())
    _run: int = 0
    _tables: "weakref.ref[Tensor] | None" = None  # by which a run is known
    _visits: int = 0  # of the network, when its weights were looked at
    _addresses: Hashable = None
    _versions: Hashable = None

    @torch.no_grad()
    def __call__(
        self,
        video: StreamInput | None = None,
        audio: StreamInput | None = None,
        perturbations: Sequence[Perturbation] | None = None,
        ropes: AV[StreamRope] | None = None,
        watch: Callable[[int], Watch] | None = None,
        passes: Passes | None = None,
    ) -> AV[Tensor]:
        """Predict velocities; what is shown layer by layer, or decides by itself, runs without a graph."""
        if watch is not None or (passes is not None and passes.cache is not None):
            return self._plain(video, audio, perturbations, ropes, watch, passes)
        bring(self.transformer)  # before looking where its weights are
        if ropes is None:
            positions = (None if stream is None else stream.positions for stream in (video, audio))
            ropes = self.transformer.prepare(*positions)
        call = _Call(
            self._looked_at(video),
            self._looked_at(audio),
            None if perturbations is None else tuple(perturbations),
            ropes,
            passes,
        )
        tensors = _distinct_tensors(call)
        self._look_around(ropes)
        kind = _kind(call, {})
        recorded = self._recorded.pop(kind, None)
        if recorded is None:
            recorded, result = self._record(call, tensors)
        else:
            for place, tensor in zip(recorded.places, tensors, strict=True):
                place.hold(tensor)
            result = self._repeat(recorded)
        recorded.last_run = self._run
        self._recorded[kind] = recorded
        self._drop(list(self._recorded)[:-MOST])
        return result

    def _record(self, call: _Call, tensors: Sequence[Tensor]) -> tuple[_Recorded, AV[Tensor]]:
        begun = time.perf_counter()
        places = [self._place(tensor) for tensor in tensors]
        homes: dict[int, object] = {
            id(tensor): place.static for tensor, place in zip(tensors, places, strict=True)
        }
        static = _moved(call, homes, self._kept)
        result = self._run_once(static)
        texts = [place for place in places if id(place.static) in self._kept.read]

        def run() -> list[Tensor]:
            out = self._call(static)
            return [tensor for tensor in (out.video, out.audio) if tensor is not None]

        replay, outputs = self.recorder.record(run)
        start = ColdStart(what="recording a CUDA graph", seconds=time.perf_counter() - begun)
        logger.info("%s took %.1f s", start.what, start.seconds)
        self.cold_starts.append(start)
        seen = tuple(place.writes for place in texts)
        return _Recorded(places, replay, outputs, static, texts, seen, self._run), result

    def _repeat(self, recorded: _Recorded) -> AV[Tensor]:
        writes = tuple(place.writes for place in recorded.texts)
        if writes != recorded.seen:
            recorded.seen = writes
            return self._run_once(recorded.static)
        recorded.replay()
        outputs = iter([output.clone() for output in recorded.outputs])
        given = (recorded.static.video, recorded.static.audio)
        return AV(*(None if stream is None else next(outputs) for stream in given))

    def _run_once(self, static: _Call) -> AV[Tensor]:
        """Run without a graph, making anew what is kept of the texts."""
        self._kept.renew()
        return self._call(static)

    def _place(self, tensor: Tensor) -> "_Place":
        """Find where a tensor lies already, for another kind of call of the same run, or make room for it."""
        known = (place for recorded in self._recorded.values() for place in recorded.places)
        return next((place for place in known if place.holds(tensor)), None) or _Place(tensor)

    def _look_around(self, ropes: AV[StreamRope]) -> None:
        """Where another run begins, look at the weights, and let go of what recent runs did not use."""
        tables = ropes.video or ropes.audio
        assert tables is not None
        num_visits = visits(self.transformer)
        if self._tables is not None and self._tables() is tables.own.cos and self._visits == num_visits:
            return
        self._tables, self._visits = weakref.ref(tables.own.cos), num_visits
        self._run += 1
        weights = [*self.transformer.parameters(), *self.transformer.buffers()]
        layers = tuple(id(layer) for layer in self.transformer.modules())
        addresses = (layers, tuple((id(w), w.data_ptr(), w.shape, w.dtype) for w in weights))
        versions = tuple(_version(weight) for weight in weights)
        if addresses != self._addresses:
            self._drop(list(self._recorded))
        elif versions != self._versions:
            for recorded in self._recorded.values():
                recorded.seen = ()
        self._addresses, self._versions = addresses, versions
        self._drop([k for k, recorded in self._recorded.items() if recorded.last_run < self._run - RUNS])

    def _looked_at(self, stream: StreamInput | None) -> StreamInput | None:
        """Find the distinct noise levels and who attends to whom, which a graph could not."""
        if stream is None:
            return None
        weights = stream.attention_weights
        if isinstance(weights, FactoredAttentionWeights):
            stream = replace(stream, attention_weights=cut_up(weights, self.transformer.dtype))
        return _with_levels(stream)

    def _drop(self, kinds: Sequence[Hashable]) -> None:
        if not kinds:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a graph may be running still
        for kind in kinds:
            del self._recorded[kind]
        places = (place for recorded in self._recorded.values() for place in recorded.places)
        self._kept.keep_only({id(place.static) for place in places})

    def _call(self, call: _Call) -> AV[Tensor]:
        return self._plain(call.video, call.audio, call.perturbations, call.ropes, None, call.passes)

    def _plain(self, *args: object) -> AV[Tensor]:
        out: AV[Tensor] = self.transformer(*args)
        return out


class _Place:
    """Memory that a graph reads one of its tensors from."""

    def __init__(self, tensor: Tensor) -> None:
        self._memory = _lean(tensor).clone()
        self.static = self._memory.expand(tensor.shape)
        self.writes = 1
        self._note(tensor)

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether this very tensor was copied here last, and not written into since."""
        return self._source() is tensor and self._version == _version(tensor)

    def hold(self, tensor: Tensor) -> None:
        """Copy a tensor here."""
        if not self.holds(tensor):
            self._memory.copy_(_lean(tensor))
            self.writes += 1
            self._note(tensor)

    def _note(self, tensor: Tensor) -> None:
        self._source, self._version = weakref.ref(tensor), _version(tensor)


class _KeptInPlace(Kept):
    """What graphs read of texts: made anew only when asked to, and then into the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[Hashable, tuple[object, tuple[object, ...]]] = {}
        self._due: set[Hashable] = set()
        self.read: set[int] = set()  # identities of what values were made of, since they were to be renewed

    def renew(self) -> None:
        """Have every value made anew when it is asked for next."""
        self._due = set(self._values)
        self.read = set()

    def get(self, name: Hashable, sources: Iterable[object], make: Callable[[], T]) -> T:
        """Return what was kept; make it first where there is none yet, or where it is to be renewed."""
        held = tuple(sources)
        self.read.update(id(source) for source in held)
        key = (name, *(id(source) for source in held))
        if key not in self._values:
            self._values[key] = (make(), held)
        elif key in self._due:
            for old, new in zip(_tensors(self._values[key][0]), _tensors(make()), strict=True):
                old.copy_(new)
        self._due.discard(key)
        value: Any = self._values[key][0]
        return value  # type: ignore[no-any-return]  # of the type that the same name had before

    def keep_only(self, sources: set[int]) -> None:
        """Let go of what is made of none of these."""
        self._values = {
            key: (value, held)
            for key, (value, held) in self._values.items()
            if any(id(source) in sources for source in held)
        }


def _with_levels(stream: StreamInput) -> StreamInput:
    if stream.levels is not None:
        return stream
    return replace(stream, levels=NoiseLevels.of_tokens(stream.timesteps))


def _kind(value: object, seen: dict[int, int]) -> Hashable:
    """Describe all but the values of tensors; which tensors and texts are the same one is part of it."""
    if isinstance(value, Tensor):
        number = seen.setdefault(id(value), len(seen))
        return (number, value.shape, tuple(step == 0 for step in value.stride()), value.dtype, value.device)
    if isinstance(value, tuple):
        return (type(value).__name__, *(_kind(part, seen) for part in value))
    if isinstance(value, Kept):
        return Kept  # says nothing that the texts do not
    if _is_frozen(value):
        number = seen.setdefault(id(value), len(seen)) if isinstance(value, Text) else 0
        return (type(value).__name__, number, *(_kind(part, seen) for part in _parts(value)))
    return value  # switches and numbers


def _distinct_tensors(value: object) -> list[Tensor]:
    """List the tensors of a call, each once."""
    return list({id(tensor): tensor for tensor in _tensors(value)}.values())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple) or _is_frozen(value):
        for part in _parts(value):
            yield from _tensors(part)


def _moved(value: T, homes: dict[int, object], kept: Kept) -> T:
    """Rebuild a call around other tensors; what is the same object twice stays so.

    Args:
        homes: What takes the place of an object, by its identity.
    """
    moved: Any = homes.get(id(value), value)
    if moved is not value:
        return moved  # type: ignore[no-any-return]
    if isinstance(value, Kept):
        moved = kept
    elif isinstance(value, tuple):
        parts = [_moved(part, homes, kept) for part in value]
        moved = tuple(parts) if type(value) is tuple else type(value)(*parts)
    elif _is_frozen(value):
        parts = [_moved(part, homes, kept) for part in _parts(value)]
        names = [f.name for f in fields(value)]
        moved = replace(value, **dict(zip(names, parts, strict=True)))
        homes[id(value)] = moved
    return moved  # type: ignore[no-any-return]


def _parts(value: object) -> list[object]:
    return list(value) if isinstance(value, tuple) else [getattr(value, f.name) for f in fields(value)]  # type: ignore[arg-type]


def _is_frozen(value: object) -> bool:
    return (
        is_dataclass(value) and not isinstance(value, type) and bool(value.__dataclass_params__.frozen)  # type: ignore[attr-defined]
    )


def _lean(tensor: Tensor) -> Tensor:
    """Take a tensor without what `expand` repeats of it."""
    for dim, step in enumerate(tensor.stride()):
        if step == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
