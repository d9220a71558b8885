"""Every format keeps weights and velocities within its stated bounds, and has the size it states."""

import pytest
import torch
from torch import nn

from golden_cases import cases, load_case
from soundstage.core.errors import RequestError
from soundstage.runtime.quantization.fp8 import Fp8Linear, quantize_rows
from soundstage.runtime.quantization.int8 import Int8Linear
from soundstage.runtime.quantization.layer import QuantizedLinear
from soundstage.runtime.quantization.registry import (
    QUANTIZATIONS,
    find_quantization,
    quantizable,
    quantize,
    take_weight,
)

NAMES = list(QUANTIZATIONS)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights():
    spiky = random(48, 128) * torch.logspace(-6, 2, 48)[:, None]
    spiky[3, 5] = 1e4
    spiky[7] = 0
    spiky[8, :64] = 0.25
    return {
        "normal": random(48, 128),
        "spiky": spiky,
        "short rows": random(16, 24),
        "one sign": random(8, 64).abs(),
    }


def made(name, weight, dtype=torch.float32):
    linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
    linear.weight.data.copy_(weight)
    box = nn.ModuleDict({"blocks": nn.ModuleList([linear])})
    quantize(box, name, inside="blocks")
    return linear, box["blocks"][0]


@pytest.mark.parametrize("kind", weights())
@pytest.mark.parametrize("name", NAMES)
def test_no_weight_is_further_off_than_the_bound(name, kind):
    weight = weights()[kind]
    _, twin = made(name, weight)
    error, bound = (twin.weight - weight).abs(), QUANTIZATIONS[name].weight_error(weight)
    assert (error <= bound * (1 + 1e-5) + 1e-12).all()
    assert error.max() > 0  # something was rounded


@pytest.mark.parametrize("name", NAMES)
def test_taking_a_weight_again_changes_nothing_of_what_was_representable(name):
    _, twin = made(name, random(32, 64))
    once = twin.weight.clone()
    take_weight(twin, once)
    bound = QUANTIZATIONS[name].weight_error(once)
    assert ((twin.weight - once).abs() <= bound).all()


@pytest.mark.parametrize("name", NAMES)
def test_rows_can_be_taken_in_any_pieces(name):
    weight = random(40, 64)
    _, whole = made(name, weight)
    _, pieces = made(name, torch.zeros_like(weight))
    for start in (0, 7, 39):
        pieces.take_rows(start, weight[start : {0: 7, 7: 39, 39: 40}[start]])
    assert torch.equal(whole.weight, pieces.weight)


@pytest.mark.parametrize("name", NAMES)
def test_the_layer_computes_with_its_weight_and_bias(name):
    linear, twin = made(name, random(32, 64))
    x = random(2, 5, 64, seed=1)
    expected = nn.functional.linear(x, twin.weight, linear.bias)
    tolerance = 0.08 if getattr(twin, "multiplies", False) else 1e-5  # inputs are rounded, too
    assert (twin(x) - expected).norm() <= tolerance * expected.norm()
    assert twin(x).shape == (2, 5, 32)


@pytest.mark.parametrize("name", NAMES)
def test_the_format_has_the_size_it_states(name):
    linear = nn.Linear(4096, 512, bias=False, device="meta", dtype=torch.bfloat16)
    twin = QUANTIZATIONS[name].make(linear, torch.bfloat16)
    stored = sum(tensor.nbytes for tensor in twin.state_dict().values())
    assert stored * 8 / linear.weight.numel() == pytest.approx(QUANTIZATIONS[name].bits, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_velocities_stay_within_the_stated_bound_on_the_recorded_cases(name):
    from parity.test_golden_transformer import load_transformer, perturbations, stream_input

    errors = []
    for case_id in cases("transformer"):
        case = load_case(case_id)
        model = load_transformer.__wrapped__(case.spec["checkpoint"])
        quantize(model, name, inside="transformer_blocks")
        with torch.no_grad():
            got = model(stream_input(case, "video"), stream_input(case, "audio"), perturbations(case.params))
        for stream in ("video", "audio"):
            expected = case.outputs.get(f"{stream}_velocity")
            if expected is not None:
                error = (getattr(got, stream) - expected).norm() / expected.norm()
                errors.append(float(error))
    print(f"{name}: largest {max(errors):.4f}, mean {sum(errors) / len(errors):.4f}")
    assert 0 < max(errors) <= QUANTIZATIONS[name].golden_error


def test_only_layers_inside_blocks_are_quantised_and_gates_are_not():
    from transformer_samples import transformer

    model = transformer("2.3")
    names = quantizable(model, inside="transformer_blocks")
    quantize(model, "int8", inside="transformer_blocks")
    twins = {name for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    assert twins == names.keys()
    assert len(twins) == 2 * 28  # six attentions of four layers and two feed-forwards of two
    assert isinstance(model.transformer_blocks[0].attn1.to_gate_logits, nn.Linear)


def test_a_fixed_input_scale_is_used_and_large_inputs_are_clamped():
    layer = Fp8Linear(32, 16, bias=False, dtype=torch.float32, has_input_scale=True)
    layer.take_rows(0, torch.eye(16, 32))
    layer.input_scale.fill_(0.01)
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 1] = 100.0, 1.0
    assert layer(x)[0, :2].tolist() == pytest.approx([4.48, 1.0], rel=0.04)  # 448 * 0.01 is the most


@pytest.mark.parametrize("layer", [Fp8Linear, Int8Linear])
def test_scales_are_not_rounded_to_the_type_of_the_weight(layer):
    """A bfloat16 scale would move a whole row the same way."""
    twin = layer(64, 16, bias=False, dtype=torch.bfloat16)
    twin.take_rows(0, random(16, 64))
    twin.scale.fill_(0.001234)  # 0.0012360 in bfloat16
    exact = twin.codes.float() * 0.001234
    assert twin.weight.dtype == torch.bfloat16
    assert torch.equal(twin.weight, exact.bfloat16())


def test_a_fixed_input_scale_is_not_rounded_to_the_type_of_the_input():
    x = random(8, 64).bfloat16()
    scale = torch.tensor(0.0123)  # 0.0123291 in bfloat16
    codes, _ = quantize_rows(x, scale)
    assert torch.equal(codes.float(), (x.float() / scale).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("bias", [False, True])
def test_integers_are_multiplied_to_what_they_stand_for(bias):
    twin = Int8Linear(64, 16, bias=bias, dtype=torch.float32, multiplies=True)
    twin.take_rows(0, random(16, 64))
    if bias:
        twin.bias.data.copy_(random(16, seed=2))
    x = random(2, 5, 64, seed=1)
    step = x.abs().amax(-1, keepdim=True) / 127
    rounded = (x / step).round() * step
    assert (rounded - x).abs().max() > 1e-3
    torch.testing.assert_close(twin(x), nn.functional.linear(rounded, twin.weight, twin.bias))
    assert torch.equal(twin(x[:1, :1]), twin(x)[:1, :1])  # no token depends on another
    assert torch.equal(
        twin(torch.zeros(3, 64)), (torch.zeros(16) if twin.bias is None else twin.bias).expand(3, 16)
    )


@pytest.mark.parametrize("multiplies", [False, True])
def test_long_inputs_are_worked_on_in_parts(multiplies, monkeypatch):
    twin = Int8Linear(64, 16, bias=True, dtype=torch.bfloat16, multiplies=multiplies)
    twin.take_rows(0, random(16, 64))
    x = random(2, 23, 64, seed=1).bfloat16()
    with torch.no_grad():
        whole = twin(x)
        monkeypatch.setattr("soundstage.runtime.quantization.int8.ROWS_AT_ONCE", 7)
        assert torch.equal(twin(x), whole)


def test_gradients_reach_the_input_of_a_widened_weight():
    twin = Int8Linear(64, 16, bias=False, dtype=torch.float32)
    twin.take_rows(0, random(16, 64))
    x = random(3, 64, seed=1).requires_grad_()
    twin(x).sum().backward()
    torch.testing.assert_close(x.grad, twin.weight.sum(0).expand(3, 64))


def test_rows_of_nothing_but_zeros_stay_zero():
    codes, scale = quantize_rows(torch.zeros(3, 16))
    assert torch.equal(codes.float() * scale, torch.zeros(3, 16))


def test_an_unknown_format_is_an_error_that_names_the_nearest():
    with pytest.raises(RequestError, match=r"'fp9'.*fp8"):
        find_quantization("fp9")


@pytest.mark.gpu
def test_a_gpu_multiplies_fp8_to_what_the_plain_arithmetic_gives():
    _, twin = made("fp8", random(256, 512), dtype=torch.bfloat16)
    x = random(3, 40, 512, seed=1).bfloat16()
    plain = twin(x)
    assert (twin.cuda()(x.cuda()).cpu() - plain).norm() <= 0.01 * plain.norm()  # the order of the sums
