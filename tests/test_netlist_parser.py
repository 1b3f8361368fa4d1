"""The reader of netlists: what is written is read back the same, the rest is refused with its line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from circuits.netlist_parser import parse, parse_number

NODES = ("0", "GND", "a", "B2", "h1_5", "out")
names = st.text("abcxyzRVEC019_", min_size=1, max_size=6)
nodes = st.sampled_from(NODES)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
gains = finite.filter(bool)
slopes = st.lists(positive, min_size=2, max_size=2, unique=True)
times = st.lists(st.floats(0, 1e9), min_size=2, max_size=8, unique=True).map(sorted)
waves = times.flatmap(
    lambda when: st.tuples(*(finite for _ in when)).map(lambda what: PWL(tuple(zip(when, what, strict=True))))
)
elements = st.one_of(
    st.builds(Resistor, names, nodes, nodes, positive),
    st.builds(Capacitor, names, nodes, nodes, positive, st.none() | finite),
    st.builds(VoltageSource, names, nodes, nodes, finite | waves),
    st.builds(CurrentSource, names, nodes, nodes, finite | waves),
    st.builds(VCVS, names, nodes, nodes, nodes, nodes, gains),
    st.builds(VCCS, names, nodes, nodes, nodes, nodes, gains),
    st.builds(CCCS, names, nodes, nodes, st.just("v0"), gains),
    st.builds(
        lambda *parts: Rectifier(*parts[:3], *sorted(parts[3], reverse=True)), names, nodes, nodes, slopes
    ),
    st.builds(Diode, names, nodes, nodes, st.just("shockley")),
)
titles = st.text(min_size=1, max_size=30).filter(
    lambda text: text.isprintable() and text[0].isalnum() and text == text.strip()
)
analyses = st.builds(OperatingPoint) | st.builds(
    TransientAnalysis, positive, positive, positive, st.booleans()
)
# every node has a resistor to ground, so that none floats, and 0 V measures a current
base = (
    VoltageSource("v0", "a", "0", 0.0),
    *(Resistor(f"{i}zz", node, "0", 1.0) for i, node in enumerate(NODES)),
)


def distinct(parts):
    return st.lists(parts, max_size=6, unique_by=lambda part: part.name).map(
        lambda found: tuple(part for part in found if part.name not in {one.name for one in base})
    )


@st.composite
def netlists(draw):
    subcircuits = []
    for name in draw(st.lists(st.sampled_from(["cell", "layer1", "Layer2"]), unique=True)):
        inside = base + draw(distinct(elements))
        if subcircuits and draw(st.booleans()):
            inner = subcircuits[-1]
            inside += (Instance("inner", draw(st.tuples(*(nodes for _ in inner.ports))), inner.name),)
        ports = draw(st.lists(st.sampled_from(["a", "b2", "out"]), min_size=1, unique=True))
        subcircuits.append(Subcircuit(name, tuple(ports), inside))
    top = base + draw(distinct(elements))
    for subcircuit in subcircuits:
        top += (
            Instance(
                f"i_{subcircuit.name}", draw(st.tuples(*(nodes for _ in subcircuit.ports))), subcircuit.name
            ),
        )
    models = (DiodeModel("shockley", draw(positive), draw(positive), draw(st.just(0.0) | positive)),)
    analysis = draw(analyses)
    named = st.sampled_from(["a", "b2", "H1_5"])
    initial = draw(st.dictionaries(named, finite)) if isinstance(analysis, TransientAnalysis) else {}
    options = draw(st.dictionaries(st.sampled_from(["reltol", "gmin", "temp"]), finite))
    saved = draw(st.none() | st.lists(named, min_size=1, unique=True))
    return Netlist(draw(titles), top, tuple(subcircuits), models, options, analysis, initial, saved)


@settings(max_examples=25, deadline=None)
@given(netlists())
def test_what_is_written_is_read_back_the_same(netlist):
    assert parse(write(netlist)) == netlist


def test_a_deck_by_another_hand():
    deck = """Voltage divider, by hand
* a comment
VIN  In 0  2.5   ; volts follow the nodes
R1 in
+  OUT
* in between

+  2.2kOhm
r2 out gnd 10MEG
c1 out 0 10pF ic = 1m
.MODEL  sh  D ( is=1f, rs = 5 )
D1 out 0 SH
.OPTIONS RelTol = 1u
.tran 1n 1u 0 10n uic
.IC V( out ) = 1m
.end
"""
    assert parse(deck) == Netlist(
        "Voltage divider, by hand",
        [
            VoltageSource("vin", "in", "0", 2.5),
            Resistor("r1", "in", "out", 2200.0),
            Resistor("r2", "out", "0", 1e7),
            Capacitor("c1", "out", "0", 1e-11, 1e-3),
            Diode("d1", "out", "0", "sh"),
        ],
        models=[DiodeModel("sh", 1e-15, 1.0, 5.0)],
        options={"reltol": 1e-6},
        analysis=TransientAnalysis(1e-9, 1e-6, 1e-8, True),
        initial_volts={"out": 1e-3},
    )


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *((f"3{suffix}", value) for suffix, value in {"f": 3e-15, "p": 3e-12, "n": 3e-9, "u": 3e-6}.items()),
        *(
            (f"3{suffix}", value)
            for suffix, value in {"m": 3e-3, "k": 3e3, "MEG": 3e6, "g": 3e9, "T": 3e12}.items()
        ),
        ("1e-9", 1e-9),
        ("-.5", -0.5),
        ("4.7uF", 4.7e-6),
        ("1e3k", 1e6),
        ("10ohms", 10.0),
        ("1mA", 1e-3),
        ("5V", 5.0),
        ("1e-400", 0.0),
    ],
)
def test_numbers_with_suffixes_are_rounded_once(word, value):
    assert parse_number(word) == value


@pytest.mark.parametrize("word", ["", "k", "1x", "1mil", "1.2.3", "0x10", "1e", "nan", "inf", "1kk", "1a"])
def test_what_is_no_number_is_refused(word):
    with pytest.raises(ValueError, match="is no number"):
        parse_number(word)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("l1 a 0 1n", "line 3: l1: no element of this dialect"),
        ("q1 a b c npn", "line 3: q1"),
        ("b1 a 0 V=1", "line 3: b1"),
        (".include models.lib", "line 3: .include: no card"),
        (".dc v1 0 1 .1", "line 3: .dc"),
        ("r1 a 0", "line 3: 'r1 a 0' does not read"),
        ("r1 a 0 1k tc=1", "line 3"),
        ("r1 a 0 zero", "line 3: 'zero' is no number"),
        ("r1 a 0 0", "line 3: Resistor r1: ohm = 0.0"),
        ("c1 a 0 1p temp=1", "line 3"),
        ("v1 a 0 sin(0 1 1k)", "line 3"),
        ("v1 a 0 pwl(0 1 1n)", "line 3: v1: PWL holds 3 numbers"),
        ("v1 a 0", "line 3"),
        ("x1 cell", "line 3"),
        (".model d D(cjo=1p)", "line 3"),
        (".model d npn", "line 3"),
        (".options reltol", "line 3"),
        (".ic a=1", "line 3"),
        (".save i(v1)", "line 3"),
        (".tran 1n 1u", "line 3"),
        (".tran 1n 1u 1n 1n", "line 3: .tran 1n 1u 1n 1n keeps points from"),
        (".op\n.op", "line 4: a second analysis"),
        (".end\nr1 a 0 1", "line 4: 'r1 a 0 1' follows .end"),
        (".ends", "line 3"),
        (".subckt cell a\n.op", "line 4: .op within subcircuit cell"),
        (".subckt cell a\nr1 a 0 1\n.ends box", "line 5"),
        ("\n\n* far down\nq1 a", "line 6"),
    ],
)
def test_what_is_outside_the_dialect_is_named_with_its_line(card, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is looked at below
        parse(f"title\n\n{card}\n")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("deck", "message"),
    [
        ("t\nr1 a 0 1\n.op\n", "lacks .end"),
        ("t\nr1 a 0 1\n.end\n", "lacks .op or .tran"),
        ("t\n.subckt c a\nr1 a 0 1\n", "subcircuit c is not closed"),
        ("t\n+ 1\n", "line 2: nothing to go on with"),
        ("t\nc1 a 0 1\n.op\n.end\n", "node a floats"),
    ],
)
def test_an_unfinished_deck_is_refused(deck, message):
    with pytest.raises(ValueError, match=message):
        parse(deck)
