"""Placements: the fastest that fits, phase by phase, and what to say when none does."""

import pytest

from soundstage.core.errors import RequestError, ResourceError
from soundstage.runtime.planning import Part, Phase, Task, plan_device
from soundstage.runtime.rates import KNOWN, known_gpu, typical_gpu

GB = 10**9


def task(**changes):
    """A model of 30 GB: text 12, transformer 16 in 32 blocks and a bit, decoder 2."""
    parts = [
        Part(name="text encoder", outer=GB, blocks=(GB // 2,) * 22),
        Part(name="transformer", outer=GB // 2, blocks=(GB // 2,) * 31),
        Part(name="video VAE", outer=2 * GB),
    ]
    phases = (
        Phase(name="encode", parts=("text encoder",), activations=GB // 10, seconds=1, sweeps=2),
        Phase(name="denoise", parts=("transformer",), activations=GB, seconds=10, sweeps=20),
        Phase(name="decode", parts=("video VAE",), activations=3 * GB, seconds=1),
    )
    return Task(parts={part.name: part for part in parts}, phases=phases, link=20 * GB, **changes)


@pytest.mark.parametrize(
    ("budget", "kind", "streamed"),
    [
        (40, "resident", {}),
        (33, "resident", {}),
        (32, "turns", {}),
        (20, "turns", {}),
        (16, "streamed", None),
        (8, "streamed", None),
    ],
)
def test_the_fastest_placement_that_fits_is_chosen(budget, kind, streamed):
    plan = plan_device(task(), budget * GB)
    assert plan.kind == kind
    assert plan.peak <= budget * GB
    if streamed is not None:
        assert plan.streamed == streamed


def test_nothing_is_faster_than_all_of_it_on_the_device():
    seconds = [plan_device(task(), budget * GB).seconds for budget in (40, 25, 19, 14, 10, 8)]
    assert seconds[0] == 12
    assert min(seconds[1:]) > 12


def test_as_many_blocks_stay_as_fit():
    plans = [plan_device(task(), budget * GB) for budget in (8, 10, 12)]
    staying = [plan.streamed["transformer"] for plan in plans]
    assert staying == sorted(set(staying))
    for plan in plans:
        assert plan.budget - plan.peak < GB // 2 + GB  # another block would not have fitted in every phase


def test_a_text_encoder_that_fits_is_not_streamed():
    assert "text encoder" not in plan_device(task(), 20 * GB).streamed
    assert plan_device(task(), 12 * GB).streamed["text encoder"] == 0


def test_phases_count_who_is_there_and_who_stayed():
    plan = plan_device(task(), 22 * GB)
    weights = {planned.phase.name: planned.weights for planned in plan.phases}
    assert weights == {"encode": 12 * GB, "denoise": 16 * GB, "decode": 18 * GB}  # the text encoder made room
    assert plan.phases[1].seconds == pytest.approx(10 + 16 / 20)  # it is waited for


def test_copies_hide_behind_computation_or_do_not():
    slow, fast = task(), task()
    streaming = plan_device(slow, 8 * GB, "stream")
    assert streaming.streamed["transformer"] == 0
    sweep = 31 * GB // 2 / (20 * GB)
    assert streaming.phases[1].seconds == pytest.approx(max(10, 20 * sweep) + 1.5 / 20)
    assert fast.phases[1].seconds < 20 * sweep  # here the copies are what takes time


def test_the_driver_takes_its_share_in_every_phase():
    plan = plan_device(task(reserved=GB), 34 * GB)
    assert all(planned.peak == GB + planned.weights + planned.phase.activations for planned in plan.phases)


@pytest.mark.parametrize(
    ("offload", "kind"), [("stream", "streamed"), ("disk", "streamed"), ("none", "resident")]
)
def test_what_is_asked_for_is_done(offload, kind):
    plan = plan_device(task(), 40 * GB, offload)
    assert plan.kind == kind
    assert plan.on_disk == (offload == "disk")


def test_what_cannot_fit_is_an_error_that_says_how_much_would_be_needed():
    with pytest.raises(ResourceError, match=r"4\.0 GB .*at least 5\.\d GB"):
        plan_device(task(), 4 * GB)
    with pytest.raises(ResourceError, match=r"--offload none: at least 33\.0 GB"):
        plan_device(task(), 20 * GB, "none")


def test_gpus_are_found_by_any_spelling():
    assert known_gpu("NVIDIA GeForce RTX 4090").name == "RTX 4090"
    assert known_gpu("rtx-4090") is KNOWN["RTX 4090"]
    assert typical_gpu(16 * GB).memory == 16 * GB
    with pytest.raises(RequestError, match=r"RTX 409.*RTX 4090"):
        known_gpu("RTX 409")
