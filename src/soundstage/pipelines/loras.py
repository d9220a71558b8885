"""LoRAs of a request: found and checked before anything runs, then in force for as long as a stage runs.

| mode | the network meanwhile | costs |
|---|---|---|
| fused | has other weights; the original ones wait in host memory or in their file | making them, once |
| live | has branches beside its layers, whose weights are untouched | two small multiplications per layer |

Both compute the same up to rounding, and both leave the network as it was, bit for bit. What two stages or
windows share is applied once. A LoRA may adapt the connectors between text encoder and transformer, too;
then prompts are encoded with it, and nothing of that is remembered.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from soundstage.checkpoints.checkpoint import Checkpoint
from soundstage.checkpoints.keymap import CONNECTORS, TRANSFORMER
from soundstage.checkpoints.layer_table import Shape
from soundstage.checkpoints.load_lora import LoraReader
from soundstage.checkpoints.lora import (
    LoraFile,
    ReferenceFactors,
    agreed_factors,
    branch_bytes,
    open_lora,
)
from soundstage.checkpoints.lora_fit import fitting_part, made_for, titles
from soundstage.checkpoints.reading import is_borrowed
from soundstage.checkpoints.releases import RELEASES, find_release, resolve
from soundstage.core.config import nearest
from soundstage.core.errors import CheckpointError, RequestError
from soundstage.core.progress import OnProgress
from soundstage.nn.lora import Addition, LoraLinear, fuse
from soundstage.pipelines.decode import StageProgress
from soundstage.pipelines.kept_weights import Branches
from soundstage.pipelines.lora_option import STAGES, LoraOption
from soundstage.pipelines.prompt_encoder import PromptEncoder
from soundstage.pipelines.request import GenerationRequest
from soundstage.runtime.offload import Hanging, StreamingPlan, hangings, streaming_of
from soundstage.runtime.quantization.gguf import GgufLinear
from soundstage.runtime.quantization.layer import QuantizedLinear
from soundstage.runtime.quantization.registry import take_weight
from soundstage.runtime.residency import send_home

Linear = nn.Linear | QuantizedLinear
LINEAR = (nn.Linear, QuantizedLinear)


@dataclass(frozen=True)
class ChosenLora:
    """A LoRA that a request asks for and the model can use."""

    option: LoraOption
    file: LoraFile  # with the layers that the model has
    note: str = ""  # what is left out of it


def choose_loras(
    texts: Sequence[str],
    checkpoint: Checkpoint,
    *,
    num_stages: int = len(STAGES),
    skip: Callable[[str], bool] = lambda _: False,
) -> tuple[ChosenLora, ...]:
    """Find and open the LoRAs of a request and hold them against the model, by the headers of both.

    Args:
        skip: Leaves a LoRA out, by what the user calls it.

    Raises:
        RequestError: A LoRA is wanted in a stage that there is not.
        CheckpointError: A file is missing, damaged, no LoRA, or of another model; says which.
    """
    if not texts:
        return ()
    layers = stored_layers(checkpoint, TRANSFORMER)
    chosen = []
    for text in texts:
        option = LoraOption.parse(text)
        check_stage(option, num_stages)
        if skip(option.path):
            continue
        file = open_lora(find_lora(option.path), names=layers)
        part = fitting_part(
            file,
            layers,
            model=checkpoint.label,
            generation=checkpoint.generation,
            text_layers=stored_layers(checkpoint, CONNECTORS) if file.text_layers else None,
        )
        chosen.append(ChosenLora(option, part.file, part.note))
    return tuple(chosen)


def check_stage(option: LoraOption, num_stages: int) -> None:
    """Refuse a LoRA for a stage that there is not.

    Raises:
        RequestError: It is for one.
    """
    if option.stage is not None and option.stage > num_stages:
        raise RequestError(
            f"lora {option.path!r} is for stage {option.stage}; this generation has {num_stages} stage"
            f"{'s' if num_stages > 1 else ''}"
        )


def is_missing_release(name: str) -> bool:
    """Tell whether a LoRA is a released one that is not on this machine."""
    release = None if Path(name).expanduser().is_file() else RELEASES.get(name)
    return release is not None and release.kind == "LoRA" and find_release(release) is None


def find_lora(name: str) -> Path:
    """Turn what a user names into a file: a path, or the name of a released LoRA.

    Raises:
        CheckpointError: There is none.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    released = [release.name for release in RELEASES.values() if release.kind == "LoRA"]
    if name in released:
        return resolve(name)[0]
    if path.is_dir():
        raise CheckpointError(f"LoRA {name} is a folder; name the .safetensors file in it")
    raise CheckpointError(f"LoRA {name} does not exist{nearest(name, released)}")


def linear_layers(transformer: nn.Module) -> dict[str, Shape]:
    """List what LoRAs can adapt: the linear layers by name, with the shapes of their weights."""
    linears = ((name, m) for name, m in transformer.named_modules() if isinstance(m, LINEAR))
    return {name: (layer.out_features, layer.in_features) for name, layer in linears}


def stored_layers(checkpoint: Checkpoint, part: str) -> dict[str, Shape]:
    """List the linear layers of a part of a model, from the header: it may not be loaded yet."""
    shapes = {name: tensor.entry.shape for name, tensor in checkpoint.part(part).items()}
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }


def with_reference_factors(request: GenerationRequest, loras: Sequence[ChosenLora]) -> GenerationRequest:
    """Bring reference clips to the size that IC-LoRAs among these were trained with, unless the request says.

    Raises:
        CheckpointError: The LoRAs do not agree.
    """
    if not request.reference_video:
        return request
    factors = reference_factors(loras)
    return replace(
        request,
        reference_downscale_factor=request.reference_downscale_factor or factors.spatial,
        reference_temporal_factor=request.reference_temporal_factor or factors.temporal,
    )


def reference_factors(loras: Sequence[ChosenLora]) -> ReferenceFactors:
    """Return how much smaller the reference clip is that the IC-LoRAs among these were trained with.

    Raises:
        CheckpointError: They do not agree.
    """
    return agreed_factors(lora.file for lora in loras)


def lora_notes(loras: Sequence[ChosenLora], checkpoint: Checkpoint) -> tuple[str, ...]:
    """Say which LoRAs fit the model without having been made for it, and of which only a part is used."""
    generation = checkpoint.generation
    partly = tuple(
        f"{lora.file.path} is for stage {lora.option.stage}; prompts are encoded once, without its "
        f"{len(lora.file.text_layers)} layers of the text connectors"
        for lora in loras
        if lora.file.text_layers and lora.option.stage is not None
    )
    others = tuple(
        f"{lora.file.path} was made for {titles(made_for(lora.file))}; its layers fit {generation.title}, too"
        for lora in loras
        if not lora.note and lora.file.stated_generation not in (None, generation.name)
    )
    return (*(lora.note for lora in loras if lora.note), *partly, *others)


@contextmanager
def prompts_in_force(
    prompts: PromptEncoder, loras: Sequence[ChosenLora], mode: str, on_progress: OnProgress | None = None
) -> Iterator[PromptEncoder]:
    """Encode prompts with what LoRAs add to the text connectors, inside the block.

    Raises:
        CheckpointError: There is no text encoder; what was encoded without the LoRAs does not serve.
    """
    adapting = text_side_of(loras)
    if not any(lora.option.strength for lora in adapting):
        yield prompts
        return
    with loras_in_force(prompts.text.connectors, adapting, mode, on_progress=on_progress):
        yield prompts.apart()


class LoraSwitch:
    """Keeps a network adapted from one stage or window to the next, as long as they use the same LoRAs.

    Whoever uses the network says before what it is to be; a long clip that is read part by part can be
    interrupted by another one.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._acting: tuple[str, tuple[LoraOption, ...]] | None = None
        self._stack = ExitStack()

    def use(
        self, loras: Sequence[ChosenLora], mode: str, *, stage: int = 1, on_progress: OnProgress | None = None
    ) -> None:
        """Have exactly the LoRAs of a stage, counted from 1, in force."""
        wanted = tuple(replace(lora.option, stage=None) for lora in acting_in(loras, stage))
        if self._acting == (mode, wanted):
            return
        self.release()
        self._stack.enter_context(
            loras_in_force(self._network, loras, mode, stage=stage, on_progress=on_progress)
        )
        self._acting = mode, wanted

    def release(self) -> None:
        """Put the network back as it was."""
        self._acting = None
        self._stack.close()


def acting_in(loras: Sequence[ChosenLora], stage: int) -> list[ChosenLora]:
    """Pick the LoRAs of one stage, counted from 1, that change anything."""
    return [lora for lora in loras if lora.option.acts_in(stage) and lora.option.strength]


def text_side_of(loras: Sequence[ChosenLora]) -> list[ChosenLora]:
    """Pick the LoRAs that adapt the connectors in all stages, as LoRAs of these alone."""
    return [
        replace(lora, file=replace(lora.file, layers=lora.file.text_layers))
        for lora in loras
        if lora.file.text_layers and lora.option.stage is None
    ]


def branches_of(loras: Sequence[ChosenLora], mode: str, itemsize: int) -> Branches:
    """Tell what LoRAs take beside the transformer's layers; of stages that differ, the most.

    Args:
        itemsize: Bytes per number of the weights, or of what they are quantised from.
    """
    most: dict[str, int] = {}
    for stage in STAGES:
        beside = branch_bytes([lora.file for lora in acting_in(loras, stage)], itemsize)
        most |= {name: max(size, most.get(name, 0)) for name, size in beside.items()}
    return Branches(num_bytes=most, fused=mode == "fused")


def text_branches_of(loras: Sequence[ChosenLora], mode: str, itemsize: int) -> Branches:
    """Tell what LoRAs take beside the layers of the text connectors; see `branches_of`."""
    return branches_of(text_side_of(loras), mode, itemsize)


@contextmanager
def loras_in_force(
    transformer: nn.Module,
    loras: Sequence[ChosenLora],
    mode: str,
    *,
    stage: int = 1,
    on_progress: OnProgress | None = None,
) -> Iterator[None]:
    """Have the transformer use the LoRAs of one stage, counted from 1, inside the block.

    Those of strength 0 are not even read. The transformer must not be used by others meanwhile.
    """
    acting = acting_in(loras, stage)
    if not acting:
        yield
        return
    send_home(transformer)  # weights change where they live, not in a copy that is thrown away
    with LORA_MODES[mode](transformer, acting, on_progress):
        try:
            yield
        finally:
            send_home(transformer)  # and change back there


@contextmanager
def fused(
    transformer: nn.Module, loras: Sequence[ChosenLora], on_progress: OnProgress | None = None
) -> Iterator[None]:
    """Add LoRAs into the weights; on leaving, put the original weights back.

    Weights that are only read have branches beside them: those of GGUF files, and those that stay on disk.
    """
    originals: list[_Original] = []
    streams = streaming_of(transformer)
    with ExitStack() as beside:
        try:
            for name, layer, additions in _each_layer(transformer, loras, on_progress):
                plan = streams.get(layer)
                if isinstance(layer, GgufLinear) or (plan is not None and plan.on_disk):
                    beside.enter_context(_branches(transformer, name, layer, additions, plan))
                else:
                    originals += _fuse_layer(layer, additions)
                del additions  # the last ones would stay for as long as the weights are in use
            yield
        finally:
            with torch.no_grad():  # whoever ends a stream may be elsewhere
                for original in originals:
                    original.put_back()


@dataclass(frozen=True)
class _Original:
    """What a tensor of a layer was: its values, or where they lie in a file, the tensor itself."""

    place: Hanging
    values: Tensor

    @classmethod
    def of(cls, place: Hanging) -> "_Original":
        """Make a tensor writable and remember what it was."""
        if is_borrowed(place.home):
            place.replace(place.home.clone())
            return cls(place, place.home)
        return cls(place, _kept(place.home))

    def put_back(self) -> None:
        """Have the layer as it was."""
        if self.values is self.place.home:
            self.place.replace(self.values)
        else:
            self.place.home.copy_(self.values)


def _fuse_layer(layer: Linear, additions: Sequence[Addition]) -> list[_Original]:
    """Replace one weight in place, quantised again if it was; return what its tensors were."""
    originals = [_Original.of(place) for place in hangings(layer) if place.leaf != "bias"]
    if isinstance(layer, QuantizedLinear):
        take_weight(layer, fuse(layer.weight.float(), additions))  # rounded once, to codes
    else:
        weight = layer.weight.detach()
        weight.copy_(fuse(weight, additions))
    return originals


def _kept(tensor: Tensor) -> Tensor:
    """Copy a tensor to host memory."""
    return tensor.to("cpu", copy=True)


@contextmanager
def live(
    transformer: nn.Module, loras: Sequence[ChosenLora], on_progress: OnProgress | None = None
) -> Iterator[None]:
    """Put twins with branches in the places of the layers; on leaving, put the layers back."""
    streams = streaming_of(transformer)
    with ExitStack() as beside:
        for name, layer, additions in _each_layer(transformer, loras, on_progress):
            beside.enter_context(_branches(transformer, name, layer, additions, streams.get(layer)))
            del additions
        yield


@contextmanager
def _branches(
    transformer: nn.Module,
    name: str,
    layer: Linear,
    additions: Sequence[Addition],
    plan: StreamingPlan | None,
) -> Iterator[None]:
    """Have a twin with branches in the place of one layer.

    Args:
        plan: By which the layer is streamed, if it is; then its branches are.
    """
    twin = LoraLinear(layer, additions, layer.dtype if isinstance(layer, QuantizedLinear) else None)
    del additions
    if plan is not None and plan.device.type == "cuda":
        _lock(twin)
    transformer.set_submodule(name, twin)
    try:
        yield
    finally:
        transformer.set_submodule(name, layer)


def _lock(twin: LoraLinear) -> None:
    """Page-lock branches: copies from other memory would have Python wait for the device, layer by layer.

    Where the system refuses, it does.
    """
    for name, value in list(twin.named_buffers(recurse=False)):
        with suppress(RuntimeError):
            twin._buffers[name] = value.pin_memory()


LoraMode = Callable[[nn.Module, Sequence[ChosenLora], OnProgress | None], AbstractContextManager[None]]
LORA_MODES: Mapping[str, LoraMode] = {"fused": fused, "live": live}


@torch.no_grad()
def _each_layer(
    transformer: nn.Module, loras: Sequence[ChosenLora], on_progress: OnProgress | None
) -> Iterator[tuple[str, Linear, list[Addition]]]:
    """Yield every layer that is adapted with what all LoRAs add to it, read only now and to where it is."""
    names = list(dict.fromkeys(name for lora in loras for name in lora.file.layers))
    progress = StageProgress(on_progress)
    with ExitStack() as stack:
        readers = [stack.enter_context(LoraReader(lora.file)) for lora in loras]
        for done, name in enumerate(names):
            progress("apply_loras", done, len(names))
            layer = _linear(transformer, name)
            yield name, layer, _read(name, loras, readers, _device_of(layer))
        progress("apply_loras", len(names), len(names))


def _read(
    name: str, loras: Sequence[ChosenLora], readers: Sequence[LoraReader], device: torch.device
) -> list[Addition]:
    pairs = (
        (lora.option.strength, reader.read(name, device)) for lora, reader in zip(loras, readers, strict=True)
    )
    return [Addition(low_rank, strength) for strength, low_rank in pairs if low_rank is not None]


def _linear(transformer: nn.Module, name: str) -> Linear:
    layer = transformer.get_submodule(name)
    assert isinstance(layer, LINEAR)
    return layer


def _device_of(layer: Linear) -> torch.device:
    """Tell where a layer is, which is not where the network is if blocks of that are streamed."""
    return next(chain(layer.buffers(recurse=False), layer.parameters(recurse=False))).device
