"""Wired arrays against ngspice: the same currents at all terminals, and voltages at all cells."""

import numpy as np
import pytest
import torch

from circuits.couplings import LadderCoupling, Lines
from circuits.netlist import write
from circuits.netlist_parser import parse
from circuits.ngspice import run
from circuits.spice_crossbars import PORTS, netlist_of_array, tiles
from circuits.wired_array import WiredArray
from circuits.wires import AccessTransistor, Wires
from tests.marks import needs_ngspice


def array(shape, wires, some=False):
    rng = torch.Generator().manual_seed(0)
    cells = torch.rand(shape, generator=rng, dtype=torch.float64) * 1e-3 + 1e-5
    return WiredArray(cells, wires, torch.rand(shape, generator=rng) < 0.6 if some else None)


@needs_ngspice
@pytest.mark.parametrize(
    ("shape", "wires"),
    [
        ((1, 1), Wires(2.0, 3.0)),
        ((5, 3), Wires(2.0, 3.0)),
        ((3, 6), Wires(2.0, 30.0, source_ohm=100.0, load_ohm=50.0)),
        ((4, 4), Wires(20.0, 3.0, load_ohm=5.0, access=AccessTransistor(1e3, 1e-6))),
    ],
)
def test_a_wired_array_draws_what_its_circuit_draws(shape, wires):
    wired = array(shape, wires, some=wires.access is not None)
    rng = np.random.default_rng(0)
    v_in, v_out = rng.uniform(-1, 1, shape[1]), rng.uniform(-1, 1, shape[0])
    netlist = netlist_of_array(wired, v_in, v_out)
    assert parse(write(netlist)) == netlist
    solution = run(netlist)
    into_in, into_out = wired.currents(torch.from_numpy(v_in)[None], torch.from_numpy(v_out)[None])
    found_in = [-solution.amperes(f"vin{j}").item() for j in range(shape[1])]
    found_out = [-solution.amperes(f"vout{i}").item() for i in range(shape[0])]
    np.testing.assert_allclose(found_in, into_in[0], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found_out, into_out[0], rtol=1e-9, atol=1e-15)
    if wires.access is None:
        cells = wired.cell_volts(torch.from_numpy(v_in)[None], torch.from_numpy(v_out)[None])[0]
        for (i, j), volts in np.ndenumerate(cells.numpy()):
            across = solution.volts(f"xarray.w{j}_{i}") - solution.volts(f"xarray.b{i}_{j}")
            np.testing.assert_allclose(across, [volts], rtol=0, atol=1e-12)


def test_wires_of_an_array_with_too_many_ports_are_refused():
    lines = Lines(PORTS, doubled=False, bias_volts=None)
    weight = torch.full((2, PORTS), 1e-5)
    coupling = LadderCoupling(weight, lines, Wires())
    with pytest.raises(ValueError, match="cannot be cut into subcircuits"):
        list(tiles(coupling, [f"x{j}" for j in range(PORTS)], ["h1_0", "h1_1"]))
