"""What a clip will take on a device, in memory and time, from headers alone.

weights      counted from the tensors' shapes and the format they are to be kept in
activations  a multiple of the tokens' own size, measured on small networks (the tests hold it within 15 %)
time         operations counted by part, divided by the device's rates
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import Checkpoint, StoredTensor
from soundstage.checkpoints.reading import TORCH_DTYPES, can_stay_on_disk
from soundstage.core.types import AV
from soundstage.diffusion.guidance import Pass
from soundstage.models.transformer.config import STREAMS, TransformerConfig
from soundstage.models.transformer.flops import ForwardFlops, forward_flops
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.decode_plan import plan_decoding
from soundstage.nn.gguf_formats import BLOCK_FORMATS
from soundstage.pipelines.adaptation import BLOCKS, WEIGHT, is_codable, skipped
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.plan import Plan, Stage
from soundstage.pipelines.settle import looks_of
from soundstage.pipelines.text_source import text_length
from soundstage.runtime.planning import Part, Phase, Task
from soundstage.runtime.quantization.placing import FP8
from soundstage.runtime.quantization.registry import NONE, QUANTIZATIONS
from soundstage.runtime.rates import DeviceRates

TEXT, CONNECTORS, TRANSFORMER, UPSAMPLER = "text encoder", "connectors", "transformer", "upsampler"
VIDEO_VAE, AUDIO_VAE, VOCODER = "video VAE", "audio VAE", "vocoder"

# Peak beside the weights, as a multiple of one activation of all tokens; by bytes per number.
ACTIVATION_UNITS = {2: 12.0, 4: 9.4}
DECODE_SHARE = 0.25  # of the memory, which decoding the picture may take; it makes do with less
SMALL_CLIP = 512  # tokens up to which all passes are one batch
ELEMENTWISE_UNITS = 60  # per block, of reading and writing activations between the matrix products
VAE_EFFICIENCY = 0.2  # of the matrix rate, which convolutions over few channels reach
TEXT_TOKENS = 256  # of a usual prompt; padding is not computed
# Operations per parameter and latent cell or token, of the released decoders.
VIDEO_DECODER_OPERATIONS = {"2.0": 18.6, "2.3": 47.0}
SOUND_OPERATIONS = 80_000  # per parameter and second: audio VAE and vocoder
UPSAMPLER_BYTES = 995_765_578  # of the released one
UPSAMPLER_OPERATIONS = 8.4e12 / (16 * 11 * 20)  # per latent cell before


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the weights of a network are kept."""

    itemsize: int  # bytes per number of what is not quantised
    inside: str = ""  # name of the list of blocks; empty where nothing is quantised
    quantize: str | None = None
    skipped: frozenset[str] = frozenset()  # layers

    def codes(self, name: str, tensor: StoredTensor) -> bool:
        """Tell whether a tensor is one of those that are quantised."""
        return is_codable(name, tensor, self.inside) and name.removesuffix(WEIGHT) not in self.skipped

    def fp8_share(self, tensors: Mapping[str, StoredTensor]) -> float:
        """Return what share of the matrices in the blocks is multiplied as 8-bit floats."""
        if self.quantize in (None, NONE) or not QUANTIZATIONS[self.quantize].multiplies:
            return 0.0
        sizes = {n: t.entry.num_elements for n, t in tensors.items() if is_codable(n, t, self.inside)}
        coded = sum(size for name, size in sizes.items() if self.codes(name, tensors[name]))
        return coded / sum(sizes.values()) if sizes else 0.0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A model on a device, as it is to be kept."""

    checkpoint: Checkpoint
    tower: Mapping[str, StoredTensor]
    placing: Placing
    rates: DeviceRates
    dtype: torch.dtype
    budget: int | None = None  # bytes of the device that may be used; all of it when absent
    keep_texts: bool = False  # keep what the blocks read of texts that noise levels do not change

    @property
    def transformer(self) -> TransformerConfig:
        """The transformer's shape."""
        return TransformerConfig.from_header(self.checkpoint.section("transformer"))

    def format(self, part: str) -> Format:
        """Return how the weights of the transformer or of the text encoder are kept.

        Raises:
            RequestError: A layer to be skipped is none.
        """
        placing = self.placing
        return Format(
            itemsize=self.dtype.itemsize,
            inside=BLOCKS[part],
            quantize=placing.quantize if part == keymap.TRANSFORMER else placing.quantize_text,
            skipped=skipped(part, self.tensors(part), placing),
        )

    def tensors(self, part: str) -> Mapping[str, StoredTensor]:
        """Return the tensors of the transformer or of the text encoder."""
        return self.checkpoint.part(part) if part == keymap.TRANSFORMER else self.tower


def forecast(setup: Setup, plan: Plan, given: AV[bool]) -> Task:
    """Work out what the networks of a model and the phases of a plan take.

    Args:
        given: Per stream whether it is given; None for one that is absent.
    """
    return Task(
        parts=_parts(setup, has_upsampler=plan.upsampler is not None and plan.upsampler.is_trained),
        phases=tuple(_phases(setup, plan, given)),
        link=setup.rates.link,
        reserved=setup.rates.reserved,
        main=TRANSFORMER,
        text=TEXT,
    )


def kept_bytes(tensor: StoredTensor, name: str, form: Format) -> float | int:
    """Size of one tensor in memory: in its format if it is quantised, else in the type of the weights."""
    entry, quantize = tensor.entry, form.quantize
    count = entry.num_elements
    is_coded = form.codes(name, tensor)
    if name.endswith((".weight_scale", ".input_scale")):
        return 0
    if is_coded and quantize is None and (entry.dtype == FP8 or entry.dtype in BLOCK_FORMATS):
        return entry.num_bytes + (4 * entry.shape[0] if entry.dtype == FP8 else 0)
    if is_coded and quantize not in (None, NONE):
        return count * QUANTIZATIONS[quantize].bits / 8
    return count * form.itemsize


def converted_bytes(setup: Setup, part: str) -> int:
    """Return what a part's blocks add on disk if they stay there in another form than the file's."""
    form, tensors = setup.format(part), setup.tensors(part)
    return int(
        sum(kept_bytes(t, name, form) for name, t in tensors.items() if _is_converted(setup, form, name, t))
    )


def _is_converted(setup: Setup, form: Format, name: str, tensor: StoredTensor) -> bool:
    stored, wanted = tensor.entry.dtype, form.quantize
    if not (can_stay_on_disk(tensor) and name.startswith(f"{form.inside}.")):
        return False
    if form.codes(name, tensor) and wanted != NONE:
        if wanted is None and (stored == FP8 or stored in BLOCK_FORMATS):
            return False
        if wanted is not None:
            return not (stored == FP8 and wanted.startswith("fp8"))
    return TORCH_DTYPES.get(stored) != setup.dtype


def _parts(setup: Setup, *, has_upsampler: bool) -> dict[str, Part]:
    parts, checkpoint, size = {}, setup.checkpoint, setup.dtype.itemsize
    for name, part in ((TRANSFORMER, keymap.TRANSFORMER), (TEXT, keymap.TEXT_TOWER)):
        parts[name] = _part(name, setup.tensors(part), setup.format(part))
    for name, key, itemsize in (
        (CONNECTORS, keymap.CONNECTORS, size),
        (VIDEO_VAE, keymap.VIDEO_VAE, size),
        (AUDIO_VAE, keymap.AUDIO_VAE, 4),
        (VOCODER, keymap.VOCODER, 4),
    ):
        if key in checkpoint.parts:
            parts[name] = _part(name, checkpoint.parts[key], Format(itemsize=itemsize))
    if has_upsampler:
        parts[UPSAMPLER] = Part(name=UPSAMPLER, outer=UPSAMPLER_BYTES // 2 * size)
    return parts


def _part(name: str, tensors: Mapping[str, StoredTensor], form: Format) -> Part:
    outer, blocks = 0.0, dict[int, float | int]()
    number = re.compile(rf"{re.escape(form.inside)}\.(\d+)\.") if form.inside else None
    for local, tensor in tensors.items():
        size = kept_bytes(tensor, local, form)
        found = number.match(local) if number is not None else None
        if found is None:
            outer += size
        else:
            blocks[int(found[1])] = blocks.get(int(found[1]), 0) + size
    return Part(name=name, outer=int(outer), blocks=tuple(int(blocks[i]) for i in sorted(blocks)))


def _phases(setup: Setup, plan: Plan, given: AV[bool]) -> list[Phase]:
    size, rates = setup.dtype.itemsize, setup.rates
    windows, length = plan.canvas.num_windows, text_length(setup.checkpoint)
    prompts = 2 if plan.needs_negative_prompt else 1
    tower, connectors = _count(setup.tower), _count(setup.checkpoint.parts.get(keymap.CONNECTORS, {}))
    width = _text_width(setup.tower)
    states = (width[0] * (width[1] + 1)) * min(TEXT_TOKENS, length)
    words = min(TEXT_TOKENS, length)
    phases = [
        Phase(
            name="encode prompts",
            parts=(TEXT,),
            activations=2 * size * states,
            seconds=_products(setup, keymap.TEXT_TOWER, prompts * 2 * tower * words),
            sweeps=prompts,
        ),
        Phase(
            name="connect prompts",
            parts=(CONNECTORS,),
            activations=2 * size * states + 4 * length * width[0] * size,
            seconds=prompts * 2 * connectors * length / rates.product,
        ),
    ]
    for number, stage in enumerate(plan.stages):
        if number:
            phases.append(_enlarging(setup, plan.stages[number - 1]))
        phases.append(_denoising(setup, plan, stage, given))
    if given.video is False:
        phases.append(_decoding(setup, plan.stages[-1]))
    if given.audio is False:
        phases.append(_sounding(setup, plan))
    return [phase if phase.parts[0] in (TEXT, CONNECTORS) else _repeated(phase, windows) for phase in phases]


def _denoising(setup: Setup, plan: Plan, stage: Stage, given: AV[bool]) -> Phase:
    config, rates, size = setup.transformer, setup.rates, setup.dtype.itemsize
    tokens = AV(
        0 if given.video is None else stage.grid.num_tokens, 0 if given.audio is None else plan.audio_tokens
    )
    count = forward_flops(
        config,
        num_video_tokens=tokens.video or 0,
        num_audio_tokens=tokens.audio or 0,
        num_text_tokens=text_length(setup.checkpoint),
    )
    looks = looks_of(stage, AV(given.video, given.audio))
    blocks = stage.recipe.guidance.blocks
    first = min([*(blocks.video or ()), *(blocks.audio or ())], default=0)
    forwards = sum(_share(name, config, count, first) for look in looks for name in look.passes)
    most = max((len(look.passes) for look in looks), default=1)
    guided = any("uncond" in look.passes for look in looks)
    length = text_length(setup.checkpoint)
    per_token = config.kept_per_text_token(name for name in STREAMS if getattr(tokens, name))
    texts = (1 + guided) * length * per_token * size if setup.keep_texts else 0
    traffic = ELEMENTWISE_UNITS * config.num_layers * _unit(config, tokens) * size
    one = (
        _products(setup, keymap.TRANSFORMER, count.total_linear)
        + count.total_attention / rates.attention
        + traffic / rates.bandwidth
    )
    return Phase(
        name=f"denoise ({stage.name})" if len(plan.stages) > 1 else "denoise",
        parts=(TRANSFORMER,),
        activations=transformer_activations(config, tokens, size, num_passes=most) + texts,
        seconds=forwards * one,
        sweeps=len(looks),
    )


def transformer_activations(
    config: TransformerConfig, tokens: AV[int], itemsize: int, *, num_passes: int = 1
) -> int:
    """Bytes that the transformer needs beside its weights.

    Args:
        num_passes: Guidance passes of a step; of a large clip all but one wait as tokens between blocks.
    """
    unit = _unit(config, tokens) * itemsize
    video, audio = tokens.video or 0, tokens.audio or 0
    tables = 4 * (video * (config.video.dim + config.audio.dim) + audio * 2 * config.audio.dim)
    if video + audio <= SMALL_CLIP:
        return int(ACTIVATION_UNITS[itemsize] * unit * num_passes + tables)
    return int((ACTIVATION_UNITS[itemsize] + num_passes - 1) * unit + tables)


def _unit(config: TransformerConfig, tokens: AV[int]) -> int:
    """Count the numbers of one activation of all tokens."""
    return (tokens.video or 0) * config.video.dim + (tokens.audio or 0) * config.audio.dim


def _share(name: Pass, config: TransformerConfig, count: ForwardFlops, first: int) -> float | int:
    """Tell what part of a forward a pass computes, when passes share what they have in common."""
    if name == "perturbed":
        return (config.num_layers - first) / config.num_layers
    if name == "isolated":
        return 1 - count.across / count.total
    return 1.0


def _enlarging(setup: Setup, before: Stage) -> Phase:
    cells = before.grid.num_tokens * before.grid.geometry.patch_size**2
    return Phase(
        name="upsample",
        parts=(UPSAMPLER, VIDEO_VAE),
        activations=cells * 4 * 1024 * 6 * setup.dtype.itemsize,
        seconds=cells * UPSAMPLER_OPERATIONS / (VAE_EFFICIENCY * setup.rates.product),
    )


def _decoding(setup: Setup, stage: Stage) -> Phase:
    config = VideoVAEConfig.from_header(setup.checkpoint.section("vae"))
    tensors = setup.checkpoint.part(keymap.VIDEO_VAE)
    decoder = _count({name: t for name, t in tensors.items() if name.startswith("decoder.")})
    shape = stage.grid.latent_shape
    cells = shape[0] * shape[1] * shape[2]
    operations = VIDEO_DECODER_OPERATIONS.get(setup.checkpoint.generation.name, 47.0)
    return Phase(
        name="decode picture",
        parts=(VIDEO_VAE,),
        activations=plan_decoding(
            config,
            (shape[0], shape[1], shape[2]),
            itemsize=setup.dtype.itemsize,
            budget=int(
                DECODE_SHARE * setup.rates.memory if setup.budget is None else DECODE_SHARE * setup.budget
            ),
        ).num_bytes,
        seconds=operations * decoder * cells / (VAE_EFFICIENCY * setup.rates.product),
    )


def _sounding(setup: Setup, plan: Plan) -> Phase:
    parts = setup.checkpoint.parts
    count = _count(parts.get(keymap.AUDIO_VAE, {})) + _count(parts.get(keymap.VOCODER, {}))
    length = float(plan.canvas.num_frames / plan.canvas.frame_rate)
    return Phase(
        name="decode sound",
        parts=(AUDIO_VAE, VOCODER),
        activations=int(length * 25e6),
        seconds=SOUND_OPERATIONS * count * length / (VAE_EFFICIENCY * setup.rates.product),
    )


def _repeated(phase: Phase, times: int) -> Phase:
    return Phase(
        name=phase.name,
        parts=phase.parts,
        activations=phase.activations,
        seconds=phase.seconds * times,
        sweeps=phase.sweeps * times,
    )


def _products(setup: Setup, part: str, operations: float | int) -> float | int:
    """Return the seconds that matrix products take, by the numbers that they are computed in."""
    share = setup.format(part).fp8_share(setup.tensors(part))
    fp8, exact = (setup.rates.product_rate(is_fp8=is_fp8) for is_fp8 in (True, False))
    return operations * (share / fp8 + (1 - share) / exact)


def _count(tensors: Mapping[str, StoredTensor]) -> int:
    """Count the weights of matrices and kernels; an embedding is looked up, not multiplied."""
    return sum(t.entry.num_elements for name, t in tensors.items() if "embed_tokens" not in name)


def _text_width(tower: Mapping[str, StoredTensor]) -> tuple[int, int]:
    """Return the width and the number of layers of the text encoder."""
    embedding = next((t for name, t in tower.items() if name.endswith("embed_tokens.weight")), None)
    layers = {name.split(".layers.")[1].split(".")[0] for name in tower if ".layers." in name}
    return (0 if embedding is None else embedding.entry.shape[1]), len(layers)
