"""The text side against recorded reference outputs: features, connectors, contexts of the e2e cases."""

import functools

import pytest
import torch

from golden_cases import cases, load_case, load_checkpoint, manifest
from soundstage.models.text.config import TextConfig
from soundstage.models.text.connectors import TextConnectors

CASES = cases("connectors") + [case for case in cases("e2e") if case.endswith(".text")]


@functools.cache
def connectors(checkpoint: str) -> TextConnectors:
    config, state = load_checkpoint(checkpoint, "model.diffusion_model.")
    _, projection = load_checkpoint(checkpoint, "text_embedding_projection.")
    state = {name: tensor for name, tensor in state.items() if "embeddings_connector." in name}
    state |= {f"text_embedding_projection.{name}": tensor for name, tensor in projection.items()}
    text_encoder = manifest()["checkpoints"][checkpoint]["text_encoder"]
    with torch.device("meta"):
        model = TextConnectors(TextConfig.from_header(config["transformer"], text_encoder))
    model.load_state_dict(state, assign=True)
    return model.eval()


def test_every_recorded_case_is_run():
    assert len(CASES) == 10


@pytest.mark.parametrize("case_id", CASES)
@torch.no_grad()
def test_contexts_equal_the_reference(case_id):
    case = load_case(case_id)
    model = connectors(case.spec["checkpoint"])
    for suffix in ("", "_negative"):
        if f"hidden_states{suffix}" not in case.inputs:
            continue
        contexts = model(case.inputs[f"hidden_states{suffix}"], case.inputs[f"attention_mask{suffix}"])
        word = "encoding" if case.spec["component"] == "connectors" else "context"
        case.check(f"video_{word}{suffix}", contexts.video)
        case.check(f"audio_{word}{suffix}", contexts.audio)


@pytest.mark.parametrize("case_id", [c for c in CASES if "video_features" in load_case(c).outputs])
@torch.no_grad()
def test_features_equal_the_reference(case_id):
    case = load_case(case_id)
    model = connectors(case.spec["checkpoint"])
    features = model.text_embedding_projection(case.inputs["hidden_states"], case.inputs["attention_mask"])
    case.check("video_features", features.video)
    if "audio_features" in case.outputs:
        case.check("audio_features", features.audio)


@pytest.mark.parametrize("case_id", [c for c in CASES if "seq" in c])
@torch.no_grad()
def test_leaving_out_the_padding_gives_the_same_contexts(case_id):
    case = load_case(case_id)
    model = connectors(case.spec["checkpoint"])
    length = case.inputs["attention_mask"].shape[1]
    words = int(case.inputs["attention_mask"].sum())
    contexts = model(
        case.inputs["hidden_states"][:, -words:], torch.ones(1, words, dtype=torch.bool), length=length
    )
    case.check("video_encoding", contexts.video)
    case.check("audio_encoding", contexts.audio)
