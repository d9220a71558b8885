"""A released model as its header describes it, for plans made before anything is downloaded.

Names and shapes are those of the networks that the built-in configurations describe, built without memory.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from soundstage.checkpoints.detect import GENERATIONS
from soundstage.checkpoints.header import DTYPE_BITS, Header, TensorEntry
from soundstage.checkpoints.released import MODEL_VERSIONS, planned_configs
from soundstage.checkpoints.releases import GEMMA, RELEASES, find_release, missing_message, resolve
from soundstage.core.errors import CheckpointError
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.text.config import GEMMA_12B, TextConfig
from soundstage.models.text.connectors import TextConnectors
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.models.vocoder.model import build_vocoder

# Of the fp8 files: four blocks are published as bfloat16, which they are is not, and does not matter here.
_FP8_BLOCKS = range(1, 45)
_QUANTISED = re.compile(r"transformer_blocks\.(\d+)\..*\.weight$")

# Of Gemma-3-12B, without vision: layers × (outputs, inputs).
_GEMMA_LAYER = {
    "self_attn.q_proj": (4096, 3840),
    "self_attn.k_proj": (2048, 3840),
    "self_attn.v_proj": (2048, 3840),
    "self_attn.o_proj": (3840, 4096),
    "mlp.gate_proj": (15360, 3840),
    "mlp.up_proj": (15360, 3840),
    "mlp.down_proj": (3840, 15360),
}
_GEMMA_VOCABULARY = 262_208


def open_or_sketch(model: str | Path) -> tuple[Checkpoint, bool]:
    """Open a model by its headers; of a release that is not here, take what is known of it.

    Returns:
        The model, and whether it is a sketch.

    Raises:
        CheckpointError: There is no such model, or nothing is known of it without its files.
    """
    release = RELEASES.get(str(model))
    if release is None or find_release(release) is not None:
        return open_checkpoint(resolve(model), require_data=False), False
    if release.kind != "model" or release.generation not in planned_configs():
        known = ", ".join(
            r.name for r in RELEASES.values() if r.kind == "model" and r.generation in planned_configs()
        )
        raise CheckpointError(
            f"nothing is known of {release.name} without its files; known are {known}. "
            f"{missing_message(release)}"
        )
    if release.name.endswith("fp4"):
        raise CheckpointError(
            f"{release.name} is quantised to 4 bits (NVFP4), which soundstage does not read"
        )
    return sketch(release.name, release.generation), True


@functools.cache
def sketch(name: str, generation: str) -> Checkpoint:
    """Describe a released file; a name that ends in fp8 is one of the quantised ones."""
    path, config = Path(f"{name}.safetensors"), planned_configs()[generation]
    with torch.device("meta"):
        transformer = TransformerConfig.from_header(config["transformer"])
        networks = {
            keymap.TRANSFORMER: AVTransformer(transformer),
            keymap.CONNECTORS: TextConnectors(TextConfig.from_header(config["transformer"], GEMMA_12B)),
            keymap.VIDEO_VAE: VideoVAE(VideoVAEConfig.from_header(config["vae"])),
            keymap.AUDIO_VAE: AudioVAE(AudioVAEConfig.from_header(config["audio_vae"])),
            keymap.VOCODER: build_vocoder(VocoderConfig.from_header(config["vocoder"])),
        }
    dtype = functools.partial(_dtype, is_fp8=name.endswith("fp8"), wide_tables=generation == "2.5")
    parts = {
        part: {
            local: _stored(
                path, local, tuple(tensor.shape), dtype(local) if part == keymap.TRANSFORMER else "BF16"
            )
            for local, tensor in network.state_dict().items()
        }
        for part, network in networks.items()
    }
    tensors = {f"{part}/{local}": stored.entry for part in parts for local, stored in parts[part].items()}
    metadata = {"config": config, "model_version": MODEL_VERSIONS[generation]}
    return Checkpoint(
        headers=(Header(path=path, metadata=metadata, tensors=tensors, file_bytes=0, expected_bytes=0),),
        generation=GENERATIONS[generation],
        config=config,
        metadata=metadata,
        parts=parts,
    )


def text_tower(checkpoint: Checkpoint, directory: Path | None) -> Mapping[str, StoredTensor]:
    """Find the text encoder's tensors: in the model, in a directory, where downloads lie, or by table."""
    if directory is not None:
        return open_checkpoint(directory, require_data=False).part(keymap.TEXT_TOWER)
    if keymap.TEXT_TOWER in checkpoint.parts:
        return checkpoint.parts[keymap.TEXT_TOWER]
    if checkpoint.generation.text_encoder_inside:
        return dict(_gemma())  # a stand-in, see `unknown_sizes`
    found = find_release(RELEASES[GEMMA])
    if found is not None:
        return open_checkpoint(found[0], require_data=False).part(keymap.TEXT_TOWER)
    return dict(_gemma())


def unknown_sizes(checkpoint: Checkpoint, directory: Path | None) -> tuple[str, ...]:
    """Say which sizes of a sketch are not known, and what stands in for them."""
    inside = checkpoint.generation.text_encoder_inside and keymap.TEXT_TOWER not in checkpoint.parts
    if not inside or directory is not None:
        return ()
    projections = sum(
        stored.entry.num_bytes
        for name, stored in checkpoint.part(keymap.CONNECTORS).items()
        if name.startswith("text_embedding_projection.")
    )
    whole = next(
        file.num_bytes
        for release in RELEASES.values()
        if release.kind == "model" and release.generation == checkpoint.generation.name
        for file in release.files
        if file.path.startswith("text_encoders/")
    )
    stand_in = sum(stored.entry.num_bytes for _, stored in _gemma())
    return (
        f"of the text encoder of LTX-{checkpoint.generation.name} (Gemma-4 12B, 48 layers of width 3840; "
        "not supported yet) these sizes are not known without its file: vocabulary, feed-forward, numbers of "
        f"heads; Gemma-3 12B's stand in for them, {stand_in / 1e9:.1f} GB, where its file leaves at most "
        f"{(whole - projections) / 1e9:.1f} GB",
    )


def _gemma() -> Iterator[tuple[str, StoredTensor]]:
    path = Path(GEMMA)
    shape: tuple[int, ...] = (_GEMMA_VOCABULARY, GEMMA_12B["hidden_size"])
    yield "model.embed_tokens.weight", _stored(path, "model.embed_tokens.weight", shape, "BF16")
    for index in range(GEMMA_12B["num_hidden_layers"]):
        for layer, shape in _GEMMA_LAYER.items():
            name = f"model.layers.{index}.{layer}.weight"
            yield name, _stored(path, name, shape, "BF16")


def _stored(path: Path, name: str, shape: tuple[int, ...], dtype: str) -> StoredTensor:
    entry = TensorEntry(dtype, shape, 0, 0)
    size = entry.num_elements * DTYPE_BITS[dtype] // 8
    return StoredTensor(path, name, TensorEntry(dtype, shape, 0, size))


def _dtype(local: str, *, is_fp8: bool, wide_tables: bool) -> str:
    if wide_tables and "scale_shift_table" in local:
        return "F32"
    found = _QUANTISED.match(local) if is_fp8 else None
    is_matrix = found is not None and "norm" not in local
    return "F8_E4M3" if found is not None and is_matrix and int(found[1]) in _FP8_BLOCKS else "BF16"
