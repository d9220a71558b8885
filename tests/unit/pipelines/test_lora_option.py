"""PATH[:STRENGTH][@STAGE], whatever the path looks like."""

import pytest

from soundstage.core.errors import RequestError
from soundstage.pipelines.lora_option import LoraOption
from soundstage.pipelines.request import GenerationRequest


@pytest.mark.parametrize(
    ("text", "path", "strength", "stage"),
    [
        ("a.safetensors", "a.safetensors", 1.0, None),
        ("a.safetensors:0.5", "a.safetensors", 0.5, None),
        ("a.safetensors:-1", "a.safetensors", -1.0, None),
        ("a.safetensors:0", "a.safetensors", 0.0, None),
        ("a.safetensors:1e-1@2", "a.safetensors", 0.1, 2),
        ("a.safetensors@1", "a.safetensors", 1.0, 1),
        ("~/loras/A.SafeTensors:2", "~/loras/A.SafeTensors", 2.0, None),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0, None),
        (r"C:\loras\a.safetensors:0.5@2", r"C:\loras\a.safetensors", 0.5, 2),
        (r"C:\loras\a", r"C:\loras\a", 1.0, None),
        ("me@home/v:2/a.safetensors:0.5", "me@home/v:2/a.safetensors", 0.5, None),
        ("a.safetensors.d/b:c.safetensors@1", "a.safetensors.d/b:c.safetensors", 1.0, 1),
        ("ltx-2.3-22b-distilled-lora-384-1.1", "ltx-2.3-22b-distilled-lora-384-1.1", 1.0, None),
        ("ltx-2.3-22b-distilled-lora-384-1.1:0.8@2", "ltx-2.3-22b-distilled-lora-384-1.1", 0.8, 2),
        ("style.pt:0.5", "style.pt", 0.5, None),
        ("me@1/style", "me@1/style", 1.0, None),
    ],
)
def test_option_is_read(text: str, path: str, strength: float, stage: int | None) -> None:
    assert LoraOption.parse(text) == LoraOption(path=path, strength=strength, stage=stage)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not of the form PATH"),
        ("a.safetensors:", "strength '' is not a number"),
        ("a.safetensors:strong", "strength 'strong' is not a number; the form is PATH"),
        ("a.safetensors:nan", "strength nan is not a finite number"),
        ("a.safetensors@", "stage '' is neither 1 nor 2"),
        ("a.safetensors:0.5@3", "stage '3' is neither 1 nor 2; without @, all stages use it"),
        ("a.safetensors@1:0.5", "is not of the form PATH"),
        ("a@0", "stage '0' is neither 1 nor 2"),
    ],
)
def test_what_is_none_is_refused_by_the_request(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        GenerationRequest(prompt="a red ball", loras=(text,))


def test_request_carries_loras_there_and_back() -> None:
    request = GenerationRequest(prompt="a red ball", loras=("a.safetensors:0.5", "b.safetensors@2"))
    assert GenerationRequest.of(request.to_dict()) == request
    with pytest.raises(RequestError, match=r"loras='a.safetensors' should be a list"):
        GenerationRequest.of({"prompt": "a red ball", "loras": "a.safetensors"})


def test_stages_without_a_number_are_all() -> None:
    assert [LoraOption(path="a").acts_in(stage) for stage in (1, 2)] == [True, True]
    assert [LoraOption(path="a", stage=2).acts_in(stage) for stage in (1, 2)] == [False, True]
