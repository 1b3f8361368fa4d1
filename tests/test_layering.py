"""The four floors of the house: an import may point down, never up."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "devices": set(),
    "circuits": {"devices"},
    "mep_sim": {"devices", "circuits"},
    "experiments": {"devices", "circuits", "mep_sim"},
}
OURS = {*MAY_IMPORT, "tests"}


def imported_packages(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Top-level packages that a module within `package` imports, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            above = (*package[: len(package) - node.level + 1], *(node.module or "").split("."))
            yield above[0] or node.names[0].name


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_imports_point_downwards(floor):
    allowed = MAY_IMPORT[floor] | {floor}
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files, f"no floor {floor}"
    upward = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported_packages(path.read_text(), path.relative_to(ROOT).parent.parts)
        if name in OURS - allowed
    ]
    assert not upward, "; ".join(upward)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import mep_sim.trace as t", ["mep_sim"]),
        ("def f():\n    from devices.base import Device", ["devices"]),
        ("from . import base", ["circuits"]),
        ("from .. import devices", ["devices"]),
        ("from ..devices.base import Device", ["devices"]),
        ("import torch, tests", ["torch", "tests"]),
    ],
)
def test_every_form_of_import_is_seen(source, found):
    assert list(imported_packages(source, ("circuits",))) == found
