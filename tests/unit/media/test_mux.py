import json
import resource
import struct
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from soundstage.core.errors import MediaError, RequestError, ResourceError
from soundstage.core.geometry import num_audio_samples
from soundstage.media.mux import read_metadata, write_clip
from soundstage.media.video import read_clip

RATES = [Fraction(24), Fraction(25), Fraction(24000, 1001), Fraction(30), Fraction(60)]


def clicks(num_samples: int, sample_rate: int, seed: int = 0) -> torch.Tensor:
    """Short noise bursts at irregular times: their correlation has one sharp peak."""
    generator = torch.Generator().manual_seed(seed)
    waveform = torch.zeros(2, num_samples)
    burst = torch.exp(-torch.arange(600) / 120.0)
    for start in range(sample_rate // 7, num_samples - 600, sample_rate // 3 + 137):
        waveform[:, start : start + 600] += 0.5 * burst * torch.randn(2, 600, generator=generator)
    return waveform.clamp(-1, 1)


def grey_frames(count: int, height: int = 16, width: int = 16) -> torch.Tensor:
    levels = torch.linspace(0, 255, count).to(torch.uint8)
    return levels[:, None, None, None].expand(count, height, width, 3).contiguous()


def lag(reference: torch.Tensor, heard: torch.Tensor) -> int:
    """Samples by which `heard` comes late, from the peak of the circular cross-correlation."""
    size = 1 << (max(reference.shape[1], heard.shape[1]) * 2 - 1).bit_length()
    spectrum = torch.fft.rfft(reference, size).conj() * torch.fft.rfft(heard, size)
    peak = int(torch.fft.irfft(spectrum, size).sum(0).argmax())
    return peak if peak < size // 2 else peak - size


def edit_lists(path: Path) -> list[tuple[float, int]]:
    """Parse (seconds shown, first media tick shown) of every `elst` atom, with no media library."""
    data = path.read_bytes()
    header = data.index(b"mvhd") + 4
    timescale = struct.unpack(">I", data[header + 12 : header + 16])[0]
    found, at = [], data.find(b"elst")
    while at >= 0:
        version_flags, count, duration, media_time = struct.unpack(">IIIi", data[at + 4 : at + 20])
        assert (version_flags, count) == (0, 1)
        found.append((duration / timescale, media_time))
        at = data.find(b"elst", at + 1)
    return found


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize(("num_frames", "sample_rate"), [(9, 24_000), (49, 48_000), (121, 24_000)])
def test_sound_is_in_step_with_the_picture_and_exactly_as_long(tmp_path, rate, num_frames, sample_rate):
    num_samples = num_audio_samples(num_frames, rate, sample_rate)
    waveform = clicks(num_samples, sample_rate)
    path = tmp_path / "clip.mp4"
    write_clip(path, grey_frames(num_frames), waveform, frame_rate=rate, sample_rate=sample_rate)

    clip = read_clip(path)
    assert clip.frame_rate == rate
    assert len(clip.frames) == num_frames
    assert clip.sample_rate == sample_rate
    assert clip.waveform.shape == (2, num_samples)
    expected_times = torch.arange(num_frames, dtype=torch.float64) / float(rate)
    torch.testing.assert_close(clip.times, expected_times, atol=1e-6, rtol=0)
    assert abs(lag(waveform, clip.waveform)) < sample_rate / 1000  # 1 ms


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_edit_list_hides_exactly_the_encoder_delay(tmp_path, rate):
    """The second opinion: decode with edit lists ignored, and read the atoms ourselves."""
    sample_rate, num_frames = 24_000, 49
    num_samples = num_audio_samples(num_frames, rate, sample_rate)
    waveform = clicks(num_samples, sample_rate)
    path = tmp_path / "clip.mp4"
    write_clip(path, grey_frames(num_frames), waveform, frame_rate=rate, sample_rate=sample_rate)

    with av.open(str(path), options={"ignore_editlist": "1"}) as container:
        raw = torch.cat([torch.from_numpy(f.to_ndarray()) for f in container.decode(audio=0)], dim=1)
    (picture_seconds, _), (sound_seconds, delay) = edit_lists(path)
    assert lag(waveform, raw) == delay == 1024
    assert picture_seconds == float(num_frames / rate)
    assert sound_seconds == num_samples / sample_rate


def test_short_sound_is_padded_and_long_sound_is_cut(tmp_path):
    rate = Fraction(24)
    for seconds in (0.2, 3.0):
        path = tmp_path / f"{seconds}.mp4"
        waveform = torch.full((2, int(seconds * 24_000)), 0.25)
        write_clip(path, grey_frames(25), waveform, frame_rate=rate, sample_rate=24_000)
        heard = read_clip(path).waveform
        assert heard.shape == (2, 25_000)
        loud = heard.abs().mean(0) > 0.1
        assert loud[2000:4000].all()
        assert loud[6000:].float().mean() == (0 if seconds < 1 else pytest.approx(1, abs=0.05))


def test_colours_survive_and_are_tagged_bt709(tmp_path):
    colours = torch.tensor([[220, 30, 40], [20, 160, 60], [40, 60, 210], [250, 250, 250]], dtype=torch.uint8)
    frames = colours.repeat_interleave(16, 0)[None, None].expand(9, 32, 64, 3).contiguous()
    path = tmp_path / "clip.mp4"
    write_clip(path, frames, None, frame_rate=Fraction(24))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        codec = container.streams.video[0].codec_context
        assert (codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range) == (1, 1, 1, 1)
        assert frame.format.name == "yuv420p"
    clip = read_clip(path)
    assert clip.waveform is None
    assert clip.sample_rate is None
    centres = clip.frames[4, 16, 8::16].int()
    assert (centres - colours.int()).abs().max() <= 4  # 8-bit limited range and one quantiser step


def test_pixels_frames_and_chunks_write_the_same_file(tmp_path):
    frames = torch.randint(
        0, 256, (17, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    pixels = (frames.float() / 127.5 - 1).permute(3, 0, 1, 2)
    waveform = clicks(17_000, 24_000)
    inputs = [frames, pixels, iter([frames[:5], frames[5:]]), (pixels[:, i : i + 1] for i in range(17))]
    written = []
    for number, video in enumerate(inputs):
        path = tmp_path / f"{number}.mp4"
        write_clip(path, video, waveform, frame_rate=Fraction(24), sample_rate=24_000, metadata={"seed": 1})
        written.append(path.read_bytes())
    assert written[0] == written[1] == written[2] == written[3]


@pytest.mark.parametrize(("height", "width"), [(15, 17), (16, 17), (33, 16)])
def test_odd_sizes_come_back_at_their_size(tmp_path, height, width):
    path = tmp_path / "odd.mp4"
    write_clip(path, grey_frames(9, height, width), None, frame_rate=Fraction(24))
    assert read_clip(path).frames.shape == (9, height, width, 3)


def test_metadata_come_back_and_hold_no_date(tmp_path):
    path = tmp_path / "clip.mp4"
    metadata = {"request": {"prompt": "a „red“ ball\nbounces 球"}, "seed": 7, "versions": {"torch": "2"}}
    write_clip(path, grey_frames(9), None, frame_rate=Fraction(24), metadata=metadata)
    assert read_metadata(path) == metadata
    with av.open(str(path)) as container:
        assert "creation_time" not in container.metadata
        assert json.loads(container.metadata["comment"]) == metadata


def test_file_without_metadata_reads_as_empty(tmp_path):
    path = tmp_path / "clip.mp4"
    write_clip(path, grey_frames(9), None, frame_rate=Fraction(24))
    assert read_metadata(path) == {}


def test_index_comes_first_for_playing_while_loading(tmp_path):
    path = tmp_path / "clip.mp4"
    write_clip(path, grey_frames(9), None, frame_rate=Fraction(24))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_interruption_leaves_neither_a_partial_file_nor_harms_the_old_one(tmp_path, failure):
    def chunks():
        yield grey_frames(9)
        raise failure

    path = tmp_path / "clip.mp4"
    path.write_bytes(b"the clip from before")
    with pytest.raises(failure):
        write_clip(path, chunks(), None, frame_rate=Fraction(24))
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == b"the clip from before"


@pytest.mark.parametrize("limit", [0, 2_000, 40_000])
def test_full_disk_is_a_resource_error_and_leaves_nothing(tmp_path, limit):
    noise = torch.randint(0, 256, (25, 64, 64, 3), dtype=torch.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(ResourceError, match="no space left"):
            write_clip(tmp_path / "clip.mp4", noise, torch.randn(2, 25_000) / 4, frame_rate=Fraction(24))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_unknown_sample_rate_names_the_nearest(tmp_path):
    with pytest.raises(RequestError, match="nearest is 22050"):
        write_clip(
            tmp_path / "a.mp4", grey_frames(9), torch.zeros(2, 9), frame_rate=Fraction(24), sample_rate=22_000
        )


def test_bad_pictures_and_sounds_are_named(tmp_path):
    path = tmp_path / "clip.mp4"
    rate = Fraction(24)
    with pytest.raises(MediaError, match="no frames"):
        write_clip(path, [], None, frame_rate=rate)
    with pytest.raises(MediaError, match=r"frame 9 is 24x16, the frames before it are 16x16"):
        write_clip(path, [grey_frames(9), grey_frames(2, 16, 24)], None, frame_rate=rate)
    with pytest.raises(MediaError, match="not finite"):
        write_clip(path, torch.full((3, 9, 16, 16), torch.nan), None, frame_rate=rate)
    with pytest.raises(MediaError, match="not finite"):
        write_clip(path, grey_frames(9), torch.full((2, 9000), torch.inf), frame_rate=rate)
    assert list(tmp_path.iterdir()) == []


def test_reading_what_is_not_there_or_not_media(tmp_path):
    with pytest.raises(MediaError, match=r"cannot read .*missing\.mp4"):
        read_metadata(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(MediaError, match="cannot read"):
        read_clip(tmp_path / "text.mp4")


def test_same_pictures_give_the_same_bytes(tmp_path):
    """At 96 x 96 pixels x264's assembler for AVX-512 did not."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 24, 96, 96, generator=generator) * 2 - 1
    paths = [tmp_path / f"{number}.mp4" for number in range(4)]
    for path in paths:
        write_clip(path, pixels.clone(), None, frame_rate=Fraction(24))
    assert len({path.read_bytes() for path in paths}) == 1
