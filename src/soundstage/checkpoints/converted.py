"""Weights in a form that no downloaded file has them in: in files of their own, to stay on disk as others do.

Such a file is made once per model and format, one tensor after another, and mapped into memory from then on.
Its name is a hash of all that its contents depend on. It appears when it is complete; all of them may be
removed at any time. When a new one is made, those that nobody used for a month go, and where that makes the
room it needs, the least recently used ones. Files in the folder that were not made here are never touched.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from soundstage.checkpoints.checkpoint import StoredTensor
from soundstage.checkpoints.fingerprint import fingerprint
from soundstage.checkpoints.header import read_header
from soundstage.checkpoints.save import lay_out
from soundstage.core.errors import CheckpointError, RequestError, ResourceError
from soundstage.core.files import atomic_output, check_folder, last_used

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "SOUNDSTAGE_CONVERTED"
UNUSED_SECONDS = 30 * 24 * 3600  # a file that no model asked for so long is removed when another is made
RECENT_SECONDS = 3600  # one asked for since is kept: the same run may need it
_MADE_OF = "made_of"  # in the header's metadata: the marks of a file that was made here
_FORMAT = 1  # raised when a conversion gives other numbers than before


def converted_folder() -> Path:
    """Return where converted weights are kept."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "soundstage" / "converted"


@dataclass(frozen=True)
class ConvertedWeights:
    """A folder of converted weights."""

    folder: Path

    def keep(
        self,
        sources: Mapping[str, StoredTensor],
        kinds: Mapping[str, str],
        results: Mapping[str, Tensor],
        conversion: Iterable[tuple[str, Tensor]],
    ) -> Mapping[str, StoredTensor]:
        """Find converted weights in the folder, or convert them and put them there, in place of older ones.

        Args:
            sources: What is converted.
            kinds: How, by the same names.
            results: The tensors that come of it: of their values nothing is read, and they may be on `meta`.
            conversion: Yields all results; a tensor may be dropped when the next is asked for.

        Raises:
            ResourceError: The disk has no room, even without those; says how much is needed.
            RequestError: The folder cannot be written to.
        """
        path = self.folder / f"{_key(sources, kinds, results)}.safetensors"
        found = _read(path, results)
        if found is not None:
            with contextlib.suppress(OSError):  # the folder may be another user's
                os.utime(path)
            return found
        self._check(results)
        header, offsets = lay_out(results, {_MADE_OF: ", ".join(sorted(_homes(sources)))})
        with atomic_output(path) as temporary, temporary.open("wb") as file:
            file.write(header)
            for name, tensor in conversion:
                file.seek(offsets[name])
                value = tensor.detach().to("cpu").contiguous()
                file.write(value.reshape(-1).view(torch.uint8).numpy().data)
        logger.info("converted weights are kept in %s", path)
        found = _read(path, results)
        assert found is not None, "not all that was promised was converted"
        return found

    def _check(self, results: Mapping[str, Tensor]) -> None:
        """Find out before any work whether there is room."""
        try:
            check_folder(self.folder)
        except RequestError as error:
            raise RequestError(
                f"converted weights: {error}; ${FOLDER_VARIABLE} names another place"
            ) from error
        needed = sum(tensor.numel() * tensor.element_size() for tensor in results.values())
        free = self._make_room(needed)
        if needed > free:
            raise ResourceError(
                f"weights that stay on disk in another format than the file's take {needed / 1e9:.1f} GB in "
                f"{self.folder}, where {free / 1e9:.1f} GB are free; free some, name another folder in "
                f"${FOLDER_VARIABLE}, or keep them in memory (--offload stream)"
            )

    def _make_room(self, needed: int) -> int:
        """Remove what is long unused and, if that suffices, what is in the way; return the bytes free."""
        now = time.time()
        old = sorted(
            (used, path)
            for path in self.folder.glob("*.safetensors")
            if (used := last_used(path)) < now - RECENT_SECONDS and _is_ours(path)
        )
        free = shutil.disk_usage(self.folder).free
        suffices = needed <= free + sum(path.stat().st_size for _, path in old)
        for used, path in old:
            in_the_way = suffices and needed > shutil.disk_usage(self.folder).free
            if used > now - UNUSED_SECONDS and not in_the_way:
                break
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # in use, where files in use cannot be removed
                logger.warning("converted weights stay where they are: %s", error)
            else:
                logger.info("removed converted weights last used %s: %s", _date(used), path)
        return shutil.disk_usage(self.folder).free


def _key(sources: Mapping[str, StoredTensor], kinds: Mapping[str, str], results: Mapping[str, Tensor]) -> str:
    """Name what conversion gives: by what is converted, how and to what."""
    files = {tensor.path for tensor in sources.values()}
    whole = [[file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)]
    shapes = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in results.items()}
    how = json.dumps([_FORMAT, kinds, shapes, whole], sort_keys=True)
    return f"{fingerprint(sources)}-{hashlib.sha256(how.encode()).hexdigest()[:16]}"


def _read(path: Path, results: Mapping[str, Tensor]) -> Mapping[str, StoredTensor] | None:
    """Open a file of converted weights; None where there is none, or one that is damaged."""
    if not path.is_file():
        return None
    try:
        entries = read_header(path).tensors
    except CheckpointError as error:
        logger.warning("converted weights are made anew: %s", error)
        return None
    if entries.keys() != results.keys():
        return None
    return {name: StoredTensor(path, name, entry) for name, entry in entries.items()}


def _homes(sources: Mapping[str, StoredTensor]) -> set[str]:
    return {tensor.path.name for tensor in sources.values()}


def _is_ours(path: Path) -> bool:
    try:
        return _MADE_OF in read_header(path).metadata
    except CheckpointError:
        return False


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))
