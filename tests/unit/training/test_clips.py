"""Clips are rendered once and drawn several times."""

import random

import pytest
import torch

from soundstage.data.world.scene import Scene
from soundstage.training.clips import ClipSource, Pool
from soundstage.training.recipe import DataRecipe
from soundstage.training.tasks.transformer import Settings, _autoencoders, noise_like

EMBEDDED = Settings(video_vae="embedded", audio_vae="embedded")


def test_a_scene_is_drawn_once_however_often_its_clip_is(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    from_seed = Scene.from_seed
    monkeypatch.setattr(
        Scene,
        "from_seed",
        lambda seed, *args, **options: (drawn.append(seed), from_seed(seed, *args, **options))[1],
    )
    recipe = DataRecipe(num_frames=9, pool_size=32, reuse=4)
    clips = ClipSource(
        recipe, *_autoencoders(EMBEDDED), batch_size=2, patch_size=2, device=torch.device("cpu")
    )
    batches = [clips.batch(seed) for seed in range(10)]
    assert len(clips.pool) == len(drawn) == len(set(drawn)) < 20
    assert all(len(batch.captions) == 2 and batch.video.dtype == torch.float32 for batch in batches)


def test_the_pool_is_drawn_from_without_repetition() -> None:
    pool = Pool(4)
    pool.add(torch.arange(4.0).view(4, 1, 1), torch.arange(4.0).view(4, 1, 1), seed=7)
    video, audio, places = pool.draw(random.Random(0), 4)
    assert sorted(video.flatten().tolist()) == [0, 1, 2, 3]
    assert torch.equal(video, audio)
    assert [place[2] for place in places] == video.flatten().tolist()


def test_noise_is_a_function_of_the_seed() -> None:
    clean = torch.zeros(2, 3)
    first, second = (noise_like(clean, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, torch.randn(2, 3, generator=torch.Generator().manual_seed(1)))
