"""Output files: refused before any work when they cannot be written, complete or absent afterwards."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from soundstage.core.errors import RequestError, ResourceError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_writable(path: Path) -> None:
    """Find out before any work whether `path` can be written, by making and removing a file beside it.

    Raises:
        RequestError: The folder is missing or read-only, or the path is not that of a file.
    """
    try:
        if path.is_dir():
            raise RequestError(f"output {path} is a folder; name a file inside it")
        if not path.parent.is_dir():
            raise RequestError(f"output folder {path.parent} does not exist; create it first")
        if path.exists() and not os.access(path, os.W_OK):
            raise RequestError(f"output {path} exists and is read-only")
        probe = _part(path)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RequestError(f"cannot write output {path}: {error.strerror or error}") from error


def check_folder(folder: Path) -> None:
    """Find out before any work whether files can be written to a folder; it is made when it is missing.

    Raises:
        RequestError: It cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    check_writable(folder / "any")


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` and move it there when the block succeeds.

    Whatever ends the block early (an error, Ctrl-C, a full disk), no partial file stays behind and a file
    that was there before is untouched.

    Raises:
        ResourceError: The disk is full, or the operating system refuses the write.
    """
    temporary = _part(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise ResourceError(
                f"no space left to write {path}; free some or choose another folder"
            ) from error
        raise ResourceError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    """Name the unfinished file: hidden, beside the target (a move must not cross disks), one per process."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def last_used(path: Path) -> float:
    """Return when a cached file was last used, in seconds: 0 where another process removed it.

    Whoever uses one touches it (`os.utime`); when it was read is not recorded everywhere.
    """
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
