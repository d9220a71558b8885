"""LTX-2.5 (22B), August 2026: keyframe embedding, its own Gemma-4 text encoder, one file per component."""

from dataclasses import replace

from soundstage.checkpoints.generation import Generation
from soundstage.checkpoints.versions.ltx_2_0 import DISTILLED, HQ, UNUSED_STATISTICS
from soundstage.checkpoints.versions.ltx_2_3 import DEV, LTX_2_3

# 2.4 was never released as such; pre-release files carry the number and take images at the finer quality.
LTX_2_4 = replace(LTX_2_3, name="2.4", version=(2, 4), image_crf=18)

LTX_2_5 = Generation(
    name="2.5",
    version=(2, 5),
    presets={"dev": DEV, "distilled": replace(DISTILLED, sampler="euler_ancestral"), "hq": HQ},
    image_crf=18,
    latents="2.3",  # its encoder and convolutional decoder are those of 2.3
    text_encoder="gemma4-12b-with-proj-ltx-2.5-bf16.safetensors, a file of the release",
    text_encoder_inside=True,
    reads_gemma_3=False,
    unused_tensors=UNUSED_STATISTICS,
)
