"""Write down an evaluation: `report.json` for machines, `report.html`, complete in itself, for people.

Beside them lies a contact sheet for each kind of scene, as a picture file.
"""

import base64
import html
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import soundstage
from soundstage.core.files import atomic_output
from soundstage.evaluation.bars import Judged, judge
from soundstage.evaluation.codec import CODEC_METRICS
from soundstage.evaluation.compare import Change
from soundstage.evaluation.metrics.registry import METRICS
from soundstage.evaluation.picture import contact_sheet
from soundstage.evaluation.results import ClipResult, GroupResult, SuiteResult, finite, speaking
from soundstage.evaluation.statistics import Estimate
from soundstage.evaluation.validation import Check

ABSENT = "–"
SHOWN, SHOWN_OF_OTHERS = 12, 3  # clips of each kind, of the first group and of each other
ANY = "any clip"  # title of what is measured where the kind of scene is not known

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .25em .8em; text-align: right }
th { border-bottom: 2px solid #999 } td { border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } small { color: #777 }
figure { margin: 1.2em 0 } figure img { width: 100%; image-rendering: pixelated; background: #111 }
figcaption b { font-weight: 600 } .no { color: #b00020 } .yes { color: #1b6e2f }
"""

PROMISES = {"floor": "material", "timbre": "material", "face colour": "colour", "face place": "place"}
"""Finding to the attribute of a caption that it answers, where they are named differently."""

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; the first column names what the others are about."""

    title: str
    head: Row
    rows: tuple[Row, ...]
    is_detail: bool = False  # for whoever asks further


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where the report lies."""

    json: Path
    html: Path
    sheets: tuple[Path, ...]  # contact sheets


def write_report(result: SuiteResult) -> ReportFiles:
    """Write all files into the evaluation's folder.

    Raises:
        ResourceError: The disk is full or refuses the write.
    """
    folder = result.directory
    files = ReportFiles(
        json=folder / "report.json", html=folder / "report.html", sheets=tuple(_write_sheets(result))
    )
    with atomic_output(files.json) as path:
        path.write_text(json.dumps(plain(result), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    with atomic_output(files.html) as path:
        path.write_text(html_page(result), encoding="utf-8")
    return files


def plain(result: SuiteResult) -> dict[str, Any]:
    """Write everything as plain data, with the bars and the versions."""
    bars = judge(result) if result.model else []
    return {
        **result.to_dict(),
        "bars": [_bar_dict(judged) for judged in bars],
        "versions": {"soundstage": soundstage.__version__},
    }


def _bar_dict(judged: Judged) -> Any:
    bar = judged.bar
    value = judged.value
    return finite(
        {
            "title": bar.title,
            "group": bar.group,
            "unit": bar.unit,
            "value": value.value,
            "low": value.low,
            "high": value.high,
            "ceiling": judged.ceiling.value,
            "truth": judged.truth.value,
            "gpu": {"limit": bar.gpu, "met": bar.is_met(value.value, bar.gpu)},
            "cpu": {"limit": bar.cpu, "met": bar.is_met(value.value, bar.cpu)},
        }
    )


def tables(result: SuiteResult) -> Iterator[Table]:
    """Give every table of the report: bars, metrics of each kind of scene, codecs, detectors."""
    if result.model:
        yield bar_table(judge(result))
    for kind in result.kinds:
        rows = tuple((title, *values) for title, values in metric_rows(result.groups, kind))
        head = ("metric", *(f"{group.title} ({_count(group, kind)})" for group in result.groups))
        yield Table(kind or ANY, head, rows)
    if result.groups and result.model:
        yield from _unseen_tables(result)
    if result.codec is not None:
        kinds = result.codec.kinds
        yield Table(
            f"codecs, {len(result.codec.clips)} clips of the world",
            ("metric", "all", *kinds),
            tuple(
                (
                    _titled(line.title, line.unit),
                    *(written(result.codec.estimate(name, kind), line.digits) for kind in ("", *kinds)),
                )
                for name, line in CODEC_METRICS.items()
            ),
        )
    for kind, checks in groupby(result.checks, key=lambda check: check.kind):
        yield Table(
            f"detectors on known truth: {kind}", ("detector", "truth", "measured"), check_rows(checks)
        )


def bar_table(bars: Sequence[Judged]) -> Table:
    """Show which bars are met."""
    head = ("bar", "trained on a GPU", "on a CPU", "measured", "GPU bar", "CPU bar", "codecs", "truth")
    rows = []
    for judged in bars:
        bar = judged.bar
        met = [bar.is_met(judged.value.value, limit) for limit in (bar.gpu, bar.cpu)]
        rows.append(
            (
                bar.title,
                bar.written(bar.gpu),
                bar.written(bar.cpu),
                written(judged.value, bar.digits),
                *(ABSENT if reached is None else "met" if reached else "missed" for reached in met),
                *(written(beside, bar.digits, short=True) for beside in (judged.ceiling, judged.truth)),
            )
        )
    return Table("bars", head, tuple(rows))


def _unseen_tables(result: SuiteResult) -> Iterator[Table]:
    """Show what combinations never seen in training change, in the first group."""
    group = result.groups[0]
    for kind in group.kinds:
        rows = []
        for name in speaking([group], kind):
            metric = METRICS[name]
            halves = [group.estimate(name, (kind,), unseen=unseen) for unseen in (False, True)]
            change = group.change(name, (kind,))
            values = (written(one, metric.digits) for one in (*halves, change))
            rows.append((_titled(metric.title, metric.unit), *values))
        head = ("metric", "seen combinations", "unseen combinations", "unseen minus seen")
        yield Table(
            f"{group.title}: {kind}, combinations seen and never seen in training",
            head,
            tuple(rows),
            is_detail=True,
        )


def metric_rows(groups: Sequence[GroupResult], kind: str) -> Iterator[tuple[str, list[str]]]:
    """Give each metric's title and its value in every group; a metric that no clip speaks of is left out."""
    for name in speaking(groups, kind):
        metric = METRICS[name]
        values = [
            written(group.by_kind[kind][name], metric.digits) if kind in group.by_kind else ABSENT
            for group in groups
        ]
        yield _titled(metric.title, metric.unit), values


def _titled(title: str, unit: str) -> str:
    return f"{title}, {unit}" if unit else title


def _count(group: GroupResult, kind: str) -> int:
    return sum(clip.kind == kind for clip in group.clips)


def written(estimate: Estimate, digits: int, *, short: bool = False) -> str:
    """Write an estimate, with its interval unless it should be short."""
    if not math.isfinite(estimate.value):
        return ABSENT
    value = f"{estimate.value:.{digits}f}"
    if short or not math.isfinite(estimate.low):
        return value
    return f"{value} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def check_rows(checks: Iterable[Check]) -> tuple[Row, ...]:
    """Give each check's title, truth and measured value."""
    rows = []
    for check in checks:
        unit = f" {check.unit}" if check.unit else ""
        digits = 1 if check.unit else 3
        measured = f"{check.measured:.{digits}f}{unit}" if math.isfinite(check.measured) else ABSENT
        rows.append((check.title, f"{check.truth:.0f}{unit}", measured))
    return tuple(rows)


def change_table(changes: Sequence[Change]) -> Table:
    """Show two evaluations beside each other; what chance does not explain carries a mark."""
    rows = []
    for change in changes:
        digits = change.digits
        rows.append(
            (
                f"{change.group} · {change.kind} · {_titled(change.title, change.unit)}".replace(
                    " ·  · ", " · "
                ),
                *(
                    f"{value:.{digits}f}" if math.isfinite(value) else ABSENT
                    for value in (change.old, change.new)
                ),
                written(change.difference, digits),
                "*" if change.is_clear else "",
                "" if change.is_paired else "other clips",
            )
        )
    head = ("group · kind · metric", "old", "new", "new minus old", "clear", "")
    return Table("differences, with 95 % intervals", head, tuple(rows))


def html_page(result: SuiteResult) -> str:
    """Write the whole report as one page."""
    model = html.escape(result.model or "stored clips")
    settings = ", ".join(f"{name} {value}" for name, value in result.request.items()) or "defaults"
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>{model}: evaluation</title><style>{STYLE}</style>",
        f"<h1>{model}: suite {html.escape(result.suite)}</h1>",
        f"<p>{result.num_clips} prompts of each kind of scene from seed {result.seed}, "
        f"{html.escape(settings)}; soundstage {soundstage.__version__}. Everything but the codecs' losses "
        "is measured from the decoded MP4 files; in brackets the 95 % confidence interval (bootstrap "
        "over clips).</p>",
        *(f"<p>{html.escape(note)}</p>" for note in result.notes),
        *(html_table(table) for table in tables(result)),
    ]
    for group in result.groups:
        parts.append(
            f"<p>{html.escape(group.title)}: {_seconds(group.seconds_per_clip)} seconds to make a clip</p>"
        )
    for kind in result.kinds:
        parts.append(f"<h2>Clips: {html.escape(kind or ANY)}</h2>")
        for index, group in enumerate(result.groups):
            parts += _figures(group, kind, SHOWN if index == 0 else SHOWN_OF_OTHERS)
    parts.append(
        "<p><small>Each picture: frames over time; ticks of what is seen to happen (orange) and of onsets "
        "heard (blue); spectrogram of both channels.</small></p>"
    )
    return "\n".join(parts) + "\n"


def html_table(table: Table) -> str:
    """Write a table with its title."""
    head = "".join(f"<th>{html.escape(cell)}" for cell in table.head)
    rows = [
        f"<tr><td>{html.escape(row[0])}" + "".join(f"<td>{_cell(cell)}" for cell in row[1:])
        for row in table.rows
    ]
    return f"<h2>{html.escape(table.title)}</h2><table><tr>{head}{''.join(rows)}</table>"


def _cell(text: str) -> str:
    number, bracket, interval = text.partition(" [")
    if bracket:
        return f"{html.escape(number)} <small>[{html.escape(interval)}</small>"
    kind = {"met": "yes", "missed": "no"}.get(text)
    return f"<span class='{kind}'>{text}</span>" if kind else html.escape(text)


def _figures(group: GroupResult, kind: str, most: int) -> Iterator[str]:
    """Show clips of one kind, those of unseen and of seen combinations in turn."""
    clips = [clip for clip in group.clips if clip.kind == kind]
    if not clips:
        return
    shown = _mixed(clips)[:most]
    yield f"<h3>{html.escape(group.title)}, {len(shown)} of {len(clips)}</h3>"
    yield from (_figure(clip) for clip in shown)


def _mixed(clips: Sequence[ClipResult]) -> list[ClipResult]:
    """Order clips so that those of unseen and of seen combinations alternate."""
    halves = [[clip for clip in clips if clip.unseen == unseen] for unseen in (True, False)]
    return [clip for pair in zip_longest(*halves) for clip in pair if clip is not None]


def _figure(clip: ClipResult) -> str:
    image = base64.b64encode(clip.picture).decode()
    verdicts = ", ".join(_verdicts(clip))
    name = html.escape(clip.path.name)
    return (
        f"<figure><img alt='{name}' src='data:image/png;base64,{image}'>"
        f"<figcaption><b>{html.escape(clip.caption) or name}</b><br>{verdicts}</figcaption></figure>"
    )


def _verdicts(clip: ClipResult) -> Iterator[str]:
    """Say what was found, marked where the caption promised something."""
    for name, value in clip.found.items():
        if not isinstance(value, str | None):
            continue
        text = html.escape(value or "nothing")
        promised = clip.expected.get(PROMISES.get(name, name))
        if promised is None:
            yield f"{name} {text}"
        else:
            yield f"{name} <span class='{'yes' if value == promised else 'no'}'>{text}</span>"


def _write_sheets(result: SuiteResult) -> Iterator[Path]:
    """Write a picture of the first clips of each kind."""
    if not result.groups:
        return
    group = result.groups[0]
    for kind in group.kinds:
        clips = _mixed([clip for clip in group.clips if clip.kind == kind])[:SHOWN]
        target = result.directory / f"contact-{kind or 'clips'}.png"
        with atomic_output(target) as path:
            path.write_bytes(contact_sheet([clip.picture for clip in clips]))
        yield target


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if math.isfinite(seconds) else ABSENT
