"""What is given decides the mode; what does not go together is refused before a file is opened."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from soundstage.core.errors import RequestError
from soundstage.pipelines.given import check_files, mode_of, without_media
from soundstage.pipelines.modes.registry import MODES
from soundstage.pipelines.request import GenerationRequest, ModeName

PROMPT = "a red ball"


def request(**fields):
    """Make a request of plain data, in which paths are text."""
    return GenerationRequest.of({"prompt": PROMPT, **fields})


GIVEN = {
    "text_to_audio_video": {},
    "image_to_audio_video": {"image": "a.png"},
    "reference_to_audio_video": {"reference_audio": "a.wav", "image": "a.png"},
    "audio_to_video": {"audio": "a.wav", "image": "a.png", "duration": 2.0},
    "video_to_audio": {"video": "a.mp4"},
    "text_to_audio": {"no_video": True, "duration": 2.0},
    "text_to_video": {"no_audio": "skip", "image": "a.png"},
    "retake": {"video": "a.mp4", "retake": "1-2", "keep": "audio"},
    "extend": {"video": "a.mp4", "extend": "forward=1s", "image": "a.png@last"},
    "join": {"video": "a.mp4", "join": "b.mp4", "duration": 1.0},
    "inpaint": {"video": "a.mp4", "mask": "m.png"},
    "outpaint": {"video": "a.mp4", "outpaint": "96x64"},
}


def test_every_mode_has_a_name_an_entry_and_a_test():
    assert set(MODES) == set(get_args(ModeName)) == set(GIVEN)


@pytest.mark.parametrize("mode", GIVEN)
def test_what_is_given_decides_the_mode(mode):
    made = request(**GIVEN[mode])
    assert mode_of(made) == mode
    assert request(mode=mode, **GIVEN[mode]).mode == mode
    other = "retake" if mode != "retake" else "extend"
    with pytest.raises(RequestError, match=f"makes this {mode}"):
        request(mode=other, **GIVEN[mode])


@pytest.mark.parametrize("mode", GIVEN)
def test_record_makes_the_request_again(mode):
    made = request(**GIVEN[mode])
    assert GenerationRequest.of(made.to_dict()) == made


def test_record_of_a_plain_clip_names_no_media():
    names = [field.name for field in dataclasses.fields(GenerationRequest)]
    media = names[names.index("mode") : names.index("no_video") + 1]
    assert not {*media, "loras", "prompt_at"} & set(request().to_dict())


def test_paths_may_be_written_in_several_ways():
    one = GenerationRequest(prompt=PROMPT, image="a.png", audio=Path("a.wav"))
    assert one == request(image=("a.png",), audio="a.wav")
    assert one == request(image=Path("a.png"), audio="a.wav")
    assert one == request(image=["a.png"], audio="a.wav")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retake": "1-2"}, "retake is given without video"),
        ({"keep": "audio", "video": "a.mp4"}, "keep is given without retake"),
        ({"complete_audio": True}, "complete_audio is given without audio"),
        ({"condition_noise": -40.0}, "condition_noise is given without audio"),
        ({"reference_downscale_factor": 2}, "without reference_video"),
        ({"video": "a.mp4", "retake": "1-2", "extend": "forward=1s"}, "two edits of one video"),
        ({"video": "a.mp4", "width": 64}, "width=64 is given, but the video decides it"),
        ({"video": "a.mp4", "extend": "forward=1s", "duration": 1.0}, "duration=1.0 is given"),
        ({"video": "a.mp4", "audio": "a.wav"}, "nothing to generate"),
        ({"video": "a.mp4", "image": "a.png"}, "all of the picture is the video's"),
        (
            {"video": "a.mp4", "retake": "1-2", "audio": "a.wav", "complete_audio": True},
            "complete_audio and retake do not go together",
        ),
        (
            {"video": "a.mp4", "retake": "1-2", "audio": "a.wav", "keep": "audio"},
            "keep=audio and audio do not go together",
        ),
        ({"reference_video": "a.mp4", "reference_attention": 1.5}, r"reference_attention=1\.5 is outside"),
        ({"no_video": True, "image": "a.png"}, "no_video and image"),
        ({"no_video": True, "no_audio": "skip"}, "no_video and no_audio"),
        ({"no_audio": "discard", "audio": "a.wav"}, "no_audio and audio"),
        ({"image_fit": "pad"}, "image_fit is given without image"),
        ({"image_crf": 0}, "image_crf is given without image"),
        ({"image_scaling": "plain"}, "image_scaling is given without image"),
        ({"image": "a.png", "image_crf": 60}, r"outside \[0, 51\]"),
        ({"image": "a.png@soon"}, "none of a frame"),
        ({"video": "a.mp4", "condition_size": "big"}, "WIDTHxHEIGHT"),
        ({"reference_video": "a.mp4", "reference_temporal_factor": 0}, "not positive"),
        ({"audio": "a.wav", "audio_start": -1.0}, "audio_start=-1 is below 0"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(RequestError, match=message):
        request(**fields)


def test_plain_request_keeps_how_to_sample_and_drops_what_was_given():
    joined = request(video="a.mp4", join="b.mp4", duration=1.0, seed=4, stg_scale=1.0)
    plain = without_media(joined, width=64, height=48, num_frames=9)
    assert plain == request(seed=4, stg_scale=1.0, width=64, height=48, num_frames=9)


def test_files_that_are_not_there_are_named(tmp_path):
    (tmp_path / "there.png").touch()
    check_files(request(image=tmp_path / "there.png"))
    for fields in ({"image": "gone.png@last"}, {"audio": "gone.wav"}, {"reference_video": "gone.mp4:0.5"}):
        with pytest.raises(RequestError, match=r"gone\.\w+ does not exist"):
            check_files(request(**fields))
