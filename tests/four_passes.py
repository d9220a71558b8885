"""The passes of a fully guided step, as the transformer takes them."""

from soundstage.core.types import AV
from soundstage.models.transformer.inputs import Branch, Perturbation, Text


def four_passes(prompt: AV[Text], negative: AV[Text], block: int) -> tuple[Branch, ...]:
    """Return "uncond", "cond", "perturbed" in one block, "isolated"; of an empty prompt the streams' own."""
    skipped = frozenset({block})
    return (
        Branch(texts=negative),
        Branch(texts=prompt),
        Branch(
            texts=prompt,
            perturbation=Perturbation(skip_video_self_attention=skipped, skip_audio_self_attention=skipped),
        ),
        Branch(texts=prompt, perturbation=Perturbation(skip_a2v="all", skip_v2a="all")),
    )
