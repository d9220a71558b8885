"""Progress on stderr: a bar per stage on a terminal, a line per stage elsewhere, nothing if quiet."""

import sys
from dataclasses import replace
from types import TracebackType
from typing import Any

from soundstage.core.progress import Progress


class ProgressConsole:
    """The `on_progress` callback of a command; also adds up the seconds of each stage.

    Use it as a context, so that the bars are closed whatever happens.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.seconds: dict[str, float] = {}  # of all finished stages by name, over all clips
        self._label = ""
        self._quiet = quiet
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._line: Progress | None = None  # a finished stage that is not written yet: it may go on

    def __enter__(self) -> "ProgressConsole":
        if not self._quiet and sys.stderr.isatty():
            self._bars = _make_bars()
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write_line()
        if self._bars is not None:
            self._bars.stop()

    def begin(self, label: str) -> None:
        """Name what comes next, such as one clip of several; its stages get bars of their own."""
        self._write_line()
        self._label = label
        self._tasks.clear()
        if self._bars is not None and label:
            self._bars.console.print(label, highlight=False, markup=False)

    def __call__(self, event: Progress) -> None:
        """Draw one event."""
        done = event.step >= event.num_steps
        if done:
            self.seconds[event.stage] = self.seconds.get(event.stage, 0.0) + event.seconds
        if self._bars is not None:
            self._draw(event)
        elif done and not self._quiet:
            self._add_line(event)

    def _add_line(self, event: Progress) -> None:
        """Remember a finished stage; one that comes in parts, such as loading, becomes one line."""
        last = self._line
        if last is None or last.stage != event.stage:
            self._write_line()
            self._line = event
            return
        steps, seconds = last.num_steps + event.num_steps, last.seconds + event.seconds
        self._line = replace(event, step=steps, num_steps=steps, seconds=seconds)

    def _write_line(self) -> None:
        event, self._line = self._line, None
        if event is None:
            return
        steps = f", {event.num_steps} steps" if event.num_steps > 1 else ""
        label = f"{self._label}: " if self._label else ""
        sys.stderr.write(f"{label}{_title(event.stage)}: {event.seconds:.1f} s{steps}\n")
        sys.stderr.flush()

    def _draw(self, event: Progress) -> None:
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bars.add_task(
                _title(event.stage), total=event.num_steps, clock=""
            )
        left = event.seconds_left
        is_over = event.step >= event.num_steps
        clock = f"{event.seconds:.1f} s" if is_over or left is None else f"{_minutes(left)} left"
        self._bars.update(
            self._tasks[event.stage],
            completed=event.step,
            total=event.num_steps,
            clock=clock,
            refresh=is_over,
        )


def _make_bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description:>16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[clock]}"),
        console=Console(stderr=True),
    )


def _title(stage: str) -> str:
    return stage.replace("_", " ")


def _minutes(seconds: float) -> str:
    """Write a time left as 1:05."""
    whole = max(round(seconds), 0)
    return f"{whole // 60}:{whole % 60:02d}"
