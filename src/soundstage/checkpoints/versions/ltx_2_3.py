"""LTX-2.3 (22B), March 2026: gated attention, text modulation, a 48 kHz vocoder; one file plus Gemma-3."""

from soundstage.checkpoints.generation import Generation, SamplingDefaults
from soundstage.checkpoints.versions.ltx_2_0 import (
    DEV_AUDIO,
    DEV_VIDEO,
    DISTILLED,
    GEMMA_3,
    HQ,
    UNUSED_STATISTICS,
)

DEV = SamplingDefaults(
    num_inference_steps=30,
    schedule="shifted",
    sampler="euler",
    video=DEV_VIDEO,
    audio=DEV_AUDIO,
    stg_blocks=(28,),
)

LTX_2_3 = Generation(
    name="2.3",
    version=(2, 3),
    presets={"dev": DEV, "distilled": DISTILLED, "hq": HQ},
    image_crf=33,
    latents="2.3",
    text_encoder=GEMMA_3,
    unused_tensors=UNUSED_STATISTICS,
)
