"""Open the file or files that make up one model and tell what they hold; nothing is read but headers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soundstage.checkpoints.detect import detect_generation
from soundstage.checkpoints.generation import Generation
from soundstage.checkpoints.gguf import SUFFIX, read_gguf
from soundstage.checkpoints.header import Header, TensorEntry, read_header
from soundstage.checkpoints.keymap import (
    AUDIO_VAE,
    CONNECTORS,
    LORA,
    PART_TITLES,
    TRANSFORMER,
    UPSAMPLER,
    VIDEO_VAE,
    Contents,
    official_name,
    sort_tensors,
)
from soundstage.core.errors import CheckpointError

PACK_FOLDERS = ("diffusion_models", "text_encoders", "vae", "model_patches")  # the rest stand alone


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor and the file that holds it."""

    path: Path
    name: str  # in the file
    entry: TensorEntry

    def rows(self, wanted: slice) -> "StoredTensor":
        """Point to some of the rows only."""
        entry = self.entry
        each = entry.num_bytes // entry.shape[0]
        begin, end = (entry.start + row * each for row in (wanted.start, wanted.stop))
        shape = (wanted.stop - wanted.start, *entry.shape[1:])
        return replace(self, entry=replace(entry, shape=shape, start=begin, end=end))


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One model as it lies on disk, in one file or several."""

    headers: tuple[Header, ...]
    generation: Generation
    config: Mapping[str, Any]  # the sections of all files together
    metadata: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, StoredTensor]]  # part → our name → where it is
    unknown: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The file, or the first of several."""
        first = str(self.headers[0].path)
        return first if len(self.headers) == 1 else f"{first} and {len(self.headers) - 1} more"

    @property
    def variant(self) -> str:
        """Name of the preset that suits the file: only its name tells a distilled model from the full one."""
        homes = {tensor.path.name for tensor in self.parts.get(TRANSFORMER, {}).values()}
        return "distilled" if any("distilled" in name.lower() for name in homes) else "dev"

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(t.entry.num_bytes for part in self.parts.values() for t in part.values())

    def part(self, name: str) -> Mapping[str, StoredTensor]:
        """Return the tensors of one part.

        Raises:
            CheckpointError: The files hold no such part; says what they hold instead.
        """
        if name in self.parts:
            return self.parts[name]
        raise CheckpointError(f"{self.label} holds no {PART_TITLES[name]}; it {self.describe()}")

    def section(self, name: str) -> Mapping[str, Any]:
        """Return one section of the configuration.

        Raises:
            CheckpointError: The header carries no such section.
        """
        section = self.config.get(name)
        if isinstance(section, Mapping):
            return section
        raise CheckpointError(
            f"{self.label} has no {name!r} section in its metadata key 'config', without which its "
            "networks cannot be built; converted or quantised copies often drop it, use the official file"
        )

    def describe(self) -> str:
        """Say what the files hold, as the end of a sentence: "holds: transformer, vocoder"."""
        if not self.parts:
            return "holds no tensors that soundstage knows"
        return "holds: " + ", ".join(PART_TITLES[part] for part in PART_TITLES if part in self.parts)

    def allowed_unused(self, part: str) -> frozenset[str]:
        """Names of `part`, as our modules spell them, that may stand in the file without being loaded."""
        return _local_names(part, self.generation.unused_tensors)

    def allowed_missing(self, part: str) -> frozenset[str]:
        """Names of `part`, as our modules spell them, that the file may lack."""
        return _local_names(part, self.generation.optional_tensors)


def open_checkpoint(paths: Path | Sequence[Path], *, require_data: bool = True) -> Checkpoint:
    """Open one model: a single file, a directory of files, or a list of files.

    A part may stand in any of the files, but in one only. A single file of a split pack is opened alone;
    `soundstage.checkpoints.releases.resolve` finds the rest of the pack.

    Raises:
        CheckpointError: A file cannot be read, is of another format, or two files hold the same tensor.
    """
    files = _files(paths)
    headers = tuple(_read(path, require_data=require_data) for path in files)
    contents = [sort_tensors(header) for header in headers]
    if len(files) > 1:
        headers, contents = _choose(headers, contents)
        _check_latents(headers, contents)
    parts: dict[str, dict[str, StoredTensor]] = {}
    config: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for header, content in zip(headers, contents, strict=True):
        _reject_foreign(header, content)
        for part, names in content.parts.items():
            _add(parts.setdefault(part, {}), header, names, part)
        config.update({key: value for key, value in header.config.items() if key not in config})
        metadata.update({key: value for key, value in header.metadata.items() if key not in metadata})
    return Checkpoint(
        headers=headers,
        generation=_generation(headers, contents),
        config=config,
        metadata=metadata,
        parts=parts,
        unknown=tuple(name for content in contents for name in content.unknown),
    )


def _files(paths: Path | Sequence[Path]) -> list[Path]:
    if not isinstance(paths, Path):
        return [file for path in paths for file in _files(path)]
    if not paths.is_dir():
        return [paths]
    patterns = [f"{depth}*{suffix}" for suffix in (".safetensors", SUFFIX) for depth in ("", "*/")]
    found = sorted(path for pattern in patterns for path in paths.glob(pattern))
    if not found:
        raise CheckpointError(f"{paths} holds no .safetensors files, and no {SUFFIX} files either")
    return found


def _read(path: Path, *, require_data: bool) -> Header:
    read = read_gguf if path.suffix.lower() == SUFFIX else read_header
    return read(path, require_data=require_data)


def _choose(
    headers: tuple[Header, ...], contents: list[Contents]
) -> tuple[tuple[Header, ...], list[Contents]]:
    """Of several files keep those that make up a model: no LoRA, no upsampler, no second video decoder."""
    pairs = list(zip(headers, contents, strict=True))
    has_conv = any(VIDEO_VAE in c.parts and not has_diffusion_decoder(h) for h, c in pairs)

    def belongs(header: Header, content: Contents) -> bool:
        if {LORA, UPSAMPLER} & set(content.parts):
            return False
        return not (has_conv and set(content.parts) == {VIDEO_VAE} and has_diffusion_decoder(header))

    kept = [(h, c) for h, c in pairs if belongs(h, c)] or pairs
    return tuple(h for h, _ in kept), [c for _, c in kept]


def _check_latents(headers: Sequence[Header], contents: Sequence[Contents]) -> None:
    """Refuse to join a transformer and VAEs that do not speak of the same latents."""
    spoken: dict[str, tuple[Header, Generation]] = {}
    for header, content in zip(headers, contents, strict=True):
        if "model_version" in header.metadata and {TRANSFORMER, VIDEO_VAE, AUDIO_VAE} & set(content.parts):
            generation = detect_generation(header.metadata)
            spoken.setdefault(generation.latents, (header, generation))
    if len(spoken) > 1:
        listed = ", ".join(f"{h.path} is of {g.title}" for h, g in spoken.values())
        raise CheckpointError(f"these files do not belong together: {listed}, and their latents differ")


def has_diffusion_decoder(header: Header) -> bool:
    """Tell whether a file's video decoder is the diffusion one of LTX-2.5, which soundstage does not run."""
    return any(name.removeprefix("vae.").startswith("decoder.det_stages.") for name in header.tensors)


def _generation(headers: Sequence[Header], contents: Sequence[Contents]) -> Generation:
    """Take the transformer's generation where there is one: other parts are shared between generations."""
    order = sorted(range(len(headers)), key=lambda i: TRANSFORMER not in contents[i].parts)
    versioned = [headers[i] for i in order if "model_version" in headers[i].metadata]
    try:
        return detect_generation((versioned or list(headers))[0].metadata)
    except CheckpointError as error:
        raise CheckpointError(f"{(versioned or list(headers))[0].path}: {error}") from error


def _add(part: dict[str, StoredTensor], header: Header, names: Mapping[str, str], title: str) -> None:
    for local, name in names.items():
        if local in part:
            raise CheckpointError(
                f"{part[local].path} and {header.path} both hold {PART_TITLES[title]} tensors ({local}); "
                "give the one file you mean, not the whole directory"
            )
        part[local] = StoredTensor(header.path, name, header.tensors[name])


def _reject_foreign(header: Header, content: Contents) -> None:
    if content.is_diffusers:
        raise CheckpointError(
            f"{header.path} is in the diffusers layout; "
            "soundstage reads the official single files (ltx-2*.safetensors)"
        )


def _local_names(part: str, official: Iterable[str]) -> frozenset[str]:
    if part == CONNECTORS:
        return frozenset()
    prefix = official_name(part, "")
    return frozenset(name.removeprefix(prefix) for name in official if name.startswith(prefix))
