"""What must hold of a netlist before a simulator sees it; each fault is a ValueError that names the culprit."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from circuits.netlist_elements import CCCS, Diode, Element, Instance, OperatingPoint, VoltageSource
from circuits.netlist_names import GROUND

if TYPE_CHECKING:
    from circuits.netlist import Netlist, Subcircuit


def check_subcircuit(subcircuit: Subcircuit) -> None:
    """Refuses ports that are none, listed twice or ground, and what `_check_scope` does."""
    if not subcircuit.ports:
        raise ValueError(f"subcircuit {subcircuit.name} has no ports; give at least one")
    _check_unique(subcircuit.ports, f"port of subcircuit {subcircuit.name}")
    if GROUND in subcircuit.ports:
        raise ValueError(
            f"subcircuit {subcircuit.name}: ground is no port; every subcircuit sees it as node 0"
        )
    _check_scope(subcircuit.elements, f"subcircuit {subcircuit.name}")


def check_netlist(netlist: Netlist) -> None:
    """Refuses names that are missing, doubled or wrongly used, and nodes without a DC path to ground."""
    title = netlist.title
    if not (title.isprintable() and title[:1].isalnum() and title == title.strip()):
        raise ValueError(f"title {title!r}; give one printable line that starts with a letter or digit")
    _check_scope(netlist.elements, "the circuit")
    _check_unique([model.name for model in netlist.models], "model")
    _check_unique([subcircuit.name for subcircuit in netlist.subcircuits], "subcircuit")
    for what, values in (("options", netlist.options), ("initial_volts", netlist.initial_volts)):
        for key, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"{what}: {key} = {value}; choose a finite value")
    subcircuits = {subcircuit.name: subcircuit for subcircuit in netlist.subcircuits}
    models = {model.name for model in netlist.models}
    for elements in (netlist.elements, *(subcircuit.elements for subcircuit in netlist.subcircuits)):
        _check_references(elements, models, subcircuits)
    _check_paths(netlist, subcircuits)
    if netlist.initial_volts and isinstance(netlist.analysis, OperatingPoint):
        raise ValueError("initial_volts: an operating point has no start; give them with a TransientAnalysis")
    if netlist.saved == ():
        raise ValueError("saved = (); name one node or more, or choose None, which keeps all")
    _check_named_nodes(netlist, subcircuits)


def _check_unique(names: Sequence[str], what: str) -> None:
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{what} {double!r} is there twice; SPICE compares names without regard to case")


def _check_scope(elements: Sequence[Element], where: str) -> None:
    """Names within one scope: unique elements, and a measured source for each CCCS."""
    if not elements:
        raise ValueError(f"{where} has no elements; give at least one")
    _check_unique([element.name for element in elements], f"{where}: element")
    sources = {element.name for element in elements if isinstance(element, VoltageSource)}
    for element in elements:
        if isinstance(element, CCCS) and element.source not in sources:
            raise ValueError(
                f"{element.name}: no voltage source {element.source!r} in {where}, whose current it takes"
            )


def _check_references(
    elements: Iterable[Element], models: set[str], subcircuits: Mapping[str, Subcircuit]
) -> None:
    for element in elements:
        if isinstance(element, Diode) and element.model not in models:
            raise ValueError(f"{element.name}: no model {element.model!r}; there are {sorted(models)}")
        if isinstance(element, Instance):
            if element.subcircuit not in subcircuits:
                raise ValueError(
                    f"{element.name}: no subcircuit {element.subcircuit!r}; there are {sorted(subcircuits)}"
                )
            ports = subcircuits[element.subcircuit].ports
            if len(ports) != len(element.nodes):
                raise ValueError(
                    f"{element.name}: {len(element.nodes)} nodes for the {len(ports)} ports of {element.subcircuit}"
                )


class _Groups:
    """Nodes joined into groups: union-find with path halving."""

    def __init__(self) -> None:
        self.parent: dict[Hashable, Hashable] = {}

    def find(self, node: Hashable) -> Hashable:
        parent = self.parent
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def join(self, a: Hashable, b: Hashable) -> None:
        self.parent[self.find(a)] = self.find(b)


def _check_paths(netlist: Netlist, subcircuits: Mapping[str, Subcircuit]) -> None:
    """Every node needs a DC path to ground, or its voltage is undetermined and the matrix singular.

    A subcircuit is looked at once, however often it is used: what its instances see are the groups into which
    it joins its ports and ground.
    """
    joined: dict[str, list[tuple[str, ...]]] = {}
    pending: list[str] = []

    def groups_of(elements: Iterable[Element]) -> _Groups:
        groups = _Groups()
        groups.find(GROUND)
        for element in elements:
            for node in element.nodes:
                groups.find(node)
            if element.conducting:
                groups.join(*(element.nodes[end] for end in element.conducting))
            if isinstance(element, Instance):
                place = dict(zip(subcircuits[element.subcircuit].ports, element.nodes, strict=True))
                place[GROUND] = GROUND
                for group in ports_of(element.subcircuit):
                    for port in group[1:]:
                        groups.join(place[group[0]], place[port])
        return groups

    def ports_of(name: str) -> list[tuple[str, ...]]:
        if name in pending:
            raise ValueError(f"subcircuit {name} contains itself: {' > '.join((*pending, name))}")
        if name not in joined:
            pending.append(name)
            groups = groups_of(subcircuits[name].elements)
            pending.pop()
            outside = (*subcircuits[name].ports, GROUND)
            _refuse_floating(groups, outside, f"subcircuit {name}: ")
            members: dict[Hashable, list[str]] = {}
            for port in outside:
                members.setdefault(groups.find(port), []).append(port)
            joined[name] = [tuple(group) for group in members.values()]
        return joined[name]

    for name in subcircuits:
        ports_of(name)
    _refuse_floating(groups_of(netlist.elements), (GROUND,), "")


def _refuse_floating(groups: _Groups, outside: Iterable[str], where: str) -> None:
    held = {groups.find(node) for node in outside}
    for node in list(groups.parent):
        if groups.find(node) not in held:
            raise ValueError(
                f"{where}node {node} floats: no DC path to ground through resistors, diodes or voltage sources "
                "(capacitors and current sources carry none); add a resistor, if only a large one"
            )


def _check_named_nodes(netlist: Netlist, subcircuits: Mapping[str, Subcircuit]) -> None:
    """Whether initial_volts and saved name nodes, within instances too: "xa.xb.node"; a port has its outer name."""
    top = _Scope(netlist.elements, ())
    scopes = {name: _Scope(inner.elements, inner.ports) for name, inner in subcircuits.items()}
    for what, paths in (("initial_volts", netlist.initial_volts), ("saved", netlist.saved or ())):
        for path in paths:
            *instances, node = path.split(".")
            scope = top
            for name in instances:
                if name not in scope.instances:
                    raise ValueError(f"{what}: {path}: no instance {name}")
                scope = scopes[scope.instances[name]]
            if node not in scope.nodes:
                raise ValueError(f"{what}: no node {path}; ground and ports (named outside) do not count")


class _Scope:
    """The nodes that belong to a scope, and the subcircuits of its instances."""

    def __init__(self, elements: Sequence[Element], ports: Iterable[str]) -> None:
        self.nodes = {node for element in elements for node in element.nodes} - {GROUND, *ports}
        self.instances = {item.name: item.subcircuit for item in elements if isinstance(item, Instance)}
