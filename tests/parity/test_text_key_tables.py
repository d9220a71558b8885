"""The text side at full size on the meta device against the official files' names and shapes."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from soundstage.models.text.config import TextConfig
from soundstage.models.text.connectors import TextConnectors

HEADERS = Path(__file__).parent / "headers"


def official(generation: str) -> dict:
    return json.loads(gzip.decompress((HEADERS / f"ltx-{generation}.json.gz").read_bytes()))


def full_size(section: dict) -> TextConnectors:
    with torch.device("meta"):
        return TextConnectors(TextConfig.from_header(section))


@pytest.mark.parametrize(
    ("generation", "connectors", "projections", "num_tensors"),
    [
        ("2.0", 708_940_800, 722_534_400, 2 * 29 + 1),
        ("2.3", 2_016_166_400, 1_156_061_184, 2 * 129 + 4),
    ],
)
def test_names_shapes_and_counts_are_the_official_ones(generation, connectors, projections, num_tensors):
    header = official(generation)
    table = {
        name.removeprefix("model.diffusion_model."): shape
        for name, shape in header["tensors"].items()
        if "embeddings_connector." in name or name.startswith("text_embedding_projection.")
    }
    model = full_size(header["config"]["transformer"])
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == table
    assert len(table) == num_tensors
    projected = sum(p.numel() for p in model.text_embedding_projection.parameters())
    assert projected == projections
    assert sum(p.numel() for p in model.parameters()) == projections + connectors


def test_ltx_2_5_has_the_connectors_of_2_3():
    section = official("2.3")["config"]["transformer"]
    newer = section | {"ff_bias": False, "text_encoder_norm_type": "PER_TOKEN_RMS"}
    assert TextConfig.from_header(newer) == TextConfig.from_header(section)
