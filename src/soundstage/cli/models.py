"""`soundstage models`: the known releases, and how to get them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from soundstage.checkpoints.releases import (
    EMBEDDED,
    EMBEDDED_FILE,
    RELEASES,
    Release,
    find_release,
    search_path,
)
from soundstage.core.config import nearest
from soundstage.core.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class ModelsCommand:
    """List the known releases and whether they are here, or download one.

    Repositories are those the files were published in; --repo names another that holds the same files.

    Example:
        soundstage models
        soundstage models download ltx-2.3-22b-dev
    """

    action: Annotated[Literal["list", "download"], tyro.conf.Positional] = "list"
    """What to do."""
    name: Annotated[str | None, tyro.conf.Positional] = None
    """Release to download, or the only one to list."""
    to: Path | None = None
    """Folder to download into."""
    repo: str | None = None
    """Repository to download from, in place of the release's own."""
    endpoint: str | None = None
    """Hub to download from; by default $HF_ENDPOINT, then https://huggingface.co."""
    json: bool = False
    """Write machine-readable output."""

    def run(self) -> int:
        """Print the table, or fetch what is missing and print where it lies."""
        if self.action == "download":
            from soundstage.checkpoints.download import download

            if self.name is None:
                raise RequestError("say what to download: `soundstage models download NAME`")
            release = _release(self.name)
            folder = download(release, folder=self.to, repo=self.repo, endpoint=self.endpoint)
            content = {"name": release.name, "folder": str(folder), "files": _paths(release, folder)}
            sys.stdout.write(json.dumps(content) + "\n" if self.json else f"{folder}\n")
            return 0
        releases = list(RELEASES.values()) if self.name is None else [_release(self.name)]
        sys.stdout.write(_to_json(releases) if self.json else _table(releases, single=self.name is not None))
        return 0


def _release(name: str) -> Release:
    if name in RELEASES:
        return RELEASES[name]
    if name == EMBEDDED:
        raise RequestError(
            "the embedded model is inside the package: there is nothing to download, and "
            f"`soundstage inspect {EMBEDDED}` tells about it"
        )
    raise RequestError(f"unknown release {name!r}{nearest(name, RELEASES)}; `soundstage models` lists all")


def _paths(release: Release, folder: Path) -> list[str]:
    return [str(folder / file.path) for file in release.files] or [str(folder)]


def _table(releases: Sequence[Release], *, single: bool) -> str:
    lines = [f"{'name':<38}{'generation':<12}{'kind':<14}{'size':>10}  {'here':<6}repository"]
    if not single:
        here = "yes" if EMBEDDED_FILE.is_file() else "no"
        size = _size(EMBEDDED_FILE.stat().st_size, exact=True) if EMBEDDED_FILE.is_file() else ""
        lines.append(f"{EMBEDDED:<38}{'-':<12}{'model':<14}{size:>10}  {here:<6}part of this package")
    for release in releases:
        here = "yes" if find_release(release) else "no"
        gate = " (gated)" if release.gated else ""
        size = _size(release.num_bytes, exact=release.exact)
        lines.append(
            f"{release.name:<38}{release.generation:<12}{release.kind:<14}{size:>10}  {here:<6}"
            f"{release.repo}{gate}"
        )
    if single:
        lines += _details(releases[0])
    lines += [
        "",
        "~ approximate. Looked for in: " + ", ".join(str(folder) for folder in search_path()),
        "and in the Hugging Face cache; $SOUNDSTAGE_MODELS adds folders. The weights are not part of",
        "soundstage and come under licences of their own: "
        + ", ".join(sorted({r.licence for r in releases})),
    ]
    return "\n".join(lines) + "\n"


def _details(release: Release) -> list[str]:
    lines = ["", f"  licence: {release.licence}"]
    lines += [f"  needs:   {name}" for name in release.needs]
    lines += [f"  note:    {release.note}"] if release.note else []
    lines += [f"  file:    {file.path} ({_size(file.num_bytes, exact=file.exact)})" for file in release.files]
    found = find_release(release)
    lines += [f"  here:    {path}" for path in found or ()]
    return lines


def _to_json(releases: Sequence[Release]) -> str:
    content: list[dict[str, Any]] = [
        {
            **asdict(release),
            "num_bytes": release.num_bytes,
            "found": [str(path) for path in find_release(release) or ()],
        }
        for release in releases
    ]
    return json.dumps(content, indent=2) + "\n"


def _size(num_bytes: int, *, exact: bool) -> str:
    size = f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 10**9 else f"{num_bytes / 1e6:.0f} MB"
    return size if exact else f"~{size}"
