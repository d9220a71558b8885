"""soundstage: video and its sound, generated together.

The public names are imported on first use, so that `import soundstage` costs nothing:

    Pipeline.load("embedded")("a red ball bounces on a wooden floor", seed=7).save("clip.mp4")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soundstage.core.errors import (
        Cancelled,
        CheckpointError,
        ConfigError,
        MediaError,
        RequestError,
        ResourceError,
        SoundstageError,
    )
    from soundstage.core.progress import Progress
    from soundstage.core.types import AV
    from soundstage.pipelines.generation import Generation
    from soundstage.pipelines.pipeline import Pipeline
    from soundstage.pipelines.request import GenerationRequest

__version__ = "0.1.0"

_HOMES = {
    "AV": "soundstage.core.types",
    "Cancelled": "soundstage.core.errors",
    "CheckpointError": "soundstage.core.errors",
    "ConfigError": "soundstage.core.errors",
    "Generation": "soundstage.pipelines.generation",
    "GenerationRequest": "soundstage.pipelines.request",
    "MediaError": "soundstage.core.errors",
    "Pipeline": "soundstage.pipelines.pipeline",
    "Progress": "soundstage.core.progress",
    "RequestError": "soundstage.core.errors",
    "ResourceError": "soundstage.core.errors",
    "SoundstageError": "soundstage.core.errors",
}

__all__ = [
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


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'soundstage' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
