"""What tests of pipelines share."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F


@pytest.fixture
def latents_as_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show latents in place of what they decode to: the VAEs of tiny official models are too small for it."""

    def video(vae: object, latents: Tensor, *_: object, budget: int | None) -> Tensor:
        return F.interpolate(torch.tanh(latents[:, :3].float()), size=(9, 64, 64))[0]

    def audio(vae: object, vocoder: object, latents: Tensor, *_: object) -> Tensor:
        return torch.tanh(latents.float().flatten())[None].repeat(2, 1)

    monkeypatch.setattr("soundstage.pipelines.making.decode_video", video)
    monkeypatch.setattr("soundstage.pipelines.making.decode_audio", audio)
