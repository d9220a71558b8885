"""The one public door: what `soundstage` exports, and that asking for nothing costs nothing."""

import subprocess
import sys
from typing import get_args

import pytest

import soundstage

NAMES = [
    "AV",
    "Cancelled",
    "CheckpointError",
    "ConfigError",
    "Generation",
    "GenerationRequest",
    "MediaError",
    "Pipeline",
    "Progress",
    "RequestError",
    "ResourceError",
    "SoundstageError",
    "__version__",
]


def test_public_names_are_these() -> None:
    assert sorted(soundstage.__all__) == sorted(NAMES)
    assert dir(soundstage) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_there(name: str) -> None:
    assert getattr(soundstage, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'soundstage' has no attribute 'Pipelin'"):
        _ = soundstage.Pipelin


@pytest.mark.parametrize("statement", ["import soundstage", "from soundstage import GenerationRequest"])
def test_import_brings_no_torch(statement: str) -> None:
    program = f"import sys\n{statement}\nprint('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "False"


def test_choices_of_a_request_are_the_keys_of_the_registries() -> None:
    from soundstage.diffusion.guidance import GUIDANCE
    from soundstage.diffusion.samplers import SAMPLERS
    from soundstage.diffusion.schedules import SCHEDULES
    from soundstage.nn.attention_backends import ATTENTION
    from soundstage.nn.kernels.choice import KERNELS
    from soundstage.pipelines import compute, request
    from soundstage.pipelines.equipment import COMPILERS
    from soundstage.pipelines.loras import LORA_MODES
    from soundstage.pipelines.noise import NOISE_ORDERS
    from soundstage.pipelines.plan import PLANS

    for choice, registry in (
        (request.SamplerName, SAMPLERS),
        (request.ScheduleName, SCHEDULES),
        (request.GuidanceName, GUIDANCE),
        (request.NoiseOrder, NOISE_ORDERS),
        (request.PlanName, PLANS),
        (request.LoraMode, LORA_MODES),
        (compute.AttentionName, {"auto", *ATTENTION}),
        (compute.KernelsName, KERNELS),
        (compute.CompileName, COMPILERS),
    ):
        assert set(get_args(choice)) == set(registry)
