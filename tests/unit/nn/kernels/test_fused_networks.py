"""Whole transformers through Triton's kernels, every call of them, against plain PyTorch."""

from dataclasses import fields, replace

import pytest
import torch

import transformer_samples

pytest.importorskip("triton", reason="Triton is not installed")

from soundstage.core.types import AV
from soundstage.models.transformer.inputs import Branch, Passes, Perturbation, Text
from soundstage.nn import attention
from soundstage.nn.kernels import choice, plain
from soundstage.nn.kernels.choice import TORCH, TritonKernels, use_kernels
from transformer_samples import inputs, transformer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ("2.0", "2.3", "2.5", "embedded")
STEPS = ("norm_modulate", "norm_modulate_twice", "norm_rope", "norm_rope_both", "gate_heads", "gate_add")
# Of the largest velocity. In bfloat16 a sum in another order moves a number by one unit in the last place
# (2**-8), here and there in every layer.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2**-5}


@pytest.fixture
def only_fused(monkeypatch):
    """Let Triton's set run wherever it is, and fail where it would hand a call on to plain PyTorch."""
    monkeypatch.setattr(choice, "_is_on_gpu", lambda _: True)

    class NoFallBack(TritonKernels):
        pass

    def fused_only(name):
        def run(self, *args, **kwargs):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(plain, name, lambda *_, **__: pytest.fail(f"{name} fell back"))
                return getattr(TritonKernels, name)(self, *args, **kwargs)

        return run

    for name in STEPS:
        setattr(NoFallBack, name, fused_only(name))
    return NoFallBack()


def on_device(stream):
    tensors = {f.name: getattr(stream, f.name) for f in fields(stream)}
    return replace(stream, **{n: t.to(DEVICE) for n, t in tensors.items() if isinstance(t, torch.Tensor)})


def a_step(kind, dtype, *, batch, is_given, joined, rows_at_once):
    """Set up a block and a guided step, with as few tokens as show everything: the interpreter is slow."""
    model = transformer(kind).to(DEVICE, dtype)
    model.transformer_blocks = model.transformer_blocks[:1]
    if joined:
        model.join_projections()
    video, audio = inputs(model.config, batch)
    if is_given:
        timesteps = video.timesteps.clone()
        timesteps[:, :2] = 0
        video = replace(video, timesteps=timesteps)
    texts = AV(*(Text(context=stream.context.flip(2).to(DEVICE)) for stream in (video, audio)))
    branches = Branch(), Branch(texts=texts, perturbation=Perturbation(skip_audio_self_attention="all"))
    streams = [on_device(stream) for stream in (video, audio)]
    return model, streams, Passes(branches=branches, rows_at_once=rows_at_once)


@pytest.mark.parametrize(
    ("kind", "dtype", "batch", "is_given", "joined", "rows_at_once"),
    [
        *((kind, torch.float32, 2, True, True, None) for kind in KINDS),
        *((kind, torch.float32, 1, False, False, 1) for kind in KINDS),
        ("2.3", torch.float32, 2, False, True, 1),
        *((kind, torch.bfloat16, 1, True, True, None) for kind in ("2.0", "2.5")),
    ],
)
@torch.no_grad()
def test_networks_are_as_plain(monkeypatch, only_fused, kind, dtype, batch, is_given, joined, rows_at_once):
    monkeypatch.setattr(transformer_samples, "NUM_TOKENS", {"video": 3, "audio": 2})
    monkeypatch.setattr(attention, "READ_BYTES", 1)  # joined gates, though these have few heads
    monkeypatch.setattr(attention, "_is_on_cpu", lambda _: False)
    model, streams, passes = a_step(
        kind, dtype, batch=batch, is_given=is_given, joined=joined, rows_at_once=rows_at_once
    )
    use_kernels(model, TORCH)
    wanted = model(*streams, passes=passes)
    use_kernels(model, only_fused)
    got = model(*streams, passes=passes)
    for one, other in ((got.video, wanted.video), (got.audio, wanted.audio)):
        error = (one - other).abs().max() / other.abs().max()
        assert error <= BOUNDS[dtype], float(error)


@torch.no_grad()
def test_a_call_that_falls_back_is_noticed(only_fused):
    x = torch.ones(1, 2, 8, device=DEVICE)
    with pytest.raises(pytest.fail.Exception, match="gate_add fell back"):
        only_fused.gate_add(x, x.double(), x)
