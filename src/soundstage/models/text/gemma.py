"""The text encoder: a Gemma-3 language model, read by all its hidden states; it can also go on writing."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from soundstage.core.errors import CheckpointError, ConfigError
from soundstage.core.types import ContextMask
from soundstage.models.text.features import HiddenStates
from soundstage.models.text.gemma3 import Gemma3, Gemma3Config, KeysValues

WANTED = "a Gemma-3 model, such as google/gemma-3-12b-it-qat-q4_0-unquantized for LTX-2.0 and 2.3"
PREFIXES = (
    "model.language_model.",
    "language_model.model.",
    "model.",
    "",
)  # where files keep the language model


class GemmaTower(nn.Module):
    """A Gemma-3 language model without its head; tensors are named `model.layers.…` and so on."""

    def __init__(self, hf_config: Mapping[str, Any]) -> None:
        """Build from a Hugging Face configuration with random weights, or on `meta`.

        Raises:
            CheckpointError: It is not the configuration of a Gemma-3.
        """
        super().__init__()
        self.hf_config = _text_config(hf_config)
        if self.hf_config.get("use_bidirectional_attention"):
            raise CheckpointError(f"the text encoder is an embedding model, which is not {WANTED}")
        try:
            config = Gemma3Config.from_dict(self.hf_config)
        except ConfigError as error:
            raise CheckpointError(f"the text encoder's configuration is malformed: {error}") from error
        self.model = Gemma3(config)

    @classmethod
    def from_config(cls, hf_config: Mapping[str, Any]) -> "GemmaTower":
        """Build from a `gemma3_text` or `gemma3` configuration, to be trained or filled from a state dict."""
        return cls(hf_config)

    @classmethod
    def from_directory(
        cls, path: Path, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu"
    ) -> "GemmaTower":
        """Load a Hugging Face directory; of a multimodal model only the language part is read.

        One tensor is converted at a time, so peak memory is what is kept plus one tensor.

        Raises:
            CheckpointError: A file is missing or damaged, or the model is not a Gemma-3.
        """
        config = _read_json(path / "config.json")
        with torch.device("meta"):
            tower = cls(config)
        state = {
            name: tensor
            for file in _weight_files(path)
            for name, tensor in _read_tensors(file, dtype, device)
        }
        _check_complete(tower, state, path)
        tower.load_state_dict(state, assign=True)
        return tower.requires_grad_(False).to(device).eval()

    @property
    def hidden_size(self) -> int:
        """Width of every hidden state."""
        return self.model.config.hidden_size

    @property
    def num_states(self) -> int:
        """Number of hidden states: one per layer and one for the embeddings."""
        return self.model.config.num_hidden_layers + 1

    @property
    def vocab_size(self) -> int:
        """Number of token embeddings."""
        return self.model.config.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embed_tokens.weight.device

    def hidden_states(
        self, input_ids: Int[Tensor, "b s"], attention_mask: ContextMask, first_position: int = 0
    ) -> HiddenStates:
        """Run the model; the last state is the one after the final norm.

        Args:
            attention_mask: 1 on words, 0 on padding. The states of padding are finite and mean nothing.
            first_position: Position of the first token. Positions count padding, so a prompt whose left
                padding is left out starts where that padding would have ended.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + first_position
        states, _ = self.model(input_ids, self._attention_masks(attention_mask), positions)
        return torch.stack(states, dim=-1)

    def next_word(
        self, input_ids: Int[Tensor, "b s"], cache: Sequence[KeysValues] | None = None
    ) -> tuple[Float[Tensor, "b vocab"], list[KeysValues]]:
        """Score what comes after some words, in float32, and remember them for the next call.

        Args:
            input_ids: Words that follow those of earlier calls, without padding.
            cache: What the last call returned beside the scores; None begins a text.

        Raises:
            CheckpointError: The output layer is one of its own, which is not loaded.
        """
        if not self.hf_config.get("tie_word_embeddings", True):
            raise CheckpointError("this text encoder has an output layer of its own, so it cannot write")
        past = 0 if cache is None else cache[0].keys.shape[2]
        count = input_ids.shape[1]
        everything = torch.ones(len(input_ids), past + count, dtype=torch.int64, device=input_ids.device)
        masks = {kind: mask[:, :, past:] for kind, mask in self._attention_masks(everything).items()}
        positions = torch.arange(past, past + count, device=input_ids.device)
        states, remembered = self.model(input_ids, masks, positions, cache)
        scores = nn.functional.linear(states[-1][:, -1], self.model.embed_tokens.weight).float()
        return scores, remembered

    def _attention_masks(self, attention_mask: ContextMask) -> dict[str, Bool[Tensor, "b 1 s s"]]:
        """Say who hears whom: earlier words, in local layers only those within the window.

        Padding hears itself, because a softmax over nothing is NaN on some devices.
        """
        order = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        distance = order[:, None] - order[None, :]  # (s, s), query minus key
        valid = attention_mask.bool()[:, None, None, :]
        causal = (distance >= 0) & valid | (distance == 0)
        window = self.model.config.sliding_window
        return {"full_attention": causal, "sliding_attention": causal & (distance < window)}


def tiny_gemma_config(
    vocab_size: int, hidden_size: int = 96, num_layers: int = 3, intermediate_size: int = 256
) -> dict[str, Any]:
    """Describe a Gemma-3 small enough to be trained along with the embedded model.

    Token ids are those of `train_tokenizer`, which are Gemma's. All layers see the whole prompt.
    """
    head_dim = 32
    return {
        "model_type": "gemma3_text",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(1, hidden_size // head_dim),
        "num_key_value_heads": 1,
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "max_position_embeddings": 1024,
        "layer_types": ["full_attention"] * num_layers,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}},
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }


def tower_key(name: str) -> str | None:
    """Translate a tensor name of any Gemma-3 file to `GemmaTower`'s; None for vision towers and heads."""
    for prefix in PREFIXES:
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and rest.startswith(("embed_tokens.", "layers.", "norm.")):
            return f"model.{rest}"
    return None


def _text_config(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Take the language model's part of a configuration."""
    kind = hf_config.get("model_type")
    if kind not in ("gemma3", "gemma3_text"):
        raise CheckpointError(f"the text encoder has model_type {kind!r}; what is needed is {WANTED}")
    return dict(hf_config.get("text_config", hf_config))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} does not exist; a text encoder directory holds config.json, tokenizer.json and "
            f"*.safetensors of {WANTED}"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return content


def _weight_files(path: Path) -> list[Path]:
    """List the safetensors files of a directory, by its index if there is one."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        files = [path / name for name in sorted(set(_read_json(index)["weight_map"].values()))]
    else:
        files = sorted(path.glob("*.safetensors"))
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        raise CheckpointError(f"{path} lacks {', '.join(missing) or 'weights (*.safetensors)'} of {WANTED}")
    return files


def _read_tensors(file: Path, dtype: torch.dtype, device: str | torch.device) -> Iterable[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt", device=str(device)) as tensors:
            for name in tensors.keys():  # noqa: SIM118  the handle itself is not iterable
                key = tower_key(name)
                if key is not None:
                    yield key, tensors.get_tensor(name).to(dtype)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or not a safetensors file: {error}") from error


def _check_complete(tower: GemmaTower, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = {name: tensor.shape for name, tensor in tower.state_dict().items()}
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is unexpected" for name in state if name not in wanted]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(shape)}"
        for name, shape in wanted.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(
            f"{path} does not hold the language model that its config.json describes: {shown}"
        )
