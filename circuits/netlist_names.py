"""Names and numbers as a SPICE netlist has them, and how its frozen dataclasses store them."""

from __future__ import annotations

import math
import re
from functools import lru_cache

GROUND = "0"


def number(value: float) -> str:
    """How every number of a deck is written: the shortest text that reads back as the same float64."""
    return repr(float(value))


@lru_cache(maxsize=1 << 16)  # an array repeats each node's name in every row and column
def plain_name(text: str) -> str:
    """`text` in lower case, if SPICE takes it as a name."""
    name = str(text).lower()
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"name {text!r}; use letters, digits and underscores only, such as h1_5")
    return name


@lru_cache(maxsize=1 << 16)
def node_path(text: str) -> str:
    """A node's name, in front of it the instances it lies within: "xlayer1.h3"; "gnd" is ground, "0"."""
    path = ".".join(plain_name(part) for part in str(text).split("."))
    return GROUND if path == "gnd" else path


def node_name(text: str) -> str:
    """The name of a node among the elements it joins; from within a subcircuit only ground is seen as well."""
    return GROUND if plain_name(text) == "gnd" else plain_name(text)


def store(owner: object, name: str, value: object) -> None:
    object.__setattr__(owner, name, value)  # the dataclasses are frozen


def store_finite(owner: object, name: str, positive: bool = False, zero: bool = True) -> None:
    """Make the field a float, if it is finite, and above zero or not zero where that is asked."""
    value = float(getattr(owner, name))
    if not math.isfinite(value) or (positive and value < 0) or (not zero and value == 0):
        wanted = (
            ("finite", ">= 0" if positive else "") if zero else ("finite", "> 0" if positive else "not 0")
        )
        label = f"{type(owner).__name__} {getattr(owner, 'name', '')}".strip()
        raise ValueError(
            f"{label}: {name} = {value}; choose a value that is {' and '.join(filter(None, wanted))}"
        )
    store(owner, name, value)
