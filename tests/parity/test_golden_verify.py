"""`verify` on the recorded cases, and on directories that differ from them or are damaged."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from golden_cases import GOLDEN, manifest
from soundstage.core.errors import RequestError
from soundstage.evaluation.verify import COMPONENTS, Tolerance, relative_error, verify

# Steep periodic activations at amplitudes of 100 magnify rounding: the recorded values themselves lie 1.5e-4
# from those of float64, and other processors' float32 lies elsewhere.
MAGNIFIES_ROUNDING = {"vocoder.2.3.loud", "vocoder.2.3.normal"}  # the latter by a hair, on some processors


@pytest.fixture(scope="module")
def report():
    return verify(GOLDEN)


def directory(tmp_path, wanted, change=None):
    """Copy some recorded cases; `change` may edit their manifest entries and tensors."""
    specs = [json.loads(json.dumps(case)) for case in manifest()["cases"] if case["id"] in wanted]
    content = {"format": 1, "cases": specs, "checkpoints": {}, "files": {}}
    (tmp_path / "cases").mkdir()
    (tmp_path / "checkpoints").mkdir()
    for name in {case["file"] for case in specs}:
        shutil.copy(GOLDEN / name, tmp_path / name)
    for case in specs:
        names = (case["checkpoint"], case["params"].get("stats_checkpoint"))
        for name in filter(None, names):
            content["checkpoints"][name] = entry = dict(manifest()["checkpoints"][name])
            shutil.copy(GOLDEN / entry["file"], tmp_path / entry["file"])
    if change is not None:
        change(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    return tmp_path


def edit_tensor(folder, file, name, change):
    tensors = load_file(folder / file)
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / file)


def test_every_recorded_case_passes(report):
    assert [result for result in report.results if not result.passed] == []
    assert len(report.results) == len(manifest()["cases"])
    assert report.passed


def test_tolerances_are_widened_only_where_rounding_is_magnified(report):
    assert {result.id for result in report.results if result.rounding} <= MAGNIFIES_ROUNDING


def test_every_component_of_the_manifest_has_a_runner():
    assert {case["component"] for case in manifest()["cases"]} == COMPONENTS.keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_stay_within_the_bounds_of_lower_precision(dtype, tmp_path):
    wanted = ["transformer.2.3.basic", "connectors.2.0.seq128_valid19", "video_vae.2.3.encode_9x32x64",
              "audio_vae.2.3.decode_latent7", "upsampler.x2-2.3", "e2e.2.0.guided"]  # fmt: skip
    lower = verify(directory(tmp_path, wanted), dtype=dtype)
    assert [result for result in lower.results if not result.passed] == []
    assert any("relative" in result.tolerance for result in lower.results)


@pytest.mark.parametrize(
    ("case_id", "name"),
    [
        ("positions.video.f1h2w3fps24", "positions"),
        ("rope.apply.split", "y"),
        ("scheduler.beta", "sigmas_8"),
        ("guidance.skip_step", "skipped"),
        ("guidance.multimodal.all_rescale", "pred_single"),
        ("mel.16k", "mel"),
        ("conditioning.reference_video", "attention_mask"),
        ("transformer.2.3.stg_both", "audio_denoised"),
        ("connectors.2.3.seq128_valid3", "mask"),
        ("video_vae.2.0.decode_1x2x3", "frames_u8"),
        ("audio_vae.2.3.encode_mel13", "latent"),
        ("vocoder.2.0.normal", "waveform"),
        ("vocoder.2.3.loud", "waveform"),
        ("upsampler.x1.5-2.3", "latent"),
        ("e2e.2.3.image_to_video", "audio_latent"),
        ("e2e.2.0.decode", "frames_u8"),
    ],
)
def test_one_wrong_value_is_found(case_id, name, tmp_path):
    folder = directory(tmp_path, [case_id])
    spec = json.loads((folder / "manifest.json").read_text())["cases"][0]

    def spoil(tensor):
        changed = tensor.clone().view(-1)
        changed[len(changed) // 2] += 0.01 if tensor.is_floating_point() else 2
        return changed.view(tensor.shape)

    edit_tensor(folder, spec["file"], spec["outputs"][name]["tensor"], spoil)
    (result,) = verify(folder).results
    assert not result.passed
    assert name in result.reason


def only(results):
    (result,) = results
    assert not result.passed
    return result.reason


def test_an_unknown_component_is_a_failure(tmp_path):
    folder = directory(tmp_path, ["rope.apply.split"], lambda m: m["cases"][0].update(component="magic"))
    assert "unknown component 'magic'; known are positions" in only(verify(folder).results)


def test_an_output_that_is_not_computed_is_a_failure(tmp_path):
    def rename(content):
        outputs = content["cases"][0]["outputs"]
        outputs["z"] = outputs.pop("y")

    assert "z is not computed" in only(verify(directory(tmp_path, ["rope.apply.split"], rename)).results)


def test_a_case_without_outputs_is_a_failure(tmp_path):
    folder = directory(tmp_path, ["rope.apply.split"], lambda m: m["cases"][0].update(outputs={}))
    assert "records no outputs" in only(verify(folder).results)


def test_parameters_that_are_not_supported_are_a_failure(tmp_path):
    change = {"av_modulation": "other_sigma"}
    folder = directory(tmp_path, ["transformer.2.3.basic"], lambda m: m["cases"][0].update(params=change))
    assert "av_modulation='other_sigma' is not supported" in only(verify(folder).results)


def test_an_output_of_another_shape_is_a_failure(tmp_path):
    folder = directory(tmp_path, ["rope.apply.split"])
    spec = manifest_case("rope.apply.split")
    edit_tensor(folder, spec["file"], spec["outputs"]["y"]["tensor"], lambda y: y[:1].clone())
    assert "y has shape [2, 4, 32], expected [1, 4, 32]" in only(verify(folder).results)


def test_a_missing_tensor_is_a_failure(tmp_path):
    def rename(content):
        content["cases"][0]["inputs"]["x"]["tensor"] = "nothing"

    assert "has no tensor nothing" in only(verify(directory(tmp_path, ["rope.apply.split"], rename)).results)


def test_a_changed_file_fails_by_name_and_takes_its_cases_along(tmp_path):
    def list_files(content):
        content["files"] = {"cases/rope.safetensors": manifest()["files"]["cases/rope.safetensors"]}

    folder = directory(tmp_path, ["rope.apply.split", "mel.16k"], list_files)
    edit_tensor(folder, "cases/rope.safetensors", "rope.apply.split/inputs/x", lambda x: x + 1)
    file, *cases = verify(folder).results
    assert (file.id, file.component, file.passed) == ("cases/rope.safetensors", "files", False)
    assert "SHA-256 differs" in file.reason
    assert {case.id: case.passed for case in cases} == {"rope.apply.split": False, "mel.16k": True}


def test_a_changed_checkpoint_fails_the_cases_that_use_it(tmp_path):
    folder = directory(tmp_path, ["vocoder.2.0.normal"])
    edit_tensor(folder, "checkpoints/tiny-ltx2.0.safetensors", "vocoder.conv_post.bias", lambda x: x + 1)
    results = verify(folder).results
    assert [result.passed for result in results] == [False, False]
    assert all("SHA-256 differs" in result.reason for result in results)


def test_missing_and_truncated_files_are_failures(tmp_path):
    def list_files(content):
        content["files"] = {"cases/gone.safetensors": {"bytes": 1, "sha256": "0"}}

    folder = directory(tmp_path, ["mel.16k"], list_files)
    path = folder / "cases" / "mel.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    reasons = [result.reason for result in verify(folder).results]
    assert "the file is missing" in reasons[0]
    assert "truncated" in reasons[1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        ("{", "cannot be read"),
        ('{"format": 2, "cases": []}', "format 2; this version reads format 1"),
        ("[]", "format None"),
        ('{"format": 1}', "lists no cases"),
    ],
)
def test_a_directory_without_a_readable_manifest_is_refused(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RequestError, match=reason):
        verify(tmp_path)


def test_a_directory_without_cases_does_not_pass(tmp_path):
    assert not verify(directory(tmp_path, [])).passed


def test_other_sizes_and_batches_run(tmp_path):
    """Cases are replayed by their parameters, not by the sizes of the public ones."""

    def widen(content):
        content["cases"][0]["params"].update(latent_frames=2, latent_height=1, latent_width=1, fps=12.0)

    folder = directory(tmp_path, ["positions.video.f1h2w3fps24"], widen)
    spec = manifest_case("positions.video.f1h2w3fps24")
    expected = torch.tensor([[[[0.0, 1 / 12], [1 / 12, 9 / 12]], [[0.0, 32.0]] * 2, [[0.0, 32.0]] * 2]])
    edit_tensor(folder, spec["file"], spec["outputs"]["positions"]["tensor"], lambda _: expected)
    assert verify(folder).passed


@pytest.mark.parametrize(
    "case_id",
    [
        "transformer.2.0.two_sigmas",
        "connectors.2.3.seq128_valid19",
        "video_vae.2.3.encode_1x64x32",
        "video_vae.2.0.decode_2x2x2",
        "audio_vae.2.3.encode_waveform",
        "vocoder.2.0.loud",
        "upsampler.x1.5-2.3",
        "e2e.2.0.soft_first_frame",
        "e2e.2.3.text",
        "conditioning.keyframe",
    ],
)
def test_batches_run(case_id, tmp_path):
    """Twice the same item gives twice the same result."""
    folder = directory(tmp_path, [case_id])
    spec = manifest_case(case_id)
    tensors = load_file(folder / spec["file"])
    for entry in (*spec["inputs"].values(), *spec["outputs"].values()):
        if not entry["tensor"].endswith("/sigmas"):
            tensors[entry["tensor"]] = torch.cat([load_file(GOLDEN / spec["file"])[entry["tensor"]]] * 2)
    save_file(tensors, folder / spec["file"])
    (result,) = verify(folder).results
    assert result.passed, result


@pytest.mark.parametrize("stream", ["video", "audio"])
def test_runs_of_one_stream_alone_can_be_replayed(stream, tmp_path):
    """With a single step to 0 the result is what one recorded forward calls the denoised latent."""

    def one_step(content):
        alone, case = content["cases"]
        case["inputs"] = {
            f"{stream}_noise": alone["inputs"][f"{stream}_latent"],
            f"{stream}_context": alone["inputs"][f"{stream}_context"],
            "sigmas": case["inputs"]["sigmas"],
        }
        case["outputs"] = {f"{stream}_latent": case["outputs"][f"{stream}_latent"]}
        case["params"] |= {"frames": 9, "height": 64, "width": 96, "fps": 25.0}
        case["file"] = "cases/merged.safetensors"

    wanted = ["e2e.2.3.plain", f"transformer.2.3.{stream}_stream_only"]
    folder = directory(tmp_path, wanted, one_step)
    spec, alone = (manifest_case(case_id) for case_id in wanted)
    recorded = load_file(GOLDEN / alone["file"])
    tokens = recorded[alone["outputs"][f"{stream}_denoised"]["tensor"]]
    sigma = recorded[alone["inputs"][f"{stream}_sigma"]["tensor"]]
    if stream == "video":
        latents = tokens.view(1, 2, 2, 3, -1).permute(0, 4, 1, 2, 3)
    else:
        latents = tokens.view(1, tokens.shape[1], 1, -1).transpose(1, 2)
    merged = {alone["inputs"][f"{stream}_{n}"]["tensor"]: None for n in ("latent", "context")}
    merged = {name: recorded[name] for name in merged}
    merged[spec["inputs"]["sigmas"]["tensor"]] = torch.stack([sigma[0], torch.tensor(0.0)])
    merged[spec["outputs"][f"{stream}_latent"]["tensor"]] = latents.contiguous()
    save_file(merged, folder / "cases" / "merged.safetensors")
    _, result = verify(folder).results
    assert result.passed, result


def manifest_case(case_id):
    return next(case for case in manifest()["cases"] if case["id"] == case_id)


def test_the_share_of_a_tolerance_that_is_used():
    got, expected = torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 2.5]).double()
    assert Tolerance(atol=1.0).used(got, expected) == 0.5
    assert Tolerance(rtol=0.1).used(got, expected) == 2
    assert Tolerance().used(got, expected) == torch.inf
    assert Tolerance().used(got, got) == 0
    assert Tolerance(atol=0.1, rounding=0.9).used(got, expected) == 0.5
    assert Tolerance(relative=relative_error(got, expected)).used(got, expected) == 1
