"""Fetch releases through huggingface-hub: resumable, and honest about gates, tokens and full disks.

The hub client throws partial files away when a transfer fails for good. So each file grows here in a part
file that bears the name of its contents; the next call goes on from its end, and what changed begins anew.
"""

import fnmatch
import shutil
from pathlib import Path

from soundstage.checkpoints.releases import (
    MODELS_VARIABLE,
    Release,
    download_folder,
    search_path,
)
from soundstage.core.errors import CheckpointError, ResourceError

NOT_FETCHED = ("*.gguf", "*.bin", "*.pt", "*.pth")  # other formats that a whole repository may hold


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
    what = "the list of files"
    try:
        names = [file.path for file in release.files] or _list_repository(source, endpoint)
        for what in names:
            _fetch(source, what, target, endpoint)
    except (CheckpointError, ResourceError):
        raise
    except Exception as error:
        raise _explain(error, source, release, what, target) from error
    return target


def _list_repository(source: str, endpoint: str | None) -> list[str]:
    from huggingface_hub import HfApi

    names = HfApi(endpoint=endpoint).list_repo_files(source)
    return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in NOT_FETCHED)]


def _fetch(source: str, name: str, target: Path, endpoint: str | None) -> None:
    """Fetch one file, or what is missing of it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(source, name, endpoint=endpoint)
    known = get_hf_file_metadata(url, endpoint=endpoint)
    path = target / name
    if path.is_file() and path.stat().st_size == known.size:
        return
    mark = "".join(filter(str.isalnum, known.etag or ""))[:16] or "unknown"
    part = path.with_name(f"{path.name}.{mark}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    done = part.stat().st_size if part.exists() else 0
    _check_room(target, (known.size or 0) - done)
    with part.open("ab") as file:
        http_get(url, file, resume_size=done, headers=build_hf_headers(), expected_size=known.size)
    part.replace(path)


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
