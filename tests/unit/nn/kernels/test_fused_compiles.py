"""Triton's kernels compile to machine code for the GPUs they are for; that needs no GPU."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SCRIPT = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from soundstage.nn.kernels import fused, fused_attention

FLOATS = {"eps", "least_scale", "largest", "per_largest"}
WIDE = ("cos_ptr", "sin_ptr", "scales_ptr")
KERNELS = (
    (fused._norm_modulate, {"LOOKUP": False, "BLOCK": 4096}),
    (fused._norm_modulate, {"LOOKUP": True, "BLOCK": 4096}),
    (fused._norm_modulate_twice, {"LOOKUP": True, "BLOCK": 4096}),
    (fused_attention._norm_rope, {"HALF": 64, "BLOCK": 2048}),
    (fused_attention._norm_rope, {"HALF": 1, "BLOCK": 1024}),
    (fused_attention._norm_rope_both, {"HALF": 64, "BLOCK": 2048}),
    (fused_attention._gate_heads, {"HEAD": 128, "BLOCK": 4096}),
    (fused._gate_add, {"LOOKUP": True, "BLOCK": 2048}),
    (fused._quantise_rows, {"BLOCK": 16384}),
)

def kind(name, constants):
    if name in constants:
        return "constexpr"
    if name == "lookup_ptr":
        return "*i64"
    if name.endswith("_ptr"):
        return "*fp32" if name.endswith(WIDE) else "*fp8e4nv" if name == "values_ptr" else "*bf16"
    return "fp32" if name in FLOATS else "i32"

for capability in (80, 90):
    for kernel, constants in KERNELS:
        if kernel is fused._quantise_rows and capability < 89:
            continue  # no conversion to 8 bits there; `choice` runs plain PyTorch
        source = ASTSource(
            fn=kernel,
            signature={name: kind(name, constants) for name in kernel.arg_names},
            constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        )
        made = compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})
        print(capability, kernel.__name__, len(made.asm["cubin"]))
"""


def test_kernels_compile_for_gpus(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")[:-1]
    assert len(lines) == 17
    assert all(int(line.split()[-1]) > 1000 for line in lines)
