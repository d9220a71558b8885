"""Pictures to show and clips to follow, in any mode that generates a picture."""

import itertools
from fractions import Fraction
from pathlib import Path

import torch
from jaxtyping import Float, Real, UInt8
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.geometry import VideoGeometry
from soundstage.media.image import Picture, read_image, recompress
from soundstage.media.placement import ExactPicture, Size, cover_plainly, place
from soundstage.media.probe import probe
from soundstage.media.video import ClipPixels, ExactFrames, Frames, Reading, read_clip
from soundstage.pipelines.conditions import StreamState, append_keyframe, append_reference, replace_frames
from soundstage.pipelines.given import images_of, references_of
from soundstage.pipelines.inputs import ImageInput, ReferenceInput
from soundstage.pipelines.modes.mode import Model, Setting, Timeline
from soundstage.pipelines.request import GenerationRequest

OtherPixels = Float[Tensor, "3 f h2 w2"]

STILLS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".heic")


def show_images(
    state: StreamState, setting: Setting, request: GenerationRequest, model: Model, timeline: Timeline
) -> StreamState:
    """Give the request's pictures: one at the very beginning in place of latent frame 0, others as keyframes.

    Raises:
        MediaError: A file cannot be read.
        RequestError: A moment lies outside the clip.
    """
    for image in images_of(request):
        frame = image.when.frame(timeline.num_frames, setting.canvas.frame_rate) - timeline.first
        if timeline.in_windows and not 0 <= frame < setting.canvas.padded_frames:
            continue
        frames = _read(image, setting, request, model)
        latents = setting.encoders.video(extend_to(frames, setting.padded_size))
        if frame == 0:
            state = replace_frames(state, setting.grid, latents, strength=image.strength)
        else:
            state = append_keyframe(
                state, setting.grid, latents, frame=frame, num_frames=len(frames), strength=image.strength
            )
    return state


def check_moments(request: GenerationRequest, timeline: Timeline, frame_rate: Fraction) -> None:
    """Refuse pictures at moments that are not generated; no file is opened.

    Raises:
        RequestError: A moment lies outside the result, or in a part of it that is given.
    """
    for image in images_of(request):
        frame, shown = image.when.frame(timeline.num_frames, frame_rate), timeline.shown
        if frame not in shown:
            first, last = shown[0], shown[-1]
            near = first if frame < first else last
            raise RequestError(
                f"image {image.path.name} at frame {frame} lies in what is given, which stays as it is; "
                f"frames {first} to {last} are generated, {float(first / frame_rate):g}s to "
                f"{float(last / frame_rate):g}s; the nearest is {near}"
            )


def check_pictures(request: GenerationRequest) -> None:
    """Look into the pictures and clips to show or to follow, so that one which is none is told early.

    Raises:
        MediaError: A file cannot be read.
    """
    for image in images_of(request):
        if is_still(image.path):
            read_image(image.path)
    for reference in references_of(request):
        probe(reference.path)


def crowded(
    request: GenerationRequest, num_frames: int, frame_rate: Fraction, geometry: VideoGeometry
) -> list[str]:
    """Say which pictures are so close to each other that they compete; all must lie in the clip."""
    spacing = geometry.temporal_factor
    at = sorted(image.when.frame(num_frames, frame_rate) for image in images_of(request))
    return [
        f"pictures at frames {a} and {b} are less than {spacing} frames apart, a latent frame, and compete"
        for a, b in itertools.pairwise(at)
        if b - a < spacing
    ]


def follow_references(state: StreamState, setting: Setting, request: GenerationRequest) -> StreamState:
    """Give the request's reference clips: appended tokens that the result attends to.

    A reference that is shorter than the clip holds its last frame.
    """
    for reference in references_of(request):
        state = append_reference(
            state,
            setting.grid,
            setting.encoders.video(_read_reference(reference, setting, request)),
            strength=reference.strength,
            downscale_factor=request.reference_downscale_factor or 1,
            temporal_factor=request.reference_temporal_factor or 1,
            attention_strength=request.reference_attention,
        )
    return state


def extend_to(frames: Frames | ExactFrames, size: Size) -> Real[Tensor, "f h2 w2 3"]:
    """Repeat the edges of frames up to a size, half of it on each side, as `Canvas.cut` takes away."""
    height, width = frames.shape[1:3]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    rows = (torch.arange(size[0]) - top).clamp(0, height - 1)
    columns = (torch.arange(size[1]) - left).clamp(0, width - 1)
    return frames[:, rows][:, :, columns]


def hold_last(frames: Frames, num_frames: int) -> UInt8[Tensor, "held h w 3"]:
    """Cut or repeat the last frame, so that there are `num_frames`."""
    return frames[torch.arange(num_frames).clamp(max=len(frames) - 1)]


def scaled(pixels: ClipPixels, size: tuple[int, int]) -> OtherPixels:
    """Scale generated pixels to exactly a size."""
    if tuple(pixels.shape[2:]) == size:
        return pixels
    frames = torch.nn.functional.interpolate(pixels.transpose(0, 1), size, mode="bicubic", antialias=True)
    return frames.transpose(0, 1).clamp(-1, 1)


def is_still(path: Path) -> bool:
    """Tell a picture from a video."""
    if path.suffix.lower() in STILLS:
        return True
    video = probe(path).video
    return video is None or video.num_frames == 1


def _read(
    image: ImageInput, setting: Setting, request: GenerationRequest, model: Model
) -> Frames | ExactFrames:
    """Read a picture, or a clip whose frames fill its latent frames, at the size that will be shown."""
    if is_still(image.path):
        return _read_still(image.path, setting.size, request, model)[None]
    rate = Fraction(setting.grid.frame_rate)
    reading = Reading(size=setting.size, fit=request.image_fit or "cover", frame_rate=rate)
    frames = read_clip(image.path, reading, sound=False).frames
    return frames[: setting.grid.geometry.crop_num_frames(len(frames))]


def _read_still(path: Path, size: Size, request: GenerationRequest, model: Model) -> Picture | ExactPicture:
    """Read a picture, compress it as it is, and only then scale it, as the official code does."""
    crf = model.image_crf if request.image_crf is None else request.image_crf
    picture = recompress(read_image(path), crf)
    fit, scaling = request.image_fit or "cover", request.image_scaling or model.image_scaling
    if (fit, scaling) == ("cover", "plain"):
        return cover_plainly(picture, size)
    return place((picture.shape[0], picture.shape[1]), size, fit).apply(picture[None])[0]


def _read_reference(reference: ReferenceInput, setting: Setting, request: GenerationRequest) -> Frames:
    factor, skip = request.reference_downscale_factor or 1, request.reference_temporal_factor or 1
    geometry, step = setting.grid.geometry, setting.grid.geometry.token_size
    height, width = (-(-extent // factor) for extent in setting.size)
    padded = tuple(-(-extent // (factor * step)) * step for extent in setting.padded_size)
    total = geometry.num_pixel_frames(setting.grid.num_latent_frames)
    num_frames = (total - 1) // skip + 1
    rate = Fraction(setting.grid.frame_rate) / skip
    reading = Reading(size=(height, width), frame_rate=rate, max_frames=num_frames)
    frames = read_clip(reference.path, reading, sound=False).frames
    return extend_to(hold_last(frames, geometry.fit_num_frames(num_frames)), (padded[0], padded[1]))
