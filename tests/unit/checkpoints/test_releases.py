"""Known releases: where they are looked for, and what is said when they are not there."""

import pytest

import tiny
from soundstage.checkpoints import releases
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.releases import (
    GEMMA,
    RELEASES,
    find_release,
    missing_message,
    resolve,
    search_path,
)
from soundstage.core.errors import CheckpointError

MODEL = RELEASES["ltx-2.3-22b-dev"]
PACK = RELEASES["ltx-2.5-22b-dev"]


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """An empty home, an empty working directory, and one extra folder of models."""
    extra = tmp_path / "extra"
    for folder in (extra, tmp_path / "home", tmp_path / "work"):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("SOUNDSTAGE_MODELS", str(extra))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_every_generation_has_a_model_and_names_are_unique():
    assert len(RELEASES) == len(releases._ALL)
    for generation in ("2.0", "2.3", "2.5"):
        kinds = {release.kind for release in RELEASES.values() if release.generation == generation}
        assert {"model", "upsampler", "LoRA"} <= kinds


@pytest.mark.parametrize("release", RELEASES.values(), ids=lambda r: r.name)
def test_every_release_says_what_people_must_know(release):
    assert release.licence
    assert release.num_bytes > 10**8
    assert "/" in release.repo
    assert all(file.path.endswith(".safetensors") for file in release.files)
    assert all(name in RELEASES for name in release.needs)


def test_gemma_is_needed_by_2_0_and_2_3_but_not_by_2_5():
    assert RELEASES["ltx-2-19b-dev"].needs == MODEL.needs == (GEMMA,)
    assert PACK.needs == ()


@pytest.mark.parametrize(
    "place", ["extra", "home/.cache/soundstage/models", "work", "work/models", "extra/ltx-2.3-22b-dev"]
)
def test_a_file_is_found_in_each_place(places, place):
    path = touch(places / place / "ltx-2.3-22b-dev.safetensors")
    (found,) = resolve("ltx-2.3-22b-dev")
    assert found.resolve() == path


def test_a_file_is_found_in_the_hugging_face_cache(places):
    cache = places / "home/.cache/huggingface/hub/models--Lightricks--LTX-2.3/snapshots"
    path = touch(cache / "abc123" / "ltx-2.3-22b-dev.safetensors")
    assert resolve("ltx-2.3-22b-dev") == (path,)


def test_the_places_are_searched_in_order(places):
    first = touch(places / "extra" / "ltx-2.3-22b-dev.safetensors")
    touch(places / "work" / "ltx-2.3-22b-dev.safetensors")
    assert resolve("ltx-2.3-22b-dev") == (first,)
    assert search_path()[0] == places / "extra"


def test_several_folders_can_be_named(places, monkeypatch):
    monkeypatch.setenv("SOUNDSTAGE_MODELS", f"{places / 'one'}:{places / 'two'}")
    assert search_path()[:2] == [places / "one", places / "two"]


def test_a_pack_is_found_when_all_its_files_are(places):
    paths = [touch(places / "extra" / PACK.name / file.path) for file in PACK.files]
    assert find_release(PACK) == tuple(paths)
    paths[-1].unlink()
    assert find_release(PACK) is None
    with pytest.raises(CheckpointError, match=r"get vae/ltx-2.5-audio-vae-bf16.safetensors from"):
        resolve(PACK.name)


def test_the_text_encoder_is_a_directory(places):
    touch(places / "extra" / "gemma-3-12b-it-qat-q4_0-unquantized" / "config.json")
    assert find_release(RELEASES[GEMMA]) == (places / "extra" / "gemma-3-12b-it-qat-q4_0-unquantized",)


def test_a_missing_release_says_what_to_get_and_where_to_put_it(places):
    with pytest.raises(CheckpointError) as caught:
        resolve("ltx-2.3-22b-dev")
    message = str(caught.value)
    assert "ltx-2.3-22b-dev.safetensors" in message
    assert "huggingface.co/Lightricks/LTX-2.3" in message
    assert "46.1 GB" in message
    assert "soundstage models download ltx-2.3-22b-dev" in message
    assert str(places / "extra") in message
    assert "SOUNDSTAGE_MODELS" in message
    assert "\n" not in message


def test_a_gated_release_says_so():
    assert "after accepting the licence" in missing_message(PACK)
    assert "after accepting the licence" not in missing_message(MODEL)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ltx-2.3-22b-deb", r"unknown model 'ltx-2.3-22b-deb' \(did you mean 'ltx-2.3-22b-dev'\?\)"),
        ("nothing-like-it", "unknown model 'nothing-like-it'; give a .safetensors file"),
        ("models/none.safetensors", "models/none.safetensors does not exist"),
        ("x/ltx-2.3-22b-dev.safetensors", "does not exist; it is a release file: .*get ltx-2.3-22b-dev"),
    ],
)
def test_what_does_not_exist_is_told(name, reason):
    with pytest.raises(CheckpointError, match=reason):
        resolve(name)


def test_the_embedded_model_is_part_of_the_package(places, monkeypatch):
    monkeypatch.setattr(releases, "EMBEDDED_FILE", places / "embedded.safetensors")
    with pytest.raises(CheckpointError, match=r"missing from this installation: .*reinstall soundstage"):
        resolve("embedded")
    path = touch(places / "embedded.safetensors")
    assert resolve("embedded") == (path,)


def test_files_and_directories_are_taken_as_they_are(places):
    path = touch(places / "my.safetensors")
    assert resolve(path) == resolve(str(path)) == (path,)
    assert resolve(places / "extra") == (places / "extra",)


def test_a_file_of_a_split_pack_brings_the_others_along(places):
    transformer = tiny.write_pack(places / "pack")
    paths = resolve(transformer)
    assert paths[0] == transformer
    assert len(paths) == 4
    assert len(open_checkpoint(paths).parts) == 5


@pytest.mark.parametrize("folder", ["loras", "latent_upscale_models"])
def test_a_lora_or_upsampler_beside_a_pack_stands_alone(places, folder):
    tiny.write_pack(places / "pack")
    (places / "pack" / folder).mkdir()
    path = tiny.write_lora(places / "pack" / folder / "style.safetensors")
    assert resolve(path) == (path,)
