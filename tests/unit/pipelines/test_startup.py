"""Loading a model imports nothing that takes longer than loading it."""

import subprocess
import sys

HEAVY = ("transformers", "torch._dynamo", "sympy", "triton", "torch.distributed.tensor")
PROGRAM = f"""
import sys
from soundstage.pipelines.pipeline import Pipeline
Pipeline.load("embedded", device="cpu")
print(*(name for name in {HEAVY!r} if name in sys.modules))
"""


def test_a_model_loads_without_compilers_and_other_libraries_of_models() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
