"""The commands of the guides on prompts and attention maps do what the pages say, on the embedded model."""

import json
import re
import shlex
from pathlib import Path

import pytest

from soundstage.cli.main import run
from soundstage.media.mux import read_metadata
from soundstage.media.video import read_clip

GUIDES = Path(__file__).parents[2] / "docs" / "guide"
FAST = ["--quiet", "--steps", "2", "--num-frames", "17"]


def commands(page: str) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", (GUIDES / page).read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("soundstage")]


OWN = [words for words in commands("prompts.md") if "--model" not in words]


@pytest.mark.parametrize("words", OWN, ids=lambda words: " ".join(words[4:])[:40])
def test_command_of_the_prompts_guide_makes_a_clip(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*words, "--quiet", "--steps", "2"]) == 0
    assert len(read_clip(tmp_path / "clip.mp4").frames) == 49
    request = read_metadata(tmp_path / "clip.mp4")["request"]
    for flag in ("prompt_at", "negative_prompt", "audio_negative_prompt", "nag_scale"):
        given = f"--{flag.replace('_', '-')}"
        if given in words:
            value = words[words.index(given) + 1]
            assert request[flag] in ([value], value, float(value) if value.isdigit() else value)


def test_all_commands_of_the_prompts_guide_were_run_but_the_one_for_official_weights() -> None:
    assert len(commands("prompts.md")) - len(OWN) == 1
    assert len(OWN) == 4


def test_enhancement_is_refused_by_the_embedded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "clip.mp4")
    assert run(["generate", "a ball", "-o", path, "--enhance", *FAST]) == 2
    assert "enhance needs a text encoder that can write" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_several_prompts_in_time_are_given_by_repeating_the_flag(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    spans = ["0-0.3s:a red ball falls", "0.3-:a blue ball, it bounces: twice"]
    flags = [word for span in spans for word in ("--prompt-at", span)]
    assert run(["generate", "a ball", "-o", str(path), *flags, *FAST]) == 0
    assert read_metadata(path)["request"]["prompt_at"] == spans


def test_prompt_behind_the_end_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "a ball", "-o", str(tmp_path / "clip.mp4"), "--prompt-at", "1-2s:x", *FAST]
    assert run(words) == 2
    assert "prompt_at begins at 1 s, the clip ends at 0.708" in capsys.readouterr().err


def test_command_of_the_attention_guide_fills_the_folder_and_leaves_the_clip_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (words,) = commands("attention-maps.md")
    assert run([*words, *FAST]) == 0
    shown = capsys.readouterr()
    assert "maps/index.html" in shown.err
    assert shown.out == "clip.mp4\n"
    named = set(re.findall(r"^\| `([^|]+)` \|", (GUIDES / "attention-maps.md").read_text(), re.MULTILINE))
    assert named | {"index.html"} == {path.name for path in (tmp_path / "maps").iterdir()}
    numbers = json.loads((tmp_path / "maps" / "numbers.json").read_text())
    assert numbers["steps"] == [0, 1]
    assert 0 < numbers["looking"]["median_distance"] < 0.75
    plain = words[: words.index("--attention-maps")]
    plain[plain.index("clip.mp4")] = "plain.mp4"
    assert run([*plain, *FAST]) == 0
    assert (tmp_path / "plain.mp4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()


def test_maps_of_several_clips_have_folders_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, maps = str(tmp_path / "clip.mp4"), str(tmp_path / "maps")
    words = ["generate", "a ball", "-o", out, "--num-videos", "2", "--attention-maps", maps, "--json"]
    assert run([*words, "--attention-steps", "1", *FAST[1:]]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(record["attention_maps"]).parent.name for record in records] == ["clip-1", "clip-2"]
    assert all(Path(record["attention_maps"]).is_file() for record in records)


def test_unknown_attention_step_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, maps = str(tmp_path / "clip.mp4"), str(tmp_path / "maps")
    words = ["generate", "a ball", "-o", out, "--attention-maps", maps, "--attention-steps", "9", *FAST]
    assert run(words) == 2
    assert "attention step 9 does not exist; this run's are 0 to 1" in capsys.readouterr().err
    assert not (tmp_path / "clip.mp4").exists()
