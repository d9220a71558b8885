"""Recipes: everything that defines a training run, read from a TOML file."""

from dataclasses import dataclass, field
from typing import Any, Literal

from soundstage.core.errors import ConfigError

TaskName = Literal["video_vae", "audio_vae", "vocoder", "transformer", "distil"]


@dataclass(frozen=True, kw_only=True)
class OptimRecipe:
    """How weights move."""

    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = 1e-3  # AdamW's; also of the vectors that Muon leaves to AdamW
    matrix_lr: float = 0.02  # Muon's, per unit of root-mean-square update
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0  # on matrices only
    grad_clip: float = 1.0  # of the global norm; 0 = off
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    final_lr: float = 0.05  # share of the peak at the end
    ema_decay: float = 0.999  # limit; early steps average over fewer

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.matrix_lr <= 0:
            raise ConfigError(f"optim.lr={self.lr} and optim.matrix_lr={self.matrix_lr} must be positive")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"optim.ema_decay={self.ema_decay} is outside [0, 1)")


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Which samples are seen; the world is rendered on the fly where training runs."""

    num_frames: int = 49
    height: int = 64
    width: int = 64
    frame_rate: float = 24.0
    kinds: tuple[str, ...] = ()  # of scenes, such as "bounce"; twice the name, twice the share; none = all
    window_frames: int | None = None  # random excerpt of each clip or spectrogram, for the autoencoders
    reuse: int = 1  # how often a rendered clip is drawn before it is replaced
    pool_size: int = 0  # clips kept for reuse; 0 = none


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run."""

    task: TaskName
    model: dict[str, Any]  # sections of the checkpoint header, as the task reads them
    settings: dict[str, Any] = field(default_factory=dict)  # of the task: loss weights and the like
    data: DataRecipe = field(default_factory=DataRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    num_steps: int = 1000
    budget_minutes: float = 0.0  # the schedule ends when this much training time is spent; 0 = by steps alone
    batch_size: int = 4  # per process
    init: str = ""  # file whose weights a new run begins with: a whole model or a part of one
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; weights are float32
    compile: bool = (
        False  # the transformer's norms, rotations and gates; takes a C++ compiler and 30 s at first
    )
    log_every: int = 10  # steps
    validate_every: int = 500  # steps
    save_every_minutes: float = 3.0
    tensorboard: bool = False  # curves beside the log; `--set tensorboard=true`

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "log_every", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
