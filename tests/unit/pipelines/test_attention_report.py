"""Attention maps as people see them: where the heat lies, what the figures say, what is written."""

import json
import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from soundstage.core.errors import RequestError
from soundstage.media.mux import read_metadata
from soundstage.media.video import read_clip
from soundstage.pipelines.attention_figures import distances, on_clock, time_maps
from soundstage.pipelines.attention_overlay import film, heat_of, loudest, stills
from soundstage.pipelines.attention_recorder import AttentionMaps
from soundstage.pipelines.attention_report import numbers, save_attention_maps
from soundstage.pipelines.generation import Generation
from soundstage.pipelines.request import GenerationRequest

RATE = Fraction(8)
FRAMES = 17


def in_step() -> AttentionMaps:
    """Make maps of sound that looks at its own moment, first at the left of the picture, later the right."""
    audio = torch.stack([torch.arange(50) / 25, (torch.arange(50) + 1) / 25], dim=-1)
    video = torch.tensor([[0.0, 0.125], [0.125, 1.125], [1.125, 2.125]])
    frame = torch.tensor([0] * 3 + [1] * 25 + [2] * 22)
    look = torch.zeros(50, 3, 2, 2)
    look[torch.arange(50), frame, :, 0] = torch.where(torch.arange(50) < 25, 0.5, 0.0)[:, None]
    look[torch.arange(50), frame, :, 1] = torch.where(torch.arange(50) < 25, 0.0, 0.5)[:, None]
    looking = torch.eye(3)[frame].expand(4, 50, 3).clone()
    return AttentionMaps(
        look=look,
        looking=looking,
        listening=(looking / looking.sum(1, keepdim=True)).transpose(1, 2).contiguous(),
        look_time=video.mean(-1)[frame].expand(4, 2, 50).clone(),
        listen_time=video.mean(-1).repeat_interleave(4).expand(4, 2, 12).clone(),
        audio_times=audio,
        video_times=video,
        steps=(1, 2),
    )


def clip(height: int = 20, width: int = 30) -> Generation:
    waveform = torch.zeros(2, 24_000 * FRAMES // 8)
    for second, level in ((0.5, 1.0), (1.5, 0.5)):
        waveform[:, int(second * 24_000) : int(second * 24_000) + 900] = level
    return Generation(
        pixels=torch.rand(3, FRAMES, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1,
        waveform=waveform,
        sample_rate=24_000,
        frame_rate=RATE,
        request=GenerationRequest(prompt="a <red> ball", seed=7),
        model="tiny",
    )


def test_heat_lies_where_the_sound_of_the_moment_looks() -> None:
    heat = heat_of(in_step(), FRAMES, RATE)
    assert heat.shape == (FRAMES, 2, 2)
    torch.testing.assert_close(heat.mean((1, 2)), torch.ones(FRAMES))
    assert (heat[1:7, :, 0] > 1.9).all()
    assert (heat[9:, :, 1] > 1.9).all()


def test_even_attention_is_heat_one_everywhere() -> None:
    maps = in_step()
    even = AttentionMaps(**{**vars(maps), "look": torch.full_like(maps.look, 1 / 12)})
    torch.testing.assert_close(heat_of(even, FRAMES, RATE), torch.ones(FRAMES, 2, 2))


def test_film_shows_the_clip_beside_its_glowing_twin_over_the_waveform() -> None:
    frames = torch.cat(list(film(clip(), heat_of(in_step(), FRAMES, RATE))))
    height, width = 20 * 13, 30 * 13  # small clips are enlarged to at least 256 pixels
    assert frames.shape == (FRAMES, height + 64, 2 * width + 8, 3)
    glowing = frames[4, :height, width + 8 :].float()
    colourful = glowing.amax(-1) - glowing.amin(-1)
    assert colourful[:, : width // 4].mean() > 40, "the left glows"
    assert colourful[:, -width // 8 :].max() == 0, "the right is grey"
    played = [int((frame[height:, :, 0] > 200).sum()) for frame in frames]
    assert played[0] < played[8] < played[16]


def test_odd_sizes_become_even_ones_that_every_player_shows() -> None:
    frame = next(film(clip(257, 301), heat_of(in_step(), FRAMES, RATE)))
    assert frame.shape[1] % 2 == frame.shape[2] % 2 == 0


def test_loudest_moments_are_the_impacts() -> None:
    assert loudest(clip().waveform, FRAMES, 6) == [4, 12]
    assert loudest(torch.zeros(2, 1000), 17, 2) != []


def test_tables_are_spread_over_an_even_clock() -> None:
    maps = in_step()
    table = on_clock(maps.looking[0], maps.audio_times, maps.video_times, maps.duration, size=85)
    assert table.shape == (85, 85)
    early, late = table.flip(0)[20], table.flip(0)[70]  # rows run from late to early
    assert early[5:44].all()
    assert not early[46:].any()
    assert late[46:].all()
    assert not late[:44].any()


@pytest.mark.parametrize("reader", ["audio", "video"])
def test_time_map_has_a_panel_per_block_and_axes(reader: str) -> None:
    drawn = time_maps(in_step(), reader)
    root = ET.fromstring(drawn)
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"all blocks", "block 0", "block 3", "time of the picture, s", "time of the sound, s"} <= set(
        texts
    )
    assert len(list(root.iter("{http://www.w3.org/2000/svg}image"))) == 4 + 2  # mean and colour scale


def test_distance_figure_has_a_box_per_block_and_a_dot_per_head() -> None:
    root = ET.fromstring(distances(in_step()))
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 2 * 4 * 2
    assert len(list(root.iter("{http://www.w3.org/2000/svg}rect"))) == 1 + 2 * 4


def test_stills_show_the_loudest_moments() -> None:
    root = ET.fromstring(stills(clip(), heat_of(in_step(), FRAMES, RATE)))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[2:] == ["0.56 s", "1.56 s"]


def test_numbers_compare_with_even_attention() -> None:
    record = numbers(clip(), in_step())
    looking = record["looking"]
    assert looking["median_distance"] < 0.3 < looking["median_distance_of_even_attention"] < 0.6
    assert len(looking["median_distance_per_head"]) == 4
    assert record["listening"]["median_distance"] == 0
    assert record["steps"] == [1, 2]


def test_folder_holds_the_page_and_everything_it_shows(tmp_path: Path) -> None:
    made, maps = clip(), in_step()
    page = save_attention_maps(tmp_path / "new" / "maps", made, maps)
    folder = page.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "distance.svg", "index.html", "listening.svg", "looking.svg", "maps.safetensors", "moments.svg",
        "numbers.json", "overlay.mp4",
    ]  # fmt: skip
    text = page.read_text()
    assert "a &lt;red&gt; ball" in text
    for name in ("overlay.mp4", "moments.svg", "distance.svg", "looking.svg", "listening.svg"):
        assert f'src="{name}"' in text
    shown = read_clip(folder / "overlay.mp4")
    assert len(shown.frames) == FRAMES
    assert shown.waveform.abs().max() > 0.5
    assert read_metadata(folder / "overlay.mp4")["request"]["seed"] == 7
    assert json.loads((folder / "numbers.json").read_text())["clip"]["model"] == "tiny"
    assert torch.equal(load_file(folder / "maps.safetensors")["looking"], maps.looking)


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot make the folder"):
        save_attention_maps(tmp_path / "file" / "maps", clip(), in_step())
