"""Sound and picture are decoded in full float32; what follows is computed as before."""

import torch
from torch.backends import cudnn

import tiny
from soundstage.checkpoints import keymap
from soundstage.models.video_vae.decode_plan import DecodePlan
from soundstage.nn.causal_conv import VideoConv
from soundstage.pipelines.decode import decode_audio, stream_video


def test_sound_is_decoded_without_tf32():
    parts, seen = tiny.modules("embedded"), []
    vae, vocoder = parts[keymap.AUDIO_VAE], parts[keymap.VOCODER]
    hooks = [
        part.register_forward_pre_hook(lambda *_: seen.append(cudnn.allow_tf32))
        for part in (vae.decoder, vocoder)
    ]
    try:
        decode_audio(vae, vocoder, torch.zeros(1, 1, 3, 16))
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == [False, False]
    assert cudnn.allow_tf32


def test_picture_is_decoded_without_tf32_whether_or_not_sound_is_decoded_beside_it(monkeypatch):
    vae, seen, between = tiny.modules("embedded")[keymap.VIDEO_VAE], [], []
    over = VideoConv.over

    def recorded(self, x):
        seen.append(cudnn.allow_tf32)
        return over(self, x)

    monkeypatch.setattr(VideoConv, "over", recorded)
    monkeypatch.setattr(
        "soundstage.pipelines.decode.plan_video", lambda *_: DecodePlan(chunk=1, rows=2, columns=2)
    )
    for _ in stream_video(vae, torch.zeros(1, 4, 3, 2, 2)):
        between.append(cudnn.allow_tf32)
    assert not any(seen)
    assert len(between) > 1
    assert all(between), "who takes the parts computes as always"
