"""docs/circuits.md as one program, and the README's part of it: what they print is what stands there."""

from __future__ import annotations

import contextlib
import io
import math
import re
from pathlib import Path

import pytest

from circuits import ngspice
from circuits.netlist_parser import parse
from tests.marks import needs_ngspice

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
DOCUMENT = BLOCK.findall((ROOT / "docs" / "circuits.md").read_text())
README = [code for code, _ in BLOCK.findall((ROOT / "README.md").read_text()) if "ResistiveCircuit" in code]
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def asks_ngspice(code: str) -> bool:
    return "import operating_points" in code


def ran(code: str, names: dict[str, object]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


@pytest.fixture(scope="module")
def outputs():
    """What every block prints; those that ask ngspice only where it is."""
    names: dict[str, object] = {}
    return [
        None if asks_ngspice(code) and not ngspice.available() else ran(code, names) for code, _ in DOCUMENT
    ]


def assert_reads_as(found: str, expected: str, within: float) -> None:
    """The same words in the same order, and numbers apart by no more than a share of them."""
    assert NUMBER.sub("#", found).split() == NUMBER.sub("#", expected).split()
    for one, other in zip(NUMBER.findall(found), NUMBER.findall(expected), strict=True):
        assert math.isclose(float(one), float(other), rel_tol=within), (one, other)


def test_numbers_are_compared_as_numbers():
    assert_reads_as("r0 a 1.0e-04 V", "r0  a 1.05e-4 V", within=0.1)
    for found in ("r0 a 1.3e-04 V", "r0 b 1.0e-04 V", "r0 a -1.0e-04 V"):
        with pytest.raises(AssertionError):
            assert_reads_as(found, "r0 a 1.0e-4 V", within=0.1)


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(k, marks=needs_ngspice if asks_ngspice(code) else ())
        for k, (code, _) in enumerate(DOCUMENT)
    ],
)
def test_the_document_prints_what_it_says(outputs, index):
    _, expected = DOCUMENT[index]
    is_deck = ".subckt" in expected
    assert_reads_as(outputs[index], expected, within=1e-9 if is_deck else 0.1)
    if is_deck:
        assert parse(outputs[index]) == parse(expected)


def test_the_readme_builds_trains_and_exports_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = README
    names: dict[str, object] = {}
    ran(code, names)
    assert names["rest"].converged.all()
    low, high = names["circuit"].window
    for weight in names["circuit"].parameters():
        assert low <= weight.min()
        assert weight.max() <= high
    netlist = parse((tmp_path / "network.cir").read_text())
    assert netlist.title == "Resistive network 64-32-20, free"
