"""What a user asks for: one frozen record, checked before anything is loaded, free of torch.

`None` means the checkpoint's own value. What a user may choose is a `Literal` here and a dict of the same
keys where it is implemented; a test keeps them equal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from soundstage.checkpoints.generation import ImageScaling
from soundstage.core.config import from_dict, nearest, to_dict
from soundstage.core.errors import ConfigError, RequestError
from soundstage.core.geometry import num_frames_for, parse_frame_rate
from soundstage.pipelines.lora_option import LoraOption
from soundstage.pipelines.prompt_spans import PromptSpan

SamplerName = Literal["euler", "euler_ancestral", "gradient_estimation", "dpmpp_2m", "uni_pc", "res_2s"]
ScheduleName = Literal["shifted", "linear_quadratic", "beta", "distilled", "refine"]
GuidanceName = Literal["cfg", "cfg_star", "apg"]
NoiseOrder = Literal["streams", "reference"]
PlanName = Literal["one_stage", "two_stage", "hq", "distilled"]
AudioFrom = Literal["stage1", "stage2"]
Between = Literal["reuse", "skip"]
Snap = Literal["pad", "error"]
ImageFit = Literal["cover", "pad"]
KeptStream = Literal["audio", "video"]
NoAudio = Literal["skip", "discard"]
Paths = str | Path | tuple[str | Path, ...]
ModeName = Literal[
    "text_to_audio_video",
    "image_to_audio_video",
    "reference_to_audio_video",
    "audio_to_video",
    "video_to_audio",
    "text_to_audio",
    "text_to_video",
    "retake",
    "extend",
    "join",
    "inpaint",
    "outpaint",
]

LoraMode = Literal["fused", "live"]

MAX_SEED = 2**63 - 1

REPEATABLE = ("image", "extend", "reference_video")  # one, or several
FILES = ("audio", "video", "join", "mask", "reference_audio")

FLAGS_OF = {  # names that only the command line has, and what they are in a request
    "steps": "'num_inference_steps'",
    "size": "'width' and 'height'",
    "lora": "'loras', a list",
}


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One clip to generate.

    Any size and length is accepted: for what does not fit the model's grid, more is generated, then cut.

    Raises:
        RequestError: A value is not allowed; says which would be.
    """

    prompt: str  # what is to be seen and heard
    negative_prompt: str | None = None  # what guidance steers away from
    seed: int = 0  # same seed, same machine, same clip

    width: int | None = None  # pixels
    height: int | None = None  # pixels
    num_frames: int | None = None  # how long, in frames
    duration: float | None = None  # how long, in seconds
    frame_rate: Fraction | int | float | str | None = None  # frames per second: 24, 23.976, "24000/1001"
    snap: Snap = "pad"  # what does not fit the model's grid: generate more and cut, or refuse

    num_inference_steps: int | None = None  # of the sampler
    sampler: SamplerName | None = None  # how to go from noise to clip
    schedule: ScheduleName | None = None  # how the noise levels of the steps are spaced
    shift: Literal["official", "tokens"] | float | None = None  # of the shifted schedule; more = noisier
    sigmas: tuple[float, ...] | None = None  # explicit noise levels, in place of a schedule
    noise_order: NoiseOrder = "streams"  # how a seed becomes noise; "reference" is the official code's way

    guidance: GuidanceName = "cfg"  # how the negative prompt is used
    apg_eta: float = 0.0  # of guidance "apg": how much stays of what is parallel to the prediction; 1 = all
    apg_norm_threshold: float | None = None  # of guidance "apg": longest difference; absent, any length
    guidance_scale: float | None = None  # picture: towards the prompt; 1 = off
    modality_scale: float | None = None  # picture: towards what the sound demands, synchrony; 1 = off
    stg_scale: float | None = None  # picture: towards structure; 0 = off
    stg_blocks: tuple[int, ...] | None = None  # picture: transformer blocks that stg_scale perturbs
    guidance_rescale: float | None = None  # picture: against what large scales inflate; 0 = off, 1 = most
    audio_guidance_scale: float | None = None  # sound: towards the prompt; 1 = off
    audio_modality_scale: float | None = None  # sound: towards what the picture demands, synchrony; 1 = off
    audio_stg_scale: float | None = None  # sound: towards structure; 0 = off
    audio_stg_blocks: tuple[int, ...] | None = None  # sound: transformer blocks that it perturbs
    audio_guidance_rescale: float | None = None  # sound: against what large scales inflate

    # When the terms of guidance apply. What is absent is that of guidance_*; of audio_*, that of the picture.
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # noise levels at which guidance applies
    stg_interval: tuple[float, float] | None = None  # picture: noise levels at which stg_scale applies
    modality_interval: tuple[float, float] | None = None  # picture: those at which modality_scale applies
    audio_guidance_interval: tuple[float, float] | None = None  # sound: those at which guidance applies
    audio_stg_interval: tuple[float, float] | None = None  # sound: those at which stg_scale applies
    audio_modality_interval: tuple[float, float] | None = None  # sound: those at which modality_scale applies
    guidance_every: int = 1  # compare with the negative prompt at every so many steps; fewer passes, faster
    stg_every: int | None = None  # picture: run the pass of stg_scale at every so many steps
    modality_every: int | None = None  # picture: run the pass of modality_scale at every so many steps
    audio_guidance_every: int | None = None  # sound: compare with the negative prompt every so many steps
    audio_stg_every: int | None = None  # sound: run the pass of stg_scale at every so many steps
    audio_modality_every: int | None = None  # sound: run the pass of modality_scale every so many steps
    guidance_between: Between = "reuse"  # at the steps between: add the last difference again, or nothing

    # Several stages; `plan` reads it.
    plan: PlanName | None = None  # stages; two if an upsampler is given, otherwise one
    upsampler: str | None = None  # between stages: file or release; "pixels" and "bicubic" need none
    refine_strength: float | None = None  # noise level at which the second stage begins; more = more is new
    audio_from: AudioFrom = "stage1"  # stage2 refines the sound, too; otherwise it is kept as it is

    # Longer than the model was trained for; `windows` reads it.
    window: int | None = None  # frames generated at once; the rest follows in further windows
    overlap: int | None = None  # frames that a window takes over from the one before
    drift_control: float = 0.0  # pulls colours of later windows towards the first; 0 = off, 1 = most

    # Approximation, for speed
    step_cache: float = 0.0  # reuse most of a step's work where less than this changed; 0 = off, 0.1 = usual

    # LoRAs
    loras: tuple[str, ...] = ()  # LoRAs to use, each PATH[:STRENGTH][@STAGE]: style.safetensors:0.8@1
    lora_mode: LoraMode = "fused"  # add LoRAs to the weights: fast; or compute them beside: less memory

    # Prompts beyond the one: in time, per stream, and without a pass of their own.
    prompt_at: tuple[str, ...] = ()  # for a part of the clip, such as "0-2s:a ball falls"; seconds
    prompt_transition: float = 0.25  # seconds over which one prompt of prompt_at passes into the next
    audio_negative_prompt: str | None = None  # sound: its own negative prompt, in place of the common one
    nag_scale: float = 1.0  # picture: away from the negative prompt, inside attention, no pass; 1 = off
    audio_nag_scale: float | None = None  # sound: the same; that of the picture when absent
    nag_tau: float = 2.5  # longest steered result, as a multiple of the unsteered
    nag_alpha: float = 0.25  # share of the steered result; 0 = nothing, 1 = all
    enhance: bool = False  # let the text encoder write the prompt out, where it can; both are shown

    # What is given beside the prompt, which decides the mode; `modes/` reads it.
    mode: ModeName | None = None  # asserts what the rest amounts to; changes nothing
    image: Paths = ()  # PATH[@WHEN[:STRENGTH]] to show; WHEN: frame (0, -1), 1.5s or last
    image_fit: ImageFit | None = None  # other proportions: "cover" and cut what is over, or "pad" with black
    image_crf: int | None = None  # H.264 quality that pictures are brought to first, as in training; 0 = off
    image_scaling: ImageScaling | None = None  # "plain", as official code does; "smooth" averages fine detail
    audio: Path | None = None  # sound file to make a picture for; it is what will be heard
    audio_start: float | None = None  # seconds into that file at which the clip begins
    complete_audio: bool = False  # where that sound ends before the clip: generate more, not silence
    condition_loudness: float | None = None  # LUFS of the copy of a given sound that the model hears
    condition_noise: float | None = None  # dBFS of noise in that copy; very clean speech moves little
    video: Path | None = None  # video file: alone, to make sound for; or to retake, extend, join, paint
    condition_size: str | None = None  # WIDTHxHEIGHT at which the model sees that video
    retake: str | None = None  # START-END in seconds of the video to make again
    keep: KeptStream | None = None  # stream that a retake leaves alone
    extend: str | tuple[str, ...] = ()  # forward=SECONDS, backward=SECONDS: make the video longer
    join: Path | None = None  # video file to lead to, over a bridge as long as duration says; 1 s if nothing
    mask: Path | None = None  # picture or video, white where the video is painted anew
    outpaint: str | None = None  # canvas around the video: WIDTHxHEIGHT or left=PIXELS,top=PIXELS ...
    reference_video: Paths = ()  # PATH[:STRENGTH] to follow without showing it
    reference_downscale_factor: int | None = None  # pixels of the clip per pixel of the reference
    reference_temporal_factor: int | None = None  # frames of the clip per frame of the reference
    reference_attention: float | None = None  # how strongly clip and reference see each other; 1 = fully
    reference_audio: Path | None = None  # sound file whose voice to follow, heard as if before the clip
    no_audio: NoAudio | None = None  # silent clip: skip computes no sound, discard drops it in the end
    no_video: bool = False  # sound alone; computes no picture

    def __post_init__(self) -> None:
        """Check every value on its own; what depends on the model is checked when it is known."""
        if not self.prompt.strip():
            raise RequestError("the prompt is empty; describe what is to be seen and heard")
        if not 0 <= self.seed <= MAX_SEED:
            raise RequestError(f"seed={self.seed} is outside [0, {MAX_SEED}]")
        for name in ("width", "height", "num_frames", "num_inference_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name}={value} is not positive; the least is 1")
        if self.frame_rate is not None:
            object.__setattr__(self, "frame_rate", parse_frame_rate(self.frame_rate))
        for lora in self.loras:
            LoraOption.parse(lora)
        self._check_length()
        self._check_schedule()
        self._check_guidance()
        self._check_prompts()
        self._settle_spelling()
        from soundstage.pipelines.given import check_given  # it reads requests, so it cannot come first

        check_given(self)
        self._check_stages()

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "GenerationRequest":
        """Read a request from plain data, such as the one a file carries; an unknown name is an error.

        Raises:
            RequestError: A name or a value is not allowed.
        """
        names = [field.name for field in fields(cls)]
        unknown = [name for name in data if name not in names]
        if unknown:
            hint = FLAGS_OF.get(unknown[0])
            near = f"; it is {hint} here" if hint else nearest(unknown[0], names)
            raise RequestError(f"a request has no {unknown[0]!r}{near}")
        try:
            return from_dict(cls, data)
        except ConfigError as error:
            raise RequestError(str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """Write it as plain data that `of` reads back; what was left to the model is left out."""
        plain = to_dict(self)
        empty = [name for name in (*REPEATABLE, "prompt_at", "loras") if not plain[name]]
        return {k: v for k, v in plain.items() if v is not None and v is not False and k not in empty}

    def frames_at(self, frame_rate: Fraction) -> int | None:
        """Return the number of frames that was asked for, if any."""
        if self.duration is not None:
            return num_frames_for(self.duration, frame_rate)
        return self.num_frames

    @property
    def spans(self) -> tuple[PromptSpan, ...]:
        """The prompts of `prompt_at`, read."""
        return tuple(PromptSpan.of(text) for text in self.prompt_at)

    @property
    def nag_scales(self) -> tuple[float, float]:
        """The scales of normalised attention guidance of picture and sound."""
        return self.nag_scale, self.nag_scale if self.audio_nag_scale is None else self.audio_nag_scale

    def _check_prompts(self) -> None:
        assert all(span.prompt for span in self.spans)  # reading them checks them
        check_number("prompt_transition", self.prompt_transition, 0.0)
        check_number("nag_scale", self.nag_scale, 1.0, off=1.0)
        check_number("audio_nag_scale", self.audio_nag_scale, 1.0, off=1.0)
        if not self.nag_tau >= 1:
            raise RequestError(f"nag_tau={self.nag_tau:g} is below 1, the length of the unsteered result")
        if not 0 <= self.nag_alpha <= 1:
            raise RequestError(f"nag_alpha={self.nag_alpha:g} is outside [0, 1]; 0 changes nothing")

    def _settle_spelling(self) -> None:
        """Bring what can be written in several ways into one."""
        for name in REPEATABLE:
            value: Paths = getattr(self, name)
            object.__setattr__(self, name, several(value))

    def _check_length(self) -> None:
        if self.duration is None:
            return
        if self.num_frames is not None:
            raise RequestError(
                f"num_frames={self.num_frames} and duration={self.duration} both say how long; give one"
            )
        if not math.isfinite(self.duration) or self.duration <= 0:
            raise RequestError(f"duration={self.duration} is not a positive number of seconds")

    def _check_guidance(self) -> None:
        limits = {"guidance_scale": 1.0, "modality_scale": 0.0, "stg_scale": 0.0, "guidance_rescale": 0.0}
        for prefix in ("", "audio_"):
            for name, least in limits.items():
                off = 1.0 if name == "modality_scale" else least
                check_number(prefix + name, getattr(self, prefix + name), least, off=off)
            rescale = getattr(self, prefix + "guidance_rescale")
            if rescale is not None and rescale > 1:
                raise RequestError(f"{prefix}guidance_rescale={rescale} is above 1; 1 rescales fully")
            for block in getattr(self, prefix + "stg_blocks") or ():
                if block < 0:
                    raise RequestError(f"{prefix}stg_blocks: block {block} does not exist; the first is 0")
        for prefix in ("", "audio_"):
            for term in ("guidance", "stg", "modality"):
                _check_interval(f"{prefix}{term}_interval", getattr(self, f"{prefix}{term}_interval"))
                _check_count(f"{prefix}{term}_every", getattr(self, f"{prefix}{term}_every"))
        if not 0 <= self.apg_eta <= 1:
            raise RequestError(f"apg_eta={self.apg_eta:g} is outside [0, 1]; 1 is plain guidance")
        if self.apg_norm_threshold is not None and not 0 < self.apg_norm_threshold < math.inf:
            raise RequestError(
                f"apg_norm_threshold={self.apg_norm_threshold:g} is not a positive length; absent, any goes"
            )
        for name, without in (("apg_eta", 0.0), ("apg_norm_threshold", None)):
            if self.guidance != "apg" and getattr(self, name) != without:
                raise RequestError(f"{name} is about guidance 'apg', and guidance is {self.guidance!r}")

    def _check_schedule(self) -> None:
        if self.shift is not None and not isinstance(self.shift, str):
            check_number("shift", self.shift, -math.inf)
        for name in ("num_inference_steps", "schedule", "shift"):
            value = getattr(self, name)
            if self.sigmas is not None and value is not None:
                raise RequestError(f"sigmas and {name}={value} both say how noise falls; give one")

    def _check_stages(self) -> None:
        if self.plan == "one_stage" and self.upsampler is not None:
            raise RequestError(
                f"upsampler {self.upsampler!r} is given, but plan 'one_stage' enlarges nothing"
            )
        if self.refine_strength is not None and not 0 < self.refine_strength <= 1:
            raise RequestError(f"refine_strength={self.refine_strength:g} is outside (0, 1]; 0.9 is usual")
        if self.plan in (None, "one_stage") and self.upsampler is None:
            for name, without in (("refine_strength", None), ("audio_from", "stage1")):
                if getattr(self, name) != without:
                    raise RequestError(
                        f"{name}={getattr(self, name)} is about a second stage, and there is one only; "
                        "give a plan of two, or an upsampler"
                    )
        if not 0 <= self.step_cache < 1:
            raise RequestError(f"step_cache={self.step_cache:g} is outside [0, 1); 0 is off, 0.1 is usual")
        if not 0 <= self.drift_control <= 1:
            raise RequestError(f"drift_control={self.drift_control:g} is outside [0, 1]; 0 is off")
        _check_count("window", self.window)
        _check_count("overlap", self.overlap)


def check_number(name: str, value: float | None, least: float, *, off: float | None = None) -> None:
    """Refuse a number that is not finite or below `least`; None is the model's own value.

    Args:
        off: The value that changes nothing, where there is one.
    """
    if value is None:
        return
    if not math.isfinite(value):
        raise RequestError(f"{name}={value} is not a finite number")
    if value < least:
        switch = "" if off is None else ", which switches it off" if off == least else f"; {off:g} is off"
        raise RequestError(f"{name}={value:g} is below {least:g}{switch}")


def several(value: Paths) -> tuple[str, ...]:
    """Spell one or several paths as several texts."""
    return tuple(map(str, (value,) if isinstance(value, str | Path) else value))


def _check_count(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise RequestError(f"{name}={value} is not positive; the least is 1")


def _check_interval(name: str, value: tuple[float, float] | None) -> None:
    if value is not None and not 0 <= value[0] <= value[1] <= 1:
        raise RequestError(f"{name}={value[0]:g}, {value[1]:g} is not a span of noise levels in [0, 1]")
