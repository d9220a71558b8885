"""Placements: the fastest that fits, phase by phase, and what to say when none does."""

from dataclasses import replace

import pytest
import torch

from soundstage.core.errors import RequestError, ResourceError
from soundstage.runtime import rates
from soundstage.runtime.planning import Part, Phase, Task, Way, adjust, plan_device
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


def with_a_large_visitor():
    """As `task`, with a network of 5 GB that needs nothing beside it, where denoising needs 4 GB."""
    base = task()
    connect = Phase(name="connect", parts=("connectors",), activations=0, seconds=1)
    encode, denoise, decode = base.phases
    phases = (encode, connect, replace(denoise, activations=4 * GB), decode)
    return replace(
        base, parts={**base.parts, "connectors": Part(name="connectors", outer=5 * GB)}, phases=phases
    )


def test_the_largest_visitor_and_the_largest_activations_need_not_have_room_at_once():
    work = with_a_large_visitor()
    plan = plan_device(work, 12 * GB)
    assert (
        plan.streamed["transformer"] == 13
    )  # of 0.5 GB, beside 4 of activations, 0.5 around them and 2 slots
    assert plan.visitors == 5 * GB
    assert plan.spare == 1.5 * GB
    assert [planned.weights / GB for planned in plan.phases] == [8.5, 11.5, 8, 8.5]
    twice = adjust(
        replace(work, phases=work.phases * 2), plan
    )  # nobody stays who would be in the next one's way
    assert twice.peak == plan.peak == 12 * GB


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


@pytest.mark.parametrize(("capability", "has_fp8"), [((8, 6), False), ((8, 9), True), ((12, 0), True)])
def test_a_gpu_that_is_measured_multiplies_8_bit_floats_if_it_can(monkeypatch, capability, has_fp8):
    monkeypatch.setattr(rates, "_seconds", lambda *_: 1e-3)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.empty(8))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "another GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found = rates.measured(torch.device("cuda"), 16 * GB)
    assert (found.product_fp8 is not None) == has_fp8
    assert found.product_rate(is_fp8=True) == found.product


def used_together():
    """As `task`, with two networks more that are used while the decoder works."""
    base = task()
    more = {name: Part(name=name, outer=9 * GB) for name in ("audio VAE", "vocoder")}
    decode = Phase(name="decode", parts=("video VAE", *more), activations=GB, seconds=1)
    return replace(base, parts={**base.parts, **more}, phases=(*base.phases[:2], decode))


@pytest.mark.parametrize("budget", [40, 24, 22, 21.5])
@pytest.mark.parametrize("offload", ["auto", "stream"])
def test_networks_that_are_used_together_are_there_together(budget, offload):
    plan = plan_device(used_together(), int(budget * GB), offload)
    assert plan.kind != "resident"
    assert plan.visitors >= 20 * GB
    assert plan.phases[-1].weights >= 20 * GB
    assert plan.peak <= plan.budget


def test_networks_that_are_used_together_do_not_fit_one_after_the_other():
    with pytest.raises(ResourceError, match=r"at least 21\.0 GB"):
        plan_device(used_together(), 20 * GB)


def with_ways(*ways):
    base = task()
    return replace(base, phases=(*base.phases[:2], replace(base.phases[2], activations=0, ways=ways)))


WAYS = (Way(num_bytes=20 * GB), Way(num_bytes=4 * GB), Way(num_bytes=GB, is_exact=False))


@pytest.mark.parametrize(
    ("budget", "taken", "is_exact"),
    [(80, 20, True), (34.5, 4, True), (18, 4, True), (6.1, 4, True), (5, 1, False)],
)
def test_a_phase_takes_the_best_way_that_what_is_left_allows(budget, taken, is_exact):
    plan = plan_device(with_ways(*WAYS), int(budget * GB))
    decode = plan.phases[-1]
    assert (decode.activations, decode.is_exact) == (taken * GB, is_exact)
    assert taken * GB <= plan.room <= plan.budget - decode.weights


def test_networks_leave_the_device_rather_than_that_a_way_is_taken_that_is_not_exact():
    """All weights and the tiles would fit, but frames that are not cut would not."""
    plan = plan_device(with_ways(*WAYS), 32 * GB)
    assert plan.kind == "turns"
    assert plan.phases[-1].is_exact


def test_the_least_that_is_needed_is_that_of_the_smallest_way():
    with pytest.raises(ResourceError, match=r"at least 3\.0 GB"):  # the decoder and one tile
        plan_device(with_ways(*WAYS), 2 * GB)


@pytest.mark.parametrize(("host", "on_disk"), [(40, False), (24, False), (20, True), (3.5, True)])
def test_what_host_memory_cannot_hold_waits_on_disk(host, on_disk):
    plan = plan_device(task(), 12 * GB, host_budget=int(host * GB))
    assert plan.on_disk == on_disk
    assert plan.host <= host * GB


def test_what_stays_on_the_device_does_not_wait_in_host_memory():
    some, none = plan_device(task(), 12 * GB), plan_device(task(), 8 * GB, "stream")
    stay = some.streamed["transformer"] * GB // 2
    assert stay > 0
    assert none.host == 30 * GB
    assert some.host == 30 * GB - stay
    assert plan_device(task(), 40 * GB).host == 0


def test_networks_wait_in_host_memory_though_blocks_are_on_disk():
    plan = plan_device(task(), 8 * GB, "disk")
    assert plan.host == 30 * GB - 11 * GB - 31 * GB // 2
    with pytest.raises(ResourceError, match=r"3\.0 GB of host memory .*at least 3\.5 GB"):
        plan_device(task(), 8 * GB, host_budget=3 * GB)


def test_weights_come_as_fast_as_where_they_wait_allows():
    base = replace(task(), pageable=10 * GB, disk=2 * GB)
    streamed, mapped = (plan_device(base, 8 * GB, offload).phases[1] for offload in ("stream", "disk"))
    sweep = 31 * GB // 2
    assert streamed.seconds == pytest.approx(
        20 * sweep / (20 * GB) + 1.5 / 10
    )  # the outer part is not locked
    assert mapped.seconds == pytest.approx(20 * sweep / (2 * GB) + 1.5 / 10)


def test_a_model_that_is_placed_makes_room_for_a_larger_clip_or_says_what_it_takes():
    placed = plan_device(task(), 22 * GB)
    assert placed.phases[-1].weights == 18 * GB  # the transformer stays while the decoder works
    base = task()
    larger = [
        replace(base, phases=(*base.phases[:2], replace(base.phases[2], activations=beside * GB)))
        for beside in (5, 20, 21)
    ]
    again = adjust(larger[0], placed)
    assert (again.kind, again.streamed) == (placed.kind, placed.streamed)
    assert again.phases[-1].weights == 2 * GB
    assert again.peak <= again.budget
    assert adjust(larger[1], placed).peak == 22 * GB
    with pytest.raises(ResourceError, match=r"as the model is placed: at least 23\.0 GB"):
        adjust(larger[2], placed)


def test_a_text_encoder_that_fits_whole_keeps_no_block_from_staying():
    plan = plan_device(task(), 15 * GB)  # 12 of 15 GB would be the text encoder's
    assert plan.streamed["text encoder"] == 0
    assert plan.streamed["transformer"] > 15


def test_a_batch_takes_room_that_is_left_and_decides_nothing_about_decoding():
    base = task()
    ways = tuple(Way(num_bytes=n * GB, rows_at_once=n + 1) for n in (3, 1, 0))
    denoise = replace(base.phases[1], ways=ways, num_rows=4)
    batched = replace(base, phases=(base.phases[0], denoise, base.phases[2]))
    for budget in (40, 20, 16, 8):
        plan, alone = plan_device(batched, budget * GB), plan_device(base, budget * GB)
        assert (plan.kind, plan.streamed) == (alone.kind, alone.streamed)
        assert plan.peak <= budget * GB
        assert plan.room is None
        room = budget * GB - plan.phases[1].weights - GB
        best = next(way for way in ways if way.num_bytes <= 0.8 * room)
        assert plan.phases[1].rows_at_once == best.rows_at_once
        assert plan.phases[1].activations == GB + best.num_bytes


def with_loras(**fields):
    """As `task`, with LoRAs in the transformer."""
    base = task()
    part = replace(base.parts["transformer"], **fields)
    return replace(base, parts={**base.parts, "transformer": part})


def test_branches_are_in_slots_and_wait_in_host_memory_where_blocks_are_on_disk():
    plain = plan_device(task(), 8 * GB, "disk")
    branched = plan_device(with_loras(mapped=(GB * 6 // 10,) * 31, beside=31 * GB // 10), 8 * GB, "disk")
    assert branched.phases[1].weights - plain.phases[1].weights == 2 * GB // 10  # two slots
    assert branched.host - plain.host == 31 * GB // 10
    streamed = plan_device(with_loras(mapped=(GB,) * 31, beside=31 * GB), 8 * GB, "stream")
    assert streamed.host == plan_device(task(), 8 * GB, "stream").host


@pytest.mark.parametrize(("budget", "copies"), [(40, 8 * GB), (20, 8 * GB), (8, 8 * GB)])
def test_what_loras_are_added_into_waits_in_host_memory_as_it_was(budget, copies):
    plain, fused = (plan_device(one, budget * GB) for one in (task(), with_loras(copies=copies)))
    assert fused.host - plain.host == copies
    assert fused.peak == plain.peak
