"""Fetch releases through huggingface-hub: resumable, and honest about gates, tokens and full disks."""

import shutil
from pathlib import Path

from soundstage.checkpoints.releases import (
    MODELS_VARIABLE,
    Release,
    ReleaseFile,
    download_folder,
    search_path,
)
from soundstage.core.errors import CheckpointError, ResourceError


def download(
    release: Release, *, folder: Path | None = None, repo: str | None = None, endpoint: str | None = None
) -> Path:
    """Download what is missing of a release; an interrupted transfer goes on where it stopped.

    Args:
        folder: Where to; the folder of the release inside the download folder when absent.
        repo: Another repository that holds the same files.
        endpoint: Another hub; `$HF_ENDPOINT` otherwise, then huggingface.co.

    Returns:
        The folder that holds the release.

    Raises:
        CheckpointError: The files cannot be fetched; says what to do.
        ResourceError: The disk has too little room.
    """
    target = folder or download_folder() / release.name
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror}") from error
    source = repo or release.repo
    if not release.files:
        _check_room(target, release.num_bytes)
        _fetch_repository(source, release, target, endpoint)
    for file in release.files:
        if (target / file.path).is_file() and (target / file.path).stat().st_size == file.num_bytes:
            continue
        _check_room(target, file.num_bytes)
        _fetch(source, release, file, target, endpoint)
    return target


def _fetch(source: str, release: Release, file: ReleaseFile, target: Path, endpoint: str | None) -> None:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(source, file.path, local_dir=target, endpoint=endpoint)
    except Exception as error:
        raise _explain(error, source, release, file.path, target) from error


def _fetch_repository(source: str, release: Release, target: Path, endpoint: str | None) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(source, local_dir=target, endpoint=endpoint, ignore_patterns=["*.gguf", "*.bin"])
    except Exception as error:
        raise _explain(error, source, release, "the repository", target) from error


def _explain(error: Exception, source: str, release: Release, what: str, target: Path) -> Exception:
    """Turn what the hub raises into one line that says what to do."""
    from huggingface_hub import errors

    page = f"huggingface.co/{source}"
    by_hand = (
        f"or fetch {what} by hand from {page} and put it into {target} "
        f"(or any of {', '.join(map(str, search_path()))}; ${MODELS_VARIABLE} adds places)"
    )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return CheckpointError(
            f"{source} is gated ({release.licence}): log in at {page}, accept its licence, "
            f"run `hf auth login` or set $HF_TOKEN, then repeat; {by_hand}"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return CheckpointError(
            f"{source} does not exist or is not visible without logging in: check --repo, "
            f"run `hf auth login` or set $HF_TOKEN; {by_hand}"
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return CheckpointError(f"{source} has no {what}; look at {page} and give another --repo; {by_hand}")
    if isinstance(error, OSError) and error.errno == 28:
        return ResourceError(f"no space left for {what} in {target}")
    return CheckpointError(
        f"{what} of {source} could not be fetched ({type(error).__name__}: {_first_line(error)}); "
        f"repeat the command, it goes on where it stopped; {by_hand}"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no details")


def _check_room(target: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(target).free
    if free < num_bytes:
        raise ResourceError(
            f"{target} has {free / 1e9:.1f} GB of free space, {num_bytes / 1e9:.1f} GB are needed; "
            "give another place with --to"
        )
