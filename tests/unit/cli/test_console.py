import io

import pytest

from soundstage.cli.console import ProgressConsole
from soundstage.core.progress import Progress

SHOW_CURSOR = "\x1b[?25h"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def stage(name, num_steps, seconds=2.0):
    return [
        Progress(stage=name, step=step, num_steps=num_steps, seconds=seconds * step / num_steps)
        for step in range(num_steps + 1)
    ]


def play(console, label=""):
    with console:
        console.begin(label)
        for event in [*stage("encode_prompt", 1), *stage("denoise", 4, 8.0)]:
            console(event)


def test_without_a_terminal_each_finished_stage_is_a_line(capsys):
    play(ProgressConsole(quiet=False))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "encode prompt: 2.0 s\ndenoise: 8.0 s, 4 steps\n"


def test_lines_say_which_clip(capsys):
    play(ProgressConsole(quiet=False), label="clip 2 of 3")
    assert capsys.readouterr().err.startswith("clip 2 of 3: encode prompt: 2.0 s\n")


def test_a_stage_that_comes_in_parts_is_one_line(capsys):
    with ProgressConsole(quiet=False) as console:
        for event in [*stage("load", 3, 1.0), *stage("load", 5, 2.0), *stage("denoise", 2)]:
            console(event)
    assert capsys.readouterr().err == "load: 3.0 s, 8 steps\ndenoise: 2.0 s, 2 steps\n"


def test_quiet_is_silent_but_adds_up_the_seconds(capsys):
    console = ProgressConsole(quiet=True)
    play(console)
    play(console)
    assert capsys.readouterr() == ("", "")
    assert console.seconds == {"encode_prompt": 4.0, "denoise": 16.0}


def test_terminal_shows_bars_with_the_time_left(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with ProgressConsole(quiet=False) as console:
        console.begin("clip 1 of 1")
        for event in stage("denoise", 4, 400.0)[:2]:
            console(event)
    assert "clip 1 of 1" in terminal.getvalue()
    assert "1/4" in terminal.getvalue()
    assert "5:00 left" in terminal.getvalue()


def test_bars_are_closed_when_the_work_fails(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")

    def fail():
        with ProgressConsole(quiet=False) as console:
            console(stage("denoise", 2)[1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert terminal.getvalue().endswith(SHOW_CURSOR)
