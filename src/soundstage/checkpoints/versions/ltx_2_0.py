"""LTX-2.0 (19B), January 2026: the first audio-video release; one file plus Gemma-3."""

from soundstage.checkpoints.generation import Generation, SamplingDefaults, StreamGuidance

GEMMA_3 = "google/gemma-3-12b-it-qat-q4_0-unquantized"

# Statistics that 2.0 files may carry and no code reads.
UNUSED_STATISTICS = (
    "vae.per_channel_statistics.channel",
    "vae.per_channel_statistics.mean-of-stds",
    "vae.per_channel_statistics.mean-of-stds_over_std-of-means",
)

DEV_VIDEO = StreamGuidance(guidance_scale=3.0, stg_scale=1.0, modality_scale=3.0, guidance_rescale=0.7)
DEV_AUDIO = StreamGuidance(guidance_scale=7.0, stg_scale=1.0, modality_scale=3.0, guidance_rescale=0.7)

DISTILLED = SamplingDefaults(num_inference_steps=8, schedule="distilled", sampler="euler")
HQ = SamplingDefaults(
    num_inference_steps=15,
    schedule="shifted",
    sampler="res_2s",
    video=StreamGuidance(guidance_scale=3.0, modality_scale=3.0, guidance_rescale=0.45),
    audio=StreamGuidance(guidance_scale=7.0, modality_scale=3.0, guidance_rescale=1.0),
    height=544,
    width=960,
)

LTX_2_0 = Generation(
    name="2.0",
    version=(2, 0),
    presets={
        "dev": SamplingDefaults(
            num_inference_steps=40,
            schedule="shifted",
            sampler="euler",
            video=DEV_VIDEO,
            audio=DEV_AUDIO,
            stg_blocks=(29,),
        ),
        "distilled": DISTILLED,
        "hq": HQ,
    },
    image_crf=33,
    latents="2.0",
    text_encoder=GEMMA_3,
    unused_tensors=UNUSED_STATISTICS,
)
