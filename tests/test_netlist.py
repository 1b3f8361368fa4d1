"""Netlists: names as SPICE has them, mistakes refused by name, a deck that people can read."""

import math

import pytest

from circuits.netlist import (
    CCCS,
    PWL,
    VCCS,
    VCVS,
    Capacitor,
    CurrentSource,
    Diode,
    DiodeModel,
    Instance,
    Netlist,
    OperatingPoint,
    Rectifier,
    Resistor,
    Subcircuit,
    TransientAnalysis,
    VoltageSource,
    write,
)

SUPPLY = VoltageSource("supply", "top", "0", 1.0)
LOAD = Resistor("load", "top", "gnd", 1e3)
TRANSIENT = TransientAnalysis(1e-9, 1e-6, 1e-8)


def test_names_are_lower_case_with_the_letter_of_their_kind_and_ground_is_0():
    element = Resistor("Load", "Top", "GND", 1e3)
    assert (element.name, element.a, element.b) == ("rload", "top", "0")
    assert Resistor("R1", "a", "b", 1.0).name == "r1"
    assert CCCS("f1", "a", "b", "Sense", 2.0).source == "vsense"
    assert Instance("first", ("A", "gnd"), "Layer").terminals == ("a", "0")


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda v: Resistor("r1", "a", "b", v),
        lambda v: Capacitor("c1", "a", "b", v),
        lambda v: DiodeModel("d", v),
        lambda v: DiodeModel("d", 1e-14, v),
        lambda v: TransientAnalysis(v, 1e-6, 1e-8),
        lambda v: TransientAnalysis(1e-9, v, 1e-8),
        lambda v: TransientAnalysis(1e-9, 1e-6, v),
    ],
)
def test_what_must_be_positive_is_refused_otherwise(make, value):
    with pytest.raises(ValueError, match=f"= {value}; choose a value that is finite and > 0"):
        make(value)


@pytest.mark.parametrize(
    "make",
    [
        lambda v: VoltageSource("v1", "a", "b", v),
        lambda v: CurrentSource("i1", "a", "b", v),
        lambda v: VCVS("e1", "a", "b", "c", "d", v),
        lambda v: VCCS("g1", "a", "b", "c", "d", v),
        lambda v: CCCS("f1", "a", "b", "v1", v),
        lambda v: Capacitor("c1", "a", "b", 1.0, v),
        lambda v: PWL(((0.0, 0.0), (1.0, v))),
        lambda v: Netlist("t", [SUPPLY, LOAD], options={"reltol": v}),
        lambda v: Netlist("t", [SUPPLY, LOAD], analysis=TRANSIENT, initial_volts={"top": v}),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_must_be_finite_is_refused_otherwise(make, value):
    with pytest.raises(ValueError, match="finite"):
        make(value)


@pytest.mark.parametrize("kind", [VCVS, VCCS])
def test_a_gain_of_zero_is_refused(kind):
    with pytest.raises(ValueError, match="not 0"):
        kind("k1", "a", "b", "c", "d", 0.0)


def test_a_rectifier_conducts_better_forward():
    with pytest.raises(ValueError, match=r"off_siemens = 1\.0; choose less than on_siemens"):
        Rectifier("b1", "a", "0", 1.0, 1.0)


@pytest.mark.parametrize("points", [((0, 1),), ((1e-9, 0), (1e-9, 1)), ((-1, 0), (1, 1))])
def test_a_waveform_needs_rising_times_from_zero_on(points):
    with pytest.raises(ValueError, match="PWL"):
        PWL(points)


@pytest.mark.parametrize("name", ["", "a b", "r(1)", "a.b", "x=1"])
def test_names_that_spice_would_take_apart_are_refused(name):
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        Resistor(name, "a", "b", 1.0)


CELL = Subcircuit("cell", ("a", "b"), [Resistor("r1", "a", "b", 1.0)])
MODEL = DiodeModel("shockley", 1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Netlist("t", [SUPPLY, LOAD, Resistor("LOAD", "top", "0", 2.0)]), "'rload' is there twice"),
        (lambda: Netlist("t", [SUPPLY, LOAD], [CELL, CELL]), "'cell' is there twice"),
        (lambda: Netlist("t", [SUPPLY, LOAD], models=[MODEL, MODEL]), "'shockley' is there twice"),
        (lambda: Netlist("t", [SUPPLY, Diode("d1", "top", "0", "zener")]), "no model 'zener'"),
        (lambda: Netlist("t", [SUPPLY, Instance("x1", ("top", "0"), "box")]), "no subcircuit 'box'"),
        (lambda: Netlist("t", [SUPPLY, Instance("x1", ("top",), "cell")], [CELL]), "1 nodes for the 2 ports"),
        (lambda: Netlist("t", [SUPPLY, LOAD, CCCS("f1", "top", "0", "v9", 1.0)]), "no voltage source 'v9'"),
        (lambda: Netlist("t", []), "no elements"),
        (lambda: Netlist("", [SUPPLY, LOAD]), "title ''"),
        (lambda: Netlist("a\nb", [SUPPLY, LOAD]), "title"),
        (lambda: Netlist("t", [SUPPLY, LOAD], saved=["bottom"]), "saved: no node bottom"),
        (lambda: Netlist("t", [SUPPLY, LOAD], saved=[]), "saved"),
        (lambda: Netlist("t", [SUPPLY, LOAD], initial_volts={"top": 1.0}), "operating point has no start"),
        (lambda: Subcircuit("s", ("a", "A"), [LOAD]), "'a' is there twice"),
        (lambda: Subcircuit("s", (), [LOAD]), "no ports"),
        (lambda: Subcircuit("s", ("a", "0"), [LOAD]), "ground is no port"),
    ],
)
def test_mistakes_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_subcircuit_within_itself_is_refused():
    inner = Subcircuit("inner", ("a",), [Instance("x1", ("a",), "outer")])
    outer = Subcircuit("outer", ("a",), [Instance("x1", ("a",), "inner")])
    with pytest.raises(ValueError, match="contains itself: inner > outer > inner"):
        Netlist("t", [SUPPLY, LOAD], [inner, outer])


@pytest.mark.parametrize(
    "element",
    [
        Capacitor("c1", "top", "n", 1e-12),
        CurrentSource("i1", "top", "n", 1e-3),
        VCCS("g1", "top", "n", "top", "0", 1.0),
        CCCS("f1", "top", "n", "supply", 1.0),
        VCVS("e1", "top", "0", "n", "0", 2.0),
    ],
)
def test_a_node_without_a_dc_path_to_ground_is_named(element):
    with pytest.raises(ValueError, match="node n floats"):
        Netlist("t", [SUPPLY, LOAD, element])


@pytest.mark.parametrize(
    "element",
    [
        Resistor("r1", "top", "n", 1.0),
        VoltageSource("v1", "top", "n", 0.0),
        VCVS("e1", "n", "0", "top", "0", 2.0),
        Diode("d1", "n", "top", "shockley"),
        Instance("x1", ("n", "top"), "cell"),
    ],
)
def test_what_carries_direct_current_holds_a_node(element):
    Netlist("t", [SUPPLY, LOAD, Capacitor("c1", "n", "0", 1e-12), element], [CELL], [MODEL])


def test_paths_to_ground_are_followed_through_nested_subcircuits():
    grounded = Subcircuit(
        "grounded", ("p", "q"), [Resistor("r1", "p", "0", 1.0), Capacitor("c1", "p", "q", 1.0)]
    )
    box = Subcircuit("box", ("p", "q"), [Instance("x1", ("p", "q"), "grounded")])
    held = Instance("x1", ("n", "top"), "box")
    Netlist("t", [SUPPLY, held], [box, grounded])
    with pytest.raises(ValueError, match="node n floats"):
        Netlist("t", [SUPPLY, Instance("x1", ("top", "n"), "box")], [box, grounded])
    afloat = Subcircuit("afloat", ("p",), [Resistor("r1", "p", "0", 1.0), Capacitor("c1", "p", "m", 1.0)])
    with pytest.raises(ValueError, match="subcircuit afloat: node m floats"):
        Netlist("t", [SUPPLY, LOAD], [afloat])


def test_nodes_within_instances_are_named_by_their_path():
    inner = Subcircuit("inner", ("p",), [Resistor("r1", "p", "mid", 1.0), Resistor("r2", "mid", "0", 1.0)])
    outer = Subcircuit("outer", ("p",), [Instance("deep", ("p",), "inner")])
    elements = [SUPPLY, Instance("a", ("top",), "outer")]
    assert Netlist("t", elements, [inner, outer], saved=["XA.Xdeep.MID"]).saved == ("xa.xdeep.mid",)
    for path in ("xa.xdeep.p", "xa.mid", "xb.mid", "xa.xdeep.0"):
        with pytest.raises(ValueError, match="saved"):
            Netlist("t", elements, [inner, outer], saved=[path])


def test_a_deck_as_people_read_it():
    netlist = Netlist(
        "Half-wave rectifier",
        [
            VoltageSource("in", "x", "0", PWL(((0, 0), (1e-9, 0.1)))),
            Resistor("1", "x", "h1_10", 1e3),
            Resistor("long", "h1_10", "0", 0.1 + 0.2),
            Instance("clip", ("h1_10",), "clipper"),
        ],
        [
            Subcircuit(
                "clipper", ("h",), [Diode("d1", "h", "0", "shockley"), Capacitor("c1", "h", "0", 1e-12, 0.5)]
            )
        ],
        [DiodeModel("shockley", 1e-14, 1.5)],
        {"reltol": 1e-9},
        TRANSIENT,
        {"h1_10": 0.5},
        ["x", "h1_10"],
    )
    assert write(netlist) == (
        "Half-wave rectifier\n"
        "\n"
        "* ---- options\n"
        ".options reltol=1e-09\n"
        "\n"
        "* ---- models\n"
        ".model shockley D(IS=1e-14 N=1.5 RS=0.0)\n"
        "\n"
        "* ---- subcircuit clipper: 1 Diode, 1 Capacitor\n"
        ".subckt clipper h\n"
        "d1 h 0 shockley\n"
        "c1 h 0 1e-12 IC=0.5\n"
        ".ends clipper\n"
        "\n"
        "* ---- circuit: 1 VoltageSource, 2 Resistor, 1 Instance\n"
        "vin x 0 PWL(0.0 0.0 1e-09 0.1)\n"
        "r1    x     h1_10 1000.0\n"
        "rlong h1_10 0     0.30000000000000004\n"
        "xclip h1_10 clipper\n"
        "\n"
        "* ---- analysis\n"
        ".ic v(h1_10)=0.5\n"
        ".tran 1e-09 1e-06 0 1e-08 UIC\n"
        ".save v(x) v(h1_10)\n"
        ".end\n"
    )


def test_long_cards_go_on_in_lines_of_at_most_a_hundred_characters():
    wave = PWL(tuple((step * 1e-9, step / 7) for step in range(50)))
    netlist = Netlist("t", [VoltageSource("v1", "a", "0", wave)], analysis=OperatingPoint())
    lines = write(netlist).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("+ ") for line in lines) >= 10
