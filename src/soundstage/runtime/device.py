"""Where to compute: a device by name, checked to be there."""

import torch

from soundstage.core.errors import RequestError


def find_device(name: str | torch.device) -> torch.device:
    """Find a device by name; "auto" takes a GPU if there is one.

    Raises:
        RequestError: This machine has no such device; says which it has.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise RequestError(f"device {str(name)!r} is not here; there is {', '.join(devices)}") from error
    return device
