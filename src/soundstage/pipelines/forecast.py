"""What a clip will take on a device, in memory and time, from headers alone.

weights      counted from the tensors' shapes and the format they are to be kept in
activations  a multiple of the tokens' own size, counted at full size (the tests hold it within 15 %)
time         operations counted by part, divided by the device's rates
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import Checkpoint, StoredTensor
from soundstage.core.types import AV
from soundstage.diffusion.guidance import Pass
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.flops import ForwardFlops, forward_flops
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.decode_plan import (
    ENOUGH_FOR_CPU,
    ENOUGH_FOR_GPU,
    decoding_operations,
    ways_to_decode,
)
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.pipelines.adaptation import BLOCKS, skipped
from soundstage.pipelines.batching import activation_numbers, batch_sizes
from soundstage.pipelines.kept_weights import (
    NO_BRANCHES,
    Branches,
    Format,
    converted_bytes,
    part_of,
    widened_bytes,
)
from soundstage.pipelines.picture_costs import UPSAMPLER_BYTES, encoding_bytes, upsampling_bytes
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.plan import Plan, Stage
from soundstage.pipelines.settle import looks_of
from soundstage.pipelines.sound_costs import encoding_sound_bytes, sounding_bytes, vocoding_operations
from soundstage.pipelines.text_source import text_length
from soundstage.pipelines.transformer_costs import Computing, kinds_of_layers, transformer_activations
from soundstage.runtime.planning import Part, Phase, Task, Way
from soundstage.runtime.rates import DeviceRates

TEXT, CONNECTORS, TRANSFORMER, UPSAMPLER = "text encoder", "connectors", "transformer", "upsampler"
VIDEO_VAE, AUDIO_VAE, VOCODER = "video VAE", "audio VAE", "vocoder"

TEXT_TOKENS = 256  # of a usual prompt; padding is not computed
ENCODER_OPERATIONS = 20  # per parameter and latent cell
AUDIO_VAE_OPERATIONS = 1_900  # per parameter and second
UPSAMPLER_OPERATIONS = 8.4e12 / (16 * 11 * 20)  # per latent cell before


@dataclass(frozen=True, kw_only=True)
class Given:
    """What of a clip is given, and so has to be encoded or is attended to."""

    whole: AV[bool] = field(
        default_factory=lambda: AV(False, False)
    )  # per stream; None for one that is absent
    num_frames: int = 0  # pictures that are encoded together, at most
    has_sound: bool = False  # whether sound is encoded
    followed: float | int = 0  # tokens of clips to follow, as a multiple of the picture's own
    has_step_cache: bool = False  # whether steps are reused
    num_clips: int = 1  # that are made together
    branches: Branches = NO_BRANCHES  # of LoRAs, beside the transformer's layers
    text_branches: Branches = NO_BRANCHES  # and beside those of the connectors


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A model on a device, as it is to be kept."""

    checkpoint: Checkpoint
    tower: Mapping[str, StoredTensor]
    placing: Placing
    rates: DeviceRates
    dtype: torch.dtype
    keep_texts: bool = False  # keep what the blocks read of texts that noise levels do not change
    host_budget: int | None = None  # bytes of host memory for weights that wait; no limit when absent
    num_shares: int = 1  # processes among which the transformer's weights are shared out
    is_fused: bool = False  # Triton's kernels run in the transformer

    @property
    def transformer(self) -> TransformerConfig:
        """The transformer's shape."""
        return TransformerConfig.from_header(self.checkpoint.section("transformer"))

    @property
    def is_gpu(self) -> bool:
        """Whether the device is one: a CPU has no driver that takes memory for itself."""
        return self.rates.reserved > 0

    def computing(self, branches: Branches) -> Computing:
        """Tell how the transformer computes.

        Args:
            branches: Of LoRAs, beside its layers.
        """
        stored, form = self.tensors(keymap.TRANSFORMER), self.format(keymap.TRANSFORMER)
        return Computing(
            itemsize=self.dtype.itemsize,
            is_gpu=self.is_gpu,
            is_fused=self.is_fused,
            has_fp8=self.rates.product_fp8 is not None,
            layers=kinds_of_layers(stored, form),
            has_branches=branches.act(stored, form, on_disk=self.placing.offload == "disk"),
        )

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

    def converted_bytes(self, part: str) -> int:
        """Return what a part's blocks add on disk if they stay there in another form than the file's."""
        return converted_bytes(self.tensors(part), self.format(part), self.dtype)

    def tensors(self, part: str) -> Mapping[str, StoredTensor]:
        """Return the tensors of the transformer or of the text encoder."""
        return self.checkpoint.part(part) if part == keymap.TRANSFORMER else self.tower


def forecast(setup: Setup, plan: Plan, given: Given) -> Task:
    """Work out what the networks of a model and the phases of a plan take."""
    return Task(
        parts=_parts(setup, given, has_upsampler=plan.upsampler is not None and plan.upsampler.is_trained),
        phases=tuple(_phases(setup, plan, given)),
        link=setup.rates.link,
        pageable=setup.rates.pageable,
        disk=setup.rates.disk,
        reserved=setup.rates.reserved,
        main=TRANSFORMER,
        text=TEXT,
    )


def _parts(setup: Setup, given: Given, *, has_upsampler: bool) -> dict[str, Part]:
    parts, checkpoint, size = {}, setup.checkpoint, setup.dtype.itemsize
    beside = {TRANSFORMER: given.branches, CONNECTORS: given.text_branches}
    for name, part in ((TRANSFORMER, keymap.TRANSFORMER), (TEXT, keymap.TEXT_TOWER)):
        form = setup.format(part)
        parts[name] = part_of(name, setup.tensors(part), form, beside.get(name, NO_BRANCHES))
    parts[TRANSFORMER] = parts[TRANSFORMER].shared(setup.num_shares)
    for name, key, itemsize in (
        (CONNECTORS, keymap.CONNECTORS, size),
        (VIDEO_VAE, keymap.VIDEO_VAE, size),
        (AUDIO_VAE, keymap.AUDIO_VAE, 4),
        (VOCODER, keymap.VOCODER, 4),
    ):
        if key in checkpoint.parts:
            form = Format(itemsize=itemsize)
            parts[name] = part_of(name, checkpoint.parts[key], form, beside.get(name, NO_BRANCHES))
    if has_upsampler:
        parts[UPSAMPLER] = Part(name=UPSAMPLER, outer=UPSAMPLER_BYTES // 2 * size)
    return parts


def _phases(setup: Setup, plan: Plan, given: Given) -> list[Phase]:
    size, rates = setup.dtype.itemsize, setup.rates
    windows, length = plan.canvas.num_windows, text_length(setup.checkpoint)
    prompts = (2 if plan.needs_negative_prompt else 1) * given.num_clips
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
            phases.append(_enlarging(setup, plan, plan.stages[number - 1], given.num_clips))
        phases += _encoding(setup, plan, stage, given)
        phases.append(_denoising(setup, plan, stage, given))
    decoding = _decoding(setup, plan.stages[-1], given.num_clips) if given.whole.video is False else None
    sounding = _sounding(setup, plan, given.num_clips) if given.whole.audio is False else None
    if given.num_clips == 1 and decoding is not None and sounding is not None:
        phases.append(_together(decoding, sounding))
    else:
        phases += [phase for phase in (decoding, sounding) if phase is not None]
    return [
        phase if phase.parts in ((TEXT,), (CONNECTORS,)) else _repeated(phase, windows) for phase in phases
    ]


def _encoding(setup: Setup, plan: Plan, stage: Stage, given: Given) -> Iterator[Phase]:
    """Encode what is given, for a stage of its size."""
    rates, checkpoint = setup.rates, setup.checkpoint
    if given.num_frames and keymap.VIDEO_VAE in checkpoint.parts:
        config = VideoVAEConfig.from_header(checkpoint.section("vae"))
        geometry, (_, rows, columns) = stage.grid.geometry, stage.grid.latent_shape
        factor, encoder = geometry.spatial_factor, _count_below(checkpoint.part(keymap.VIDEO_VAE), "encoder.")
        cells = geometry.num_latent_frames(given.num_frames) * rows * columns
        yield Phase(
            name="encode picture",
            parts=(VIDEO_VAE,),
            activations=encoding_bytes(
                config, given.num_frames, (factor * rows, factor * columns), setup.dtype.itemsize
            ),
            seconds=ENCODER_OPERATIONS * encoder * cells / rates.convolution,
        )
    if given.has_sound and keymap.AUDIO_VAE in checkpoint.parts:
        codec = AudioVAEConfig.from_header(checkpoint.section("audio_vae"))
        encoder = _count_below(checkpoint.part(keymap.AUDIO_VAE), "encoder.")
        yield Phase(
            name="encode sound",
            parts=(AUDIO_VAE,),
            activations=int(_length(plan) * encoding_sound_bytes(codec)),
            seconds=AUDIO_VAE_OPERATIONS * encoder * _length(plan) / rates.convolution,
        )


def _denoising(setup: Setup, plan: Plan, stage: Stage, given: Given) -> Phase:
    config, rates, size = setup.transformer, setup.rates, setup.dtype.itemsize
    whole = given.whole
    tokens = AV(
        0 if whole.video is None else int(stage.grid.num_tokens * (1 + given.followed)),
        0 if whole.audio is None else plan.audio_tokens,
    )
    length = text_length(setup.checkpoint)
    count = forward_flops(
        config,
        num_video_tokens=tokens.video or 0,
        num_audio_tokens=tokens.audio or 0,
        num_text_tokens=length,
    )
    looks = looks_of(stage, whole)
    blocks = stage.recipe.guidance.blocks
    first = min([*(blocks.video or ()), *(blocks.audio or ())], default=0)
    forwards = sum(_share(name, config, count, first) for look in looks for name in look.passes)
    most = max((len(look.passes) for look in looks), default=1)
    guided = any("uncond" in look.passes for look in looks)
    clips, stored, form = given.num_clips, setup.tensors(keymap.TRANSFORMER), setup.format(keymap.TRANSFORMER)
    computing, widened = setup.computing(given.branches), widened_bytes(stored, form)

    def activations(rows_at_once: int) -> int:
        return transformer_activations(
            config,
            tokens,
            computing,
            num_rows=most * clips,
            rows_at_once=rows_at_once,
            num_texts=(1 + guided) * clips,
            text_length=length,
            keep_texts=setup.keep_texts,
            has_step_cache=given.has_step_cache,
            widened=widened,
        )

    sizes = batch_sizes(most * clips, activation_numbers(config, tokens), is_gpu=setup.is_gpu)
    least = activations(1)
    moved = computing.traffic(gated=config.gated_attention) * config.num_layers
    traffic = moved * activation_numbers(config, tokens) * size
    one = (
        _products(setup, keymap.TRANSFORMER, count.total_linear)
        + count.total_attention / rates.attention
        + traffic / rates.bandwidth
    )
    return Phase(
        name=f"denoise ({stage.name})" if len(plan.stages) > 1 else "denoise",
        parts=(TRANSFORMER,),
        activations=least,
        seconds=clips * forwards * one,
        sweeps=len(looks),
        ways=tuple(Way(num_bytes=activations(rows) - least, rows_at_once=rows) for rows in sizes),
        num_rows=most * clips,
    )


def _share(name: Pass, config: TransformerConfig, count: ForwardFlops, first: int) -> float | int:
    """Tell what part of a forward a pass computes, when passes share what they have in common."""
    if name == "perturbed":
        return (config.num_layers - first) / config.num_layers
    if name == "isolated":
        return 1 - count.across / count.total
    return 1.0


def _enlarging(setup: Setup, plan: Plan, before: Stage, num_clips: int) -> Phase:
    """Make the latents of a stage larger, by a network, by way of pictures, or without any."""
    cells = num_clips * before.grid.num_tokens * before.grid.geometry.patch_size**2
    choice, size = plan.upsampler, setup.dtype.itemsize
    if choice is None or choice.is_trained:
        return Phase(
            name="upsample",
            parts=(UPSAMPLER, VIDEO_VAE),
            activations=upsampling_bytes(cells, size),
            seconds=cells * UPSAMPLER_OPERATIONS / setup.rates.convolution,
        )
    enlarged = 4 * 4 * before.grid.geometry.channels * cells  # bytes: four times the cells, in float32
    if choice.name != "pixels":
        return Phase(name="upsample", parts=(), activations=2 * enlarged, seconds=0)
    decoding = _decoding(setup, before, 1)
    config = VideoVAEConfig.from_header(setup.checkpoint.section("vae"))
    frames, rows, columns = before.grid.latent_shape
    factor = 2 * before.grid.geometry.spatial_factor
    length = before.grid.geometry.num_pixel_frames(frames)
    encoding = encoding_bytes(config, length, (factor * rows, factor * columns), size)
    pictures = 4 * 3 * length * factor**2 * rows * columns  # float32, enlarged on the device
    return replace(
        decoding,
        name="upsample",
        activations=num_clips * (encoding + 2 * pictures),
        seconds=num_clips * 3 * decoding.seconds,
        ways=(),
    )


def _decoding(setup: Setup, stage: Stage, num_clips: int) -> Phase:
    """Decode one clip after another; the pictures of those that are done are kept."""
    config = VideoVAEConfig.from_header(setup.checkpoint.section("vae"))
    frames, rows, columns = stage.grid.latent_shape
    operations = decoding_operations(config) * frames * rows * columns
    geometry = stage.grid.geometry
    pictures = geometry.num_pixel_frames(frames) * rows * columns * geometry.spatial_factor**2
    return Phase(
        name="decode picture",
        parts=(VIDEO_VAE,),
        activations=4 * 3 * pictures * (num_clips - 1),  # float32
        seconds=num_clips * operations / setup.rates.convolution,
        ways=_ways(config, (frames, rows, columns), setup),
    )


def _ways(config: VideoVAEConfig, cells: tuple[int, int, int], setup: Setup) -> tuple[Way, ...]:
    enough = ENOUGH_FOR_GPU if setup.is_gpu else ENOUGH_FOR_CPU
    return tuple(
        Way(num_bytes=plan.num_bytes, is_exact=plan.is_exact)
        for plan in ways_to_decode(config, cells, setup.dtype.itemsize, enough)
    )


def _together(picture: Phase, sound: Phase) -> Phase:
    """Join two phases that run at the same time, in two threads that share the device."""
    return replace(
        picture,
        name="decode",
        parts=(*picture.parts, *sound.parts),
        activations=picture.activations + sound.activations,
        seconds=picture.seconds + sound.seconds,
    )


def _sounding(setup: Setup, plan: Plan, num_clips: int) -> Phase:
    checkpoint, length = setup.checkpoint, _length(plan)
    codec = AudioVAEConfig.from_header(checkpoint.section("audio_vae"))
    vocoder = VocoderConfig.from_header(checkpoint.section("vocoder"))
    decoder = _count_below(checkpoint.part(keymap.AUDIO_VAE), "decoder.")
    operations = AUDIO_VAE_OPERATIONS * decoder + vocoding_operations(vocoder)
    return Phase(
        name="decode sound",
        parts=(AUDIO_VAE, VOCODER),
        activations=int(length * sounding_bytes(codec, vocoder)),
        seconds=num_clips * operations * length / setup.rates.convolution,
    )


def _length(plan: Plan) -> float:
    return float(plan.canvas.num_frames / plan.canvas.frame_rate)


def _count_below(tensors: Mapping[str, StoredTensor], prefix: str) -> int:
    return _count({name: tensor for name, tensor in tensors.items() if name.startswith(prefix)})


def _repeated(phase: Phase, times: int) -> Phase:
    return replace(phase, seconds=phase.seconds * times, sweeps=phase.sweeps * times)


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
