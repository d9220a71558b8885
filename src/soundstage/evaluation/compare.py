"""Compare two evaluations by their JSON: what changed, and whether that is more than chance."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundstage.core.errors import RequestError
from soundstage.evaluation.codec import CODEC_METRICS
from soundstage.evaluation.metrics.registry import METRICS
from soundstage.evaluation.results import FORMAT
from soundstage.evaluation.statistics import Estimate, Pool, Rows, difference, spread


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of two evaluations."""

    group: str
    kind: str  # of scene; empty = all
    title: str
    unit: str
    digits: int
    old: float
    new: float
    difference: Estimate  # new minus old
    is_paired: bool  # whether both are about the same captions and seeds

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference excludes zero."""
        return self.difference.low > 0 or self.difference.high < 0


def compare(old: Path, new: Path) -> list[Change]:
    """List every metric that both evaluations have.

    Raises:
        RequestError: A file is missing or no report of an evaluation.
    """
    return list(_changes(read_report(old), read_report(new)))


def read_report(path: Path) -> dict[str, Any]:
    """Read the JSON that an evaluation wrote.

    Raises:
        RequestError: The file is missing or something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RequestError(f"{path} is no JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise RequestError(
            f"{path} has format {found!r}; this version compares format {FORMAT}: evaluate once more"
        )
    return data


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for title in (title for title in new["groups"] if title in old["groups"]):
        clips = [_by_name(data["groups"][title]["clips"]) for data in (old, new)]
        for kind in dict.fromkeys(clip["kind"] for clip in clips[1].values()):
            chosen = [{name: clip for name, clip in of.items() if clip["kind"] == kind} for of in clips]
            for name, metric in METRICS.items():
                change = _change(chosen, name, metric.pool, f"{title}", kind, metric)
                if change is not None:
                    yield change
    codecs = [data.get("codec") for data in (old, new)]
    if all(codecs):
        chosen = [dict(enumerate(codec["clips"])) for codec in codecs if codec]
        for name, loss in CODEC_METRICS.items():
            change = _change(chosen, name, loss.pool, "codecs", "", loss)
            if change is not None:
                yield change


def _by_name(clips: Sequence[Mapping[str, Any]]) -> dict[Any, Mapping[str, Any]]:
    return {(Path(clip["file"]).name, clip["caption"]): clip for clip in clips}


def _change(
    clips: Sequence[Mapping[Any, Mapping[str, Any]]], name: str, pool: Pool, group: str, kind: str, line: Any
) -> Change | None:
    """Compare one metric of two sets of clips; None where one of them says nothing."""
    old, new = clips
    is_paired = old.keys() == new.keys()
    names = [list(old), list(old) if is_paired else list(new)]
    rows = [[_rows(of[one], name) for one in order] for of, order in zip(clips, names, strict=True)]
    if not all(any(len(one) for one in side) for side in rows):
        return None
    return Change(
        group=group,
        kind=kind,
        title=line.title,
        unit=line.unit,
        digits=line.digits,
        old=spread(rows[0], pool).value,
        new=spread(rows[1], pool).value,
        difference=difference(rows[0], rows[1], pool, paired=is_paired),
        is_paired=is_paired,
    )


def _rows(clip: Mapping[str, Any], name: str) -> Rows:
    return [tuple(row) for row in clip["evidence"].get(name, ())]
