"""Write down an evaluation: `report.json` for machines, `report.html`, complete in itself, for people."""

import base64
import html
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundstage
from soundstage.core.files import atomic_output
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.metrics.registry import METRICS
from soundstage.evaluation.statistics import Estimate
from soundstage.evaluation.suite import ClipResult, GroupResult, SuiteResult
from soundstage.evaluation.validation import Check

ABSENT = "–"
SHOWN_OF_OTHERS = 4  # clips of every group but the first
JUDGED = {
    "colour": "colour",
    "shape": "shape",
    "size": "size",
    "material": "floor",
    "direction": "direction",
}
"""Attribute of a caption to the finding that answers it; the timbre answers for the material, too."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .25em .8em; text-align: right }
th { border-bottom: 2px solid #999 } td { border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } small { color: #777 }
figure { margin: 1.2em 0 } figure img { width: 100%; image-rendering: pixelated; background: #111 }
figcaption b { font-weight: 600 } .no { color: #b00020 } .yes { color: #1b6e2f }
"""


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where the report lies."""

    json: Path
    html: Path


def write_report(result: SuiteResult) -> ReportFiles:
    """Write both files into the evaluation's folder.

    Raises:
        ResourceError: The disk is full or refuses the write.
    """
    files = ReportFiles(
        json=result.plan.directory / "report.json", html=result.plan.directory / "report.html"
    )
    data = {**result.to_dict(), "versions": {"soundstage": soundstage.__version__}}
    with atomic_output(files.json) as path:
        path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    with atomic_output(files.html) as path:
        path.write_text(html_page(result), encoding="utf-8")
    return files


def metric_rows(groups: Sequence[GroupResult]) -> Iterator[tuple[str, list[str]]]:
    """Give each metric's title and its value in every group; a metric that no clip speaks of is left out."""
    for name, metric in METRICS.items():
        estimates = [group.metrics[name] for group in groups]
        if any(estimate.num_clips for estimate in estimates):
            unit = f", {metric.unit}" if metric.unit else ""
            yield metric.title + unit, [written(estimate, metric) for estimate in estimates]


def written(estimate: Estimate, metric: Metric) -> str:
    """Write an estimate with its interval."""
    if not math.isfinite(estimate.value):
        return ABSENT
    digits = metric.digits
    value = f"{estimate.value:.{digits}f}"
    if not math.isfinite(estimate.low):
        return value
    return f"{value} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def check_rows(checks: Sequence[Check]) -> Iterator[tuple[str, str, str]]:
    """Give each check's title, truth and measured value."""
    for check in checks:
        unit = f" {check.unit}" if check.unit else ""
        digits = 1 if check.unit else 3
        measured = f"{check.measured:.{digits}f}{unit}" if math.isfinite(check.measured) else ABSENT
        yield check.title, f"{check.truth:.0f}{unit}", measured


def html_page(result: SuiteResult) -> str:
    """Write the whole report as one page."""
    model = html.escape(result.model or str(result.plan.clips))
    settings = ", ".join(f"{name} {value}" for name, value in result.plan.fields.items()) or "defaults"
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>{model}: evaluation</title><style>{STYLE}</style>",
        f"<h1>{model}: suite {html.escape(result.plan.suite)}</h1>",
        f"<p>{result.plan.num_clips} prompts from seed {result.plan.seed}, {html.escape(settings)}; "
        f"soundstage {soundstage.__version__}. Everything is measured from the decoded MP4 files; in "
        "brackets the 95 % confidence interval (bootstrap over clips).</p>",
        _metric_table(result.groups),
        "<h2>Detectors on known truth</h2>",
        _check_table(result.checks),
    ]
    for index, group in enumerate(result.groups):
        shown = group.clips if index == 0 else group.clips[:SHOWN_OF_OTHERS]
        parts.append(f"<h2>Clips: {html.escape(group.title)}</h2>")
        if len(shown) < len(group.clips):
            parts.append(f"<p>{len(shown)} of {len(group.clips)}</p>")
        parts += [_figure(clip) for clip in shown]
    parts.append(
        "<p><small>Each picture: frames over time; ticks of impacts seen (orange) and onsets heard (blue); "
        "spectrogram of both channels.</small></p>"
    )
    return "\n".join(parts) + "\n"


def _metric_table(groups: Sequence[GroupResult]) -> str:
    head = "".join(f"<th>{html.escape(group.title)}" for group in groups)
    rows = [f"<tr><th>{head}"]
    rows += [
        f"<tr><td>{html.escape(title)}" + "".join(f"<td>{_small_interval(value)}" for value in values)
        for title, values in metric_rows(groups)
    ]
    rows.append(
        "<tr><td>seconds to make a clip"
        + "".join(f"<td>{_seconds(group.seconds_per_clip)}" for group in groups)
    )
    return f"<table>{''.join(rows)}</table>"


def _check_table(checks: Sequence[Check]) -> str:
    rows = ["<tr><th><th>truth<th>measured"]
    rows += [
        f"<tr><td>{html.escape(title)}<td>{truth}<td>{measured}"
        for title, truth, measured in check_rows(checks)
    ]
    return f"<table>{''.join(rows)}</table>"


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
    for attribute, finding in (*JUDGED.items(), ("material", "timbre")):
        value = str(clip.found[finding] or "nothing")
        if attribute not in clip.expected:
            yield f"{finding} {html.escape(value)}"
            continue
        kind = "yes" if value == clip.expected[attribute] else "no"
        yield f"{finding} <span class='{kind}'>{html.escape(value)}</span>"


def _small_interval(value: str) -> str:
    number, bracket, interval = value.partition(" [")
    return f"{number} <small>[{interval}</small>" if bracket else number


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if math.isfinite(seconds) else ABSENT
