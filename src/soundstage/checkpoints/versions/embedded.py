"""The embedded model: a small configuration of the same networks, trained by this project, in one file."""

from dataclasses import replace

from soundstage.checkpoints.generation import Generation, SamplingDefaults, StreamGuidance

# Metadata key and value that mark the file; its `model_version` is that of the official flags it uses.
MARK_KEY = "soundstage_model"
MARK = "embedded"

DEV = SamplingDefaults(
    num_inference_steps=16,
    schedule="shifted",
    sampler="euler",
    video=StreamGuidance(guidance_scale=3.0, modality_scale=5.0),  # docs/experiments.md has the grid
    audio=StreamGuidance(guidance_scale=3.0, modality_scale=5.0),
    height=64,
    width=64,
    num_frames=49,
    longest=(49 - 4) / 24,
)
DISTILLED = replace(
    DEV, num_inference_steps=8, schedule="distilled", video=StreamGuidance(), audio=StreamGuidance()
)

EMBEDDED = Generation(
    name="embedded",
    version=(),
    presets={"dev": DEV, "distilled": DISTILLED},
    image_crf=0,  # no re-compression: the world it was trained on has none
    image_scaling="smooth",  # photographs are many times larger than its clips
    latents="embedded",
    text_encoder="in the file",
    text_encoder_inside=True,
)
