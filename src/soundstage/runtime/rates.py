"""How fast devices are: known GPUs from a table, others by a quick measurement.

Rates are what is reached, not what is printed on the box. H100 and H200 are measured or published rates of
matrix products and FlashAttention; the others are 85 % of the dense peak of their data sheets, 80 % for
attention, and have not been measured. "Link" is host to device with page-locked memory. From other memory and
from disk copies are slower, by what is assumed here for every machine.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from soundstage.core.config import nearest
from soundstage.core.errors import RequestError
from soundstage.nn.kernels.choice import FP8_CAPABILITY

TERA, GIGA = 1e12, 1e9
CONTEXT_BYTES = int(0.8 * GIGA)  # of a GPU: the driver's context and the libraries' workspaces
PAGEABLE = 0.4  # of the link's rate, from memory that is not page-locked; assumed
DISK = 3 * GIGA  # bytes per second of a solid-state disk; assumed
GPU_EFFICIENCY, CPU_EFFICIENCY = 0.2, 0.7  # of the matrix rate; the latter measured with the embedded model
HOST_SHARE = 0.9  # of the memory that is available, which weights may wait in
PROBE = 768  # extent of the product that measures an unknown device
PROBES = 3


@dataclass(frozen=True, kw_only=True)
class DeviceRates:
    """What one device does per second."""

    name: str
    source: str  # of the numbers, for people
    memory: int  # bytes
    product: float | int  # bfloat16 matrix products, operations
    attention: float | int  # operations
    bandwidth: float | int  # bytes
    link: float | int  # bytes, host to device; infinite where they are one
    product_fp8: float | int | None = None  # operations, where there are such units
    reserved: int = CONTEXT_BYTES
    disk: float | int = DISK  # bytes
    efficiency: float = GPU_EFFICIENCY  # of convolutions over few channels, by the matrix rate

    @property
    def convolution(self) -> float | int:
        """Operations of convolutions over few channels."""
        return self.efficiency * self.product

    @property
    def pageable(self) -> float | int:
        """Bytes from host memory that is not page-locked."""
        return PAGEABLE * self.link

    def product_rate(self, *, is_fp8: bool) -> float | int:
        """Return the rate of matrix products."""
        return self.product_fp8 if is_fp8 and self.product_fp8 is not None else self.product


def _known(
    name: str,
    gigabytes: int,
    product: int,
    fp8: int | None,
    attention: int,
    bandwidth: float | int,
    link: int,
) -> DeviceRates:
    return DeviceRates(
        name=name,
        source="table of known GPUs",
        memory=int(gigabytes * GIGA),
        product=product * TERA,
        product_fp8=None if fp8 is None else fp8 * TERA,
        attention=attention * TERA,
        bandwidth=bandwidth * TERA,
        link=link * GIGA,
    )


_ALL = (
    _known("RTX 3060", 12, 43, None, 35, 0.31, 22),
    _known("RTX 4070", 12, 50, 99, 40, 0.43, 22),
    _known("RTX 4080", 16, 83, 166, 66, 0.61, 22),
    _known("RTX 3090", 24, 60, None, 48, 0.80, 22),
    _known("RTX 4090", 24, 140, 280, 125, 0.86, 22),
    _known("RTX 5090", 32, 178, 356, 145, 1.52, 45),
    _known("L40S", 48, 154, 308, 145, 0.73, 22),
    _known("A100", 80, 265, None, 220, 1.70, 22),
    _known("H100", 80, 720, 1350, 620, 3.0, 45),
    _known("H200", 141, 788, 1450, 650, 4.3, 45),
    _known("B200", 180, 1900, 3800, 1100, 6.8, 45),
)
KNOWN: Mapping[str, DeviceRates] = {rates.name: rates for rates in _ALL}


def known_gpu(name: str) -> DeviceRates:
    """Find a GPU of the table.

    Raises:
        RequestError: It is not in the table.
    """
    found = _in_table(name)
    if found is None:
        listed = ", ".join(KNOWN)
        raise RequestError(f"GPU {name!r} is not known{nearest(name, KNOWN)}; known are {listed}")
    return found


def typical_gpu(memory: int) -> DeviceRates:
    """Choose a GPU of the table that has about as much memory, the fastest of several."""
    least = min(abs(rates.memory - memory) for rates in _ALL)
    return [rates for rates in _ALL if abs(rates.memory - memory) == least][-1]


def check_vram(num_bytes: int | None, rates: DeviceRates) -> None:
    """Refuse more memory than a device has; up to a tenth more is what GB and GiB differ by.

    Raises:
        RequestError: It has less.
    """
    if num_bytes is not None and num_bytes > 1.1 * rates.memory:
        raise RequestError(
            f"vram={num_bytes / GIGA:.3g}GB is more than {rates.name} has: {rates.memory / GIGA:.3g} GB"
        )


def rates_of(device: torch.device) -> DeviceRates:
    """Take a device's rates from the table, or measure them in a moment."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found = _in_table(properties.name)
        return measured(device, properties.total_memory) if found is None else found
    return measured(device, _host_memory())


def measured(device: torch.device, memory: int) -> DeviceRates:
    """Time a matrix product and a copy; fractions of a second."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    size = PROBE if device.type == "cpu" else 8 * PROBE
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    product = 2 * size**3 / _seconds(lambda: a @ b, device)
    bandwidth = 2 * a.nbytes / _seconds(lambda: a.clone(), device)
    is_gpu = device.type == "cuda"
    has_fp8 = is_gpu and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    return DeviceRates(
        name=torch.cuda.get_device_name(device) if is_gpu else "CPU",
        source=f"measured now: a {size}x{size} matrix product in {str(dtype).removeprefix('torch.')}",
        memory=memory,
        product=product,
        product_fp8=product if has_fp8 else None,  # they are faster, by what has not been measured
        attention=0.8 * product,
        bandwidth=bandwidth,
        link=22 * GIGA if is_gpu else float("inf"),
        reserved=CONTEXT_BYTES if is_gpu else 0,
        efficiency=GPU_EFFICIENCY if is_gpu else CPU_EFFICIENCY,
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float | int:
    """Time some work, the fastest of a few runs after one that does not count."""
    took = []
    for _ in range(1 + PROBES):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
    return max(min(took[1:]), 1e-9)


def _in_table(name: str) -> DeviceRates | None:
    """Find the longest name of the table inside a name such as "NVIDIA GeForce RTX 4090"."""
    plain = name.upper().replace("-", " ")
    hits = [rates for rates in _ALL if rates.name.upper() in plain]
    return max(hits, key=lambda rates: len(rates.name), default=None)


def usable_memory(device: torch.device) -> int:
    """Return the bytes of a device that may be used: what is free, and what its driver took for this process.

    Of a CPU that is what can be had without swapping.
    """
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return free + CONTEXT_BYTES


def host_budget() -> int:
    """Return the bytes of host memory that weights may wait in: most of what is available now."""
    return int(HOST_SHARE * available_memory())


def available_memory() -> int:
    """Return the bytes that can be had without swapping; all there are where nobody tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return _host_memory()


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
