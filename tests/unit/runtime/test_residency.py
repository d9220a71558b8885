"""Networks take turns on the device; what fits stays."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from torch import nn

from soundstage.core.errors import ResourceError
from soundstage.runtime.offload import StreamingPlan, stream
from soundstage.runtime.residency import Residency, bring, fit_together, in_use, send_home

DEVICE = torch.device("cpu")  # the home as well: what is on the device lies elsewhere in memory


def network(width):
    made = nn.Linear(width, width, bias=False).requires_grad_(False)
    made.home = made.weight.data_ptr()
    return made


def where(*networks):
    return ["home" if network.weight.data_ptr() == network.home else "device" for network in networks]


@pytest.fixture
def three():
    residency = Residency(DEVICE, budget=2 * 4 * 32 * 32)
    made = [network(32) for _ in range(3)]
    for number, one in enumerate(made):
        residency.manage(f"network {number}", one)
    return residency, made


def test_what_fits_stays(three):
    _, (a, b, _) = three
    bring(a)
    first = a.weight.data_ptr()
    bring(b)
    bring(a)
    assert where(a, b) == ["device", "device"]
    assert a.weight.data_ptr() == first  # not copied a second time


def test_those_that_were_not_used_for_longest_leave_first(three):
    residency, (a, b, c) = three
    bring(a)
    bring(b)
    bring(a)
    bring(c)
    assert where(a, b, c) == ["device", "home", "device"]
    assert residency.num_bytes == residency.budget


def test_what_is_not_used_leaves_where_others_need_the_room_for_more_than_weights(three):
    residency, (a, b, c) = three
    residency.spare = a.weight.nbytes
    with in_use(a, b):  # together they take more than what may stay unused
        assert where(a, b) == ["device", "device"]
    bring(b)
    assert where(a, b) == ["home", "device"]
    bring(c)
    assert where(a, b, c) == ["home", "home", "device"]
    residency.spare = 0
    bring(c)
    assert where(c) == ["device"]


def test_leaving_keeps_the_values(three):
    _, (a, *_) = three
    weight, before = a.weight, a.weight.clone()
    bring(a)
    assert a.weight is weight  # another place, the same tensor
    send_home(a)
    assert torch.equal(a.weight, before)


def test_a_network_larger_than_all_room_is_refused_with_a_cure(three):
    residency, _ = three
    with pytest.raises(ResourceError, match=r"the whale takes 0\.04 GB .*quantise"):
        residency.manage("whale", network(3200))


def test_a_network_without_a_place_is_left_alone():
    alone = network(4)
    bring(alone)
    send_home(alone)
    assert where(alone) == ["home"]


def test_a_streamed_network_counts_its_slots_and_what_is_around_the_blocks():
    net = nn.ModuleDict({"blocks": nn.ModuleList(network(32) for _ in range(8)), "outer": network(16)})
    stream(net, "blocks", StreamingPlan(device=torch.device("cpu")))
    residency = Residency(torch.device("cpu"), budget=10**6)
    residency.manage("net", net)
    bring(net)
    assert residency.num_bytes == 4 * (2 * 32 * 32 + 16 * 16)
    list(net["blocks"])
    send_home(net)
    assert not net["blocks"].is_out


def test_what_is_used_together_is_there_together(three):
    _, (a, b, c) = three
    bring(c)
    bring(a)
    with in_use(b, a):  # bringing b alone would have sent c away, bringing a then nothing
        assert where(a, b, c) == ["device", "device", "home"]
        bring(b)


def test_what_is_in_use_does_not_leave(three):
    _, (a, b, c) = three
    with in_use(a):
        bring(b)
        bring(c)
        assert where(a, b, c) == ["device", "home", "device"]
        refused = pytest.raises(ResourceError, match=r"used together take 0\.00 GB .* quantise more")
        with in_use(a), refused, in_use(b):
            bring(c)
        assert where(a)[0] == "device"
    bring(c)
    assert where(a, b, c) == ["home", "device", "device"]


def test_more_than_fits_together_is_refused_and_nothing_is_in_use_then(three):
    residency, (a, b, c) = three
    assert fit_together(a, b)
    assert not fit_together(a, b, c)
    with pytest.raises(ResourceError, match="used together"), in_use(a, b, c):
        pytest.fail("three fit where there is room for two")
    assert residency._pinned == []


class Slow:
    """A visitor that is seen on its way."""

    num_bytes = 10

    def __init__(self, events):
        self.events = events

    def enter(self):
        self.events.append("enter")
        threading.Event().wait(0.005)
        self.events.append("entered")

    def leave(self):
        self.events.append("leave")


def test_two_threads_do_not_fill_the_same_room():
    events = []
    residency = Residency(DEVICE, budget=10)
    visitors = [Slow(events) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            list(threads.map(residency.bring, visitors))
            assert residency.num_bytes <= residency.budget
    assert all(after == "entered" for before, after in pairwise(events) if before == "enter")
