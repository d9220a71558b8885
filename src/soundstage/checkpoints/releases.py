"""The official releases: which files they are, where they are looked for, and how to get them.

Repository ids can be changed per download; sizes marked approximate are computed from parameter counts.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from soundstage.checkpoints.checkpoint import PACK_FOLDERS
from soundstage.core.config import nearest
from soundstage.core.errors import CheckpointError

EMBEDDED = "embedded"
EMBEDDED_FILE = Path(__file__).parent.parent / "assets" / "embedded.safetensors"
MODELS_VARIABLE = "SOUNDSTAGE_MODELS"
GEMMA_REPO = "google/gemma-3-12b-it-qat-q4_0-unquantized"
GEMMA = "gemma-3-12b-it"

LICENCE_2_0 = "LTX-2 Community License"
LICENCE_2_X = "LTX-2.x Community License"
LICENCE_GEMMA = "Gemma Terms of Use"


@dataclass(frozen=True, kw_only=True)
class ReleaseFile:
    """One file of a release."""

    path: str  # inside the repository
    num_bytes: int
    exact: bool = False  # whether the size was published, not computed

    @property
    def name(self) -> str:
        """File name without folders."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True, kw_only=True)
class Release:
    """One thing that can be downloaded under one name."""

    name: str
    generation: str
    kind: str  # "model", "upsampler", "LoRA", "text encoder"
    repo: str
    files: tuple[ReleaseFile, ...]  # empty: the whole repository
    licence: str
    gated: bool = False  # an account must accept the licence first
    needs: tuple[str, ...] = ()  # other releases without which it is not complete
    note: str = ""
    num_bytes_hint: int = 0  # of a whole repository

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.num_bytes for file in self.files) or self.num_bytes_hint

    @property
    def exact(self) -> bool:
        """Whether every size is published, not computed."""
        return bool(self.files) and all(file.exact for file in self.files)


def _single(name: str, num_bytes: int, *, exact: bool = False) -> tuple[ReleaseFile, ...]:
    return (ReleaseFile(path=f"{name}.safetensors", num_bytes=num_bytes, exact=exact),)


def _model_2_0(name: str, num_bytes: int, note: str = "") -> Release:
    return Release(
        name=name,
        generation="2.0",
        kind="model",
        repo="Lightricks/LTX-2",
        files=_single(name, num_bytes),
        licence=LICENCE_2_0,
        needs=(GEMMA,),
        note=note,
    )


def _model_2_3(name: str, num_bytes: int, *, exact: bool = False, repo: str = "", note: str = "") -> Release:
    return Release(
        name=name,
        generation="2.3",
        kind="model",
        repo=repo or "Lightricks/LTX-2.3",
        files=_single(name, num_bytes, exact=exact),
        licence=LICENCE_2_X,
        needs=(GEMMA,),
        note=note,
    )


def _extra(generation: str, kind: str, name: str, num_bytes: int, *, exact: bool = False) -> Release:
    is_first = generation == "2.0"
    return Release(
        name=name,
        generation=generation,
        kind=kind,
        repo="Lightricks/LTX-2" if is_first else "Lightricks/LTX-2.3",
        files=_single(name, num_bytes, exact=exact),
        licence=LICENCE_2_0 if is_first else LICENCE_2_X,
    )


def _pack_2_5(name: str, kind: str, *files: tuple[str, int]) -> Release:
    return Release(
        name=name,
        generation="2.5",
        kind=kind,
        repo="Lightricks/LTX-2.5",
        files=tuple(ReleaseFile(path=f"{path}.safetensors", num_bytes=size) for path, size in files),
        licence=LICENCE_2_X,
        gated=True,
    )


# 2 bytes × (transformer, connectors, projections, VAEs, vocoder)
_BF16_2_0 = 2 * (20_307_649_792 + 694_098_881 + 528_380_720 + 53_248_146 + 55_592_802)
_FP8_NOTE = "fp8, kept as it is"
_FP4_NOTE = "fp4, not readable by soundstage"
_TRANSFORMER_2_5 = 2 * (18_987_859_200 + 2_016_166_400)
_SHARED_2_5 = (
    ("text_encoders/gemma4-12b-with-proj-ltx-2.5-bf16", 26_740_000_000),
    ("vae/ltx-2.5-video-vae-conv-bf16", 2 * (318_936_897 + 407_169_072)),
    ("vae/ltx-2.5-audio-vae-bf16", 2 * (53_248_146 + 128_537_448)),
)

_ALL = (
    _model_2_0("ltx-2-19b-dev", _BF16_2_0),
    _model_2_0("ltx-2-19b-distilled", _BF16_2_0),
    _model_2_0("ltx-2-19b-dev-fp8", 26_300_000_000, _FP8_NOTE),
    _model_2_0("ltx-2-19b-distilled-fp8", 26_700_000_000, _FP8_NOTE),
    _model_2_0("ltx-2-19b-dev-fp4", 18_900_000_000, _FP4_NOTE),
    _extra("2.0", "LoRA", "ltx-2-19b-distilled-lora-384", 7_100_000_000),
    _extra("2.0", "upsampler", "ltx-2-spatial-upscaler-x2-1.0", 995_765_578, exact=True),
    _extra("2.0", "upsampler", "ltx-2-temporal-upscaler-x2-1.0", 261_950_000),
    _model_2_3("ltx-2.3-22b-dev", 46_149_344_974, exact=True),
    _model_2_3("ltx-2.3-22b-distilled-1.1", 46_149_345_334, exact=True),
    _model_2_3("ltx-2.3-22b-dev-fp8", 29_100_000_000, repo="Lightricks/LTX-2.3-fp8", note=_FP8_NOTE),
    _model_2_3("ltx-2.3-22b-distilled-fp8", 29_500_000_000, repo="Lightricks/LTX-2.3-fp8", note=_FP8_NOTE),
    _extra("2.3", "LoRA", "ltx-2.3-22b-distilled-lora-384-1.1", 7_605_507_256, exact=True),
    _extra("2.3", "upsampler", "ltx-2.3-spatial-upscaler-x2-1.1", 995_740_000),
    _extra("2.3", "upsampler", "ltx-2.3-spatial-upscaler-x1.5-1.0", 1_090_118_000),
    _extra("2.3", "upsampler", "ltx-2.3-temporal-upscaler-x2-1.0", 261_950_000),
    _pack_2_5(
        "ltx-2.5-22b-dev",
        "model",
        ("diffusion_models/ltx-2.5-22b-dev-transformer-bf16", _TRANSFORMER_2_5),
        *_SHARED_2_5,
    ),
    _pack_2_5(
        "ltx-2.5-22b-distilled",
        "model",
        ("diffusion_models/ltx-2.5-22b-distilled-transformer-bf16", _TRANSFORMER_2_5),
        *_SHARED_2_5,
    ),
    _pack_2_5(
        "ltx-2.5-22b-distilled-lora-450",
        "LoRA",
        ("loras/ltx-2.5-22b-distilled-lora-450-bf16", 8_900_000_000),
    ),
    _pack_2_5(
        "ltx-2.5-spatial-upscaler-x2",
        "upsampler",
        ("latent_upscale_models/ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0", 995_740_000),
    ),
    _pack_2_5(
        "ltx-2.5-temporal-upscaler-x2",
        "upsampler",
        ("latent_upscale_models/ltx-2.5-latent-temporal-upscaler-x2-bf16-1.0", 261_950_000),
    ),
    Release(
        name=GEMMA,
        generation="2.0, 2.3",
        kind="text encoder",
        repo=GEMMA_REPO,
        files=(),
        licence=LICENCE_GEMMA,
        gated=True,
        note="a directory: the text encoder of LTX-2.0 and 2.3",
        num_bytes_hint=24_400_000_000,
    ),
)
RELEASES = {release.name: release for release in _ALL}


def search_path() -> list[Path]:
    """List the directories in which model files are looked for, the first hit counting."""
    given = [Path(p).expanduser() for p in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep) if p]
    return [*given, download_folder(), Path("models"), Path()]


def download_folder() -> Path:
    """Return where downloads go unless the user says otherwise."""
    return Path("~/.cache/soundstage/models").expanduser()


def find_file(release: Release, file: ReleaseFile) -> Path | None:
    """Look for one file of a release: under its own name, its path or its release's folder."""
    for folder in search_path():
        for candidate in (folder / file.name, folder / file.path, folder / release.name / file.path):
            if candidate.is_file():
                return candidate
    return next(
        (path for path in (s / file.path for s in _hub_snapshots(release.repo)) if path.is_file()), None
    )


def find_release(release: Release) -> tuple[Path, ...] | None:
    """Look for all files of a release (for a whole repository: its directory); None if any is missing."""
    if not release.files:
        names = (release.name, PurePosixPath(release.repo).name)
        folders = [folder / name for folder in search_path() for name in names]
        folders += list(_hub_snapshots(release.repo))
        hits = (folder for folder in folders if (folder / "config.json").is_file())
        found = next(hits, None)
        return None if found is None else (found,)
    paths = [find_file(release, file) for file in release.files]
    return tuple(path for path in paths if path is not None) if all(paths) else None


def resolve(name_or_path: str | Path) -> tuple[Path, ...]:
    """Turn what a user names into files: "embedded", a release, a file, or a directory.

    A single file of a split pack brings the rest of its pack along when that lies beside it.

    Raises:
        CheckpointError: Nothing of that name exists; says what to get and where to put it.
    """
    name = str(name_or_path)
    if name == EMBEDDED:
        return (_embedded(),)
    if name in RELEASES:
        found = find_release(RELEASES[name])
        if found is None:
            raise CheckpointError(missing_message(RELEASES[name]))
        return found
    path = Path(name_or_path).expanduser()
    if path.exists():
        return _with_pack(path)
    if name.endswith(".safetensors") or len(path.parts) > 1:
        known = RELEASES.get(path.stem)
        hint = f"; it is a release file: {missing_message(known)}" if known else ""
        raise CheckpointError(f"{name} does not exist{hint}")
    names = [EMBEDDED, *RELEASES]
    raise CheckpointError(
        f"unknown model {name!r}{nearest(name, names)}; give a .safetensors file, a directory, "
        f"'{EMBEDDED}' or a release that `soundstage models` lists"
    )


def missing_message(release: Release) -> str:
    """Say which files of a release are not there, how to get them and where they may lie."""
    if release.files:
        missing = [file.path for file in release.files if find_file(release, file) is None]
        what = ", ".join(missing)
    else:
        what = "the whole repository"
    places = ", ".join(str(folder) for folder in search_path())
    gate = f" after accepting the licence at huggingface.co/{release.repo}" if release.gated else ""
    return (
        f"{release.name} is not on this machine: get {what} from huggingface.co/{release.repo} "
        f"(about {release.num_bytes / 1e9:.1f} GB; `soundstage models download {release.name}`{gate}) "
        f"and put it into one of {places}; ${MODELS_VARIABLE} adds places"
    )


def _embedded() -> Path:
    if EMBEDDED_FILE.is_file():
        return EMBEDDED_FILE
    raise CheckpointError(
        f"the embedded model is missing from this installation: {EMBEDDED_FILE} does not exist; "
        "reinstall soundstage, or train it with the recipes in recipes/"
    )


def _with_pack(path: Path) -> tuple[Path, ...]:
    if path.is_dir() or path.parent.name not in PACK_FOLDERS:
        return (path,)
    root = path.parent.parent
    others = [
        candidate
        for folder in ("text_encoders", "vae", "model_patches")
        if folder != path.parent.name
        for candidate in sorted((root / folder).glob("*.safetensors"))
    ]
    return (path, *others)


def _hub_snapshots(repo: str) -> Iterator[Path]:
    """Yield the downloaded revisions of a repository in the Hugging Face cache, the newest first."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    snapshots = cache / f"models--{repo.replace('/', '--')}" / "snapshots"
    if snapshots.is_dir():
        yield from sorted(snapshots.iterdir(), key=lambda path: -path.stat().st_mtime)
