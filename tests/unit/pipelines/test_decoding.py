"""Picture and sound are decoded side by side, on a device that is shared, in memory that does not grow."""

from pathlib import Path

import pytest
import torch
from torch import nn

from soundstage.core.progress import Progress
from soundstage.pipelines.pipeline import Pipeline
from soundstage.runtime.residency import MARK, Residency

SMALL = {"num_frames": 9, "width": 32, "height": 16, "num_inference_steps": 1}


@pytest.fixture
def pipeline(tiny_model: Path) -> Pipeline:
    return Pipeline.load(tiny_model, device="cpu")


def size(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in network.state_dict().values())


@pytest.mark.parametrize("missing", [0, 1])
def test_the_video_decoder_stays_while_the_picture_is_decoded(pipeline: Pipeline, missing: int) -> None:
    """What the sound needs comes beside it, or where one byte is missing, before it."""
    (wanted,) = pipeline.stream("a ball", **SMALL)
    components, order = pipeline.components, list[str]()
    video, sound = components.video_vae, (components.audio_vae, components.vocoder)
    residency = Residency(torch.device("cpu"), sum(size(net) for net in (video, *sound)) - missing)
    for network in (video, *sound):
        residency.manage("network", network)
    components.vocoder.register_forward_pre_hook(lambda *_: order.append("sound"))

    def listen(event: Progress) -> None:
        if event.stage == "decode_video":
            order.append("picture")
            assert video.__dict__[MARK][1] in residency._present

    (part,) = pipeline.stream("a ball", on_progress=listen, **SMALL)
    assert torch.equal(part.pixels, wanted.pixels)
    assert torch.equal(part.waveform, wanted.waveform)
    assert residency._pinned == []
    if missing:
        assert order[0] == "sound"
