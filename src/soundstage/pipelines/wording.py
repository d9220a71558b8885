"""What a request says in words, as the network reads it: written out if wanted, checked, encoded."""

from dataclasses import replace
from fractions import Fraction

from soundstage.checkpoints.generation import Generation
from soundstage.core.errors import RequestError
from soundstage.core.progress import OnProgress
from soundstage.core.types import AV, Context
from soundstage.pipelines.decode import StageProgress
from soundstage.pipelines.enhance import check_can_enhance, enhance
from soundstage.pipelines.prompt_encoder import PromptEncoder
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.text_conditioning import Contexts, make_contexts

EMBEDDED = "embedded"

# Steers official checkpoints away from what they otherwise tend to. The embedded model learnt to do without a
# caption from empty ones, so that is its negative prompt.
NEGATIVE_PROMPT = (
    "subtitles, captions, watermark, logo, blurred rectangle, fade to black, blurry, out of focus, noisy, "
    "grainy, flickering, frozen picture, warped anatomy, extra limbs, distorted face, overexposed, muffled "
    "or clipped sound, robotic voice, cut-off speech, sound out of step with the picture"
)


def check_wording(prompts: PromptEncoder, request: GenerationRequest) -> None:
    """Refuse what the text encoder cannot read whole, or cannot write.

    Raises:
        RequestError: A prompt is too long, or the encoder does not write.
    """
    if request.enhance:
        check_can_enhance(prompts)
    spans = [span.prompt for span in request.spans]
    negative = filter(None, (request.negative_prompt, request.audio_negative_prompt))
    # An enhanced prompt is measured when it is written.
    for prompt in (*spans, *negative, *(() if request.enhance else (request.prompt,))):
        prompts.check_length(prompt)


def check_spans(request: GenerationRequest, start: Fraction, end: Fraction) -> None:
    """Refuse prompts for times at which nothing is generated.

    Args:
        start: Seconds of the result at which what is generated begins.
        end: Seconds at which it ends.

    Raises:
        RequestError: `prompt_at` names such a time.
    """
    for span in request.spans:
        if span.start >= end:
            raise RequestError(f"prompt_at begins at {span.start:g} s, the clip ends at {float(end):g} s")
        if span.end <= start:
            raise RequestError(
                f"prompt_at ends at {span.end:g} s; what is generated begins at {float(start):g} s"
            )


def worded(
    prompts: PromptEncoder, request: GenerationRequest, on_progress: OnProgress | None
) -> tuple[GenerationRequest, tuple[str, ...]]:
    """Rewrite the prompt if the request wants it, and say so.

    Raises:
        RequestError: The text encoder wrote nothing of use, or too much.
    """
    if not request.enhance:
        return request, ()
    progress = StageProgress(on_progress)
    progress("enhance_prompt", 0, 1)
    enhanced = enhance(prompts, request.prompt, request.seed)
    prompts.check_length(enhanced)
    progress("enhance_prompt", 1, 1)
    notes = [f"prompt {request.prompt!r} was enhanced to {enhanced!r}"]
    if request.image or request.video is not None:
        notes.append(
            "the prompt was enhanced without a look at what is given; what it adds may contradict it"
        )
    return replace(request, prompt=enhanced), tuple(notes)


def encode_wording(
    prompts: PromptEncoder,
    request: GenerationRequest,
    generation: Generation,
    on_progress: OnProgress | None,
    *,
    guided: bool,
) -> Contexts:
    """Encode what the passes read; a prompt that was met before is not encoded again.

    Args:
        generation: Of the model, which has a negative prompt of its own.
        guided: Whether guidance compares with the negative prompt.
    """
    positive = [request.prompt, *(span.prompt for span in request.spans)]
    negative = negative_prompts(request, generation) if guided or max(request.nag_scales) > 1 else ()
    wanted = list(dict.fromkeys((*positive, *negative)))
    progress = StageProgress(on_progress)
    contexts: dict[str, AV[Context]] = {}
    for prompt in wanted:
        progress("encode_prompt", len(contexts), len(wanted))
        contexts[prompt] = prompts.encode(prompt)
    progress("encode_prompt", len(wanted), len(wanted))
    away = AV(contexts[negative[0]].video, contexts[negative[1]].audio) if negative else None
    return make_contexts(request, [contexts[prompt] for prompt in positive], away, guided=guided)


def negative_prompts(request: GenerationRequest, generation: Generation) -> tuple[str, str]:
    """Settle what picture and sound are steered away from."""
    common = request.negative_prompt
    if common is None:
        common = "" if generation.name == EMBEDDED else NEGATIVE_PROMPT
    own = request.audio_negative_prompt
    return common, common if own is None else own
