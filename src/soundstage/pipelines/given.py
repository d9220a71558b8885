"""What a request gives beside its prompt: which mode that makes it, and whether it goes together.

Free of torch, and no file is opened.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from soundstage.core.errors import RequestError
from soundstage.pipelines.inputs import (
    Direction,
    ImageInput,
    ReferenceInput,
    parse_extension,
    parse_size,
    parse_span,
)
from soundstage.pipelines.request import FILES, GenerationRequest, ModeName, check_number, several

EDITS: dict[str, ModeName] = {
    "retake": "retake",
    "extend": "extend",
    "join": "join",
    "mask": "inpaint",
    "outpaint": "outpaint",
}
_SIZES = ("width", "height", "num_frames", "duration", "frame_rate")  # which a given video decides
_NEEDS = dict.fromkeys((*EDITS, "condition_size"), "video") | {
    "audio_start": "audio",
    "complete_audio": "audio",
    "condition_loudness": "audio",
    "condition_noise": "audio",
    "keep": "retake",
    "image_fit": "image",
    "image_crf": "image",
    "image_scaling": "image",
    "reference_downscale_factor": "reference_video",
    "reference_temporal_factor": "reference_video",
    "reference_attention": "reference_video",
}
_EXCLUDES = (
    ("no_video", ("no_audio", "video", "image", "reference_video", "audio")),
    ("no_audio", ("audio", "video", "reference_audio")),
)


def without_media(request: GenerationRequest, **changes: Any) -> GenerationRequest:
    """Make the request of a plain clip: what was given has been read, and only sizes remain of it."""
    names = [field.name for field in fields(GenerationRequest)]
    given = names[names.index("mode") : names.index("no_video") + 1]
    defaults = {f.name: f.default for f in fields(GenerationRequest) if f.name in given}
    if "num_frames" in changes:
        defaults["duration"] = None
    return replace(request, **{**defaults, **changes})


def mode_of(request: GenerationRequest) -> ModeName:
    """Tell which mode a request amounts to, by what it gives."""
    if request.video:
        return next((mode for name, mode in EDITS.items() if getattr(request, name)), "video_to_audio")
    if request.audio:
        return "audio_to_video"
    if request.no_video:
        return "text_to_audio"
    if request.no_audio:
        return "text_to_video"
    if request.reference_video or request.reference_audio:
        return "reference_to_audio_video"
    return "image_to_audio_video" if request.image else "text_to_audio_video"


def images_of(request: GenerationRequest) -> list[ImageInput]:
    """Read the pictures to show."""
    return [ImageInput.parse(text) for text in several(request.image)]


def references_of(request: GenerationRequest) -> list[ReferenceInput]:
    """Read the clips to follow."""
    return [ReferenceInput.parse(text) for text in several(request.reference_video)]


def extension_of(request: GenerationRequest) -> dict[Direction, float]:
    """Read by how many seconds to extend, per direction."""
    return parse_extension(several(request.extend))


def check_files(request: GenerationRequest) -> None:
    """Look whether the files that a request names are there; they are read later.

    Raises:
        RequestError: One is not.
    """
    for name, path in _files_of(request):
        if not path.is_file():
            raise RequestError(f"{name} {path} does not exist or is no file")


def check_output(request: GenerationRequest, path: Path) -> None:
    """Look whether a request makes what a file of this name holds, and would not write over what it reads.

    Raises:
        RequestError: It does not, or would.
    """
    is_sound = path.suffix.lower() == ".wav"
    if is_sound and request.no_audio:
        raise RequestError(f"output {path} is sound alone, and no_audio leaves none; write it to an .mp4")
    if not is_sound and request.no_video:
        raise RequestError(f"output {path} would have no picture (no_video); write sound to a .wav")
    for name, given in _files_of(request):
        if path.exists() and given.exists() and path.samefile(given):
            raise RequestError(f"output {path} is the {name} that is read; choose another name")


def _files_of(request: GenerationRequest) -> list[tuple[str, Path]]:
    """List the files that a request names, by field."""
    named = [(name, Path(getattr(request, name))) for name in FILES if getattr(request, name) is not None]
    named += [("image", image.path) for image in images_of(request)]
    return named + [("reference_video", reference.path) for reference in references_of(request)]


def check_given(request: GenerationRequest) -> None:
    """Check what a request gives beside its prompt; no file is opened.

    Raises:
        RequestError: Things are malformed, or do not go together.
    """
    _check_combination(request)
    images_of(request)
    references_of(request)
    if request.retake:
        parse_span(request.retake)
    extension_of(request)
    if request.condition_size:
        parse_size(request.condition_size)
    if request.image_crf is not None and not 0 <= request.image_crf <= 51:
        raise RequestError(f"image_crf={request.image_crf} is outside [0, 51]; 0 is off, 33 is usual")
    check_number("audio_start", request.audio_start, 0.0)
    attention = request.reference_attention
    if attention is not None and not 0 <= attention <= 1:
        raise RequestError(f"reference_attention={attention:g} is outside [0, 1]; 1 is full attention")
    for name in ("reference_downscale_factor", "reference_temporal_factor"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise RequestError(f"{name}={value} is not positive; the least is 1")


def _check_combination(request: GenerationRequest) -> None:
    def given(name: str) -> bool:
        value = getattr(request, name)
        return value is not None and value is not False and value != ()  # 0 is a value

    for name, needed in _NEEDS.items():
        if given(name) and not given(needed):
            raise RequestError(f"{name} is given without {needed}, which it is about")
    for name, others in _EXCLUDES:
        for other in filter(given, others if given(name) else ()):
            raise RequestError(f"{name} and {other} do not go together; give one")
    mode = mode_of(request)
    if request.mode is not None and request.mode != mode:
        raise RequestError(f"mode={request.mode} was asserted, but what is given makes this {mode}")
    if request.video:
        _check_video(request, mode, given)


def _check_video(request: GenerationRequest, mode: ModeName, given: Callable[[str], bool]) -> None:
    edits = [name for name in EDITS if given(name)]
    if len(edits) > 1:
        raise RequestError(f"{edits[0]} and {edits[1]} are two edits of one video; do one after the other")
    allowed = ("num_frames", "duration") if mode == "join" else ()
    for name in _SIZES:
        if given(name) and name not in allowed:
            raise RequestError(f"{name}={getattr(request, name)} is given, but the video decides it ({mode})")
    if edits and request.complete_audio:
        raise RequestError(
            f"complete_audio and {edits[0]} do not go together; silence follows the sound of an edit"
        )
    if request.keep and request.audio:
        raise RequestError(
            f"keep={request.keep} and audio do not go together; audio takes the place of the span's "
            "sound, and the picture is made for it"
        )
    if mode == "video_to_audio":
        if request.audio and not request.complete_audio:
            raise RequestError(
                "video and audio are both given, so that there is nothing to generate; "
                "complete_audio generates what the sound lacks"
            )
        for name in ("image", "reference_video"):
            if given(name):
                raise RequestError(f"{name} is given, but all of the picture is the video's ({mode})")
