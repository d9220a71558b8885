"""Named random generators: one per purpose, so that one modality cannot shift the other.

All noise is drawn on the CPU in float32 and moved, so one seed gives one result on every device.
"""

import hashlib

import torch


def named_seed(seed: int, name: str) -> int:
    """Derive the seed of the generator `name`; stable across versions and machines."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch wants a signed 64-bit integer


def generator(seed: int, name: str) -> torch.Generator:
    """Make the CPU generator for one purpose: "video", "audio", "sampler.video", "decoder" ..."""
    return torch.Generator(device="cpu").manual_seed(named_seed(seed, name))
