"""Jobs for other processes, which must find them in a module; torch, seconds to import, only where a job needs it."""

import os
from pathlib import Path


def square(x: int) -> int:
    return x * x


def threads_or_refuse(x: int) -> int:
    """How many threads torch has here."""
    if x == 2:
        raise ValueError("two is too many")
    import torch

    return torch.get_num_threads()


def die(folder: Path, times: int, x: int) -> int:
    """Kill its own process at the first `times` attempts with x = 0; leave a file for each attempt."""
    attempts = len(list(folder.glob(f"{x}-*")))
    (folder / f"{x}-{attempts}").touch()
    if x == 0 and attempts < times:
        os._exit(1)
    return x
