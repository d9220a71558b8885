"""Sound is decoded in full float32; what follows is computed as before."""

import torch
from torch.backends import cudnn

import tiny
from soundstage.checkpoints import keymap
from soundstage.pipelines.decode import decode_audio


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
