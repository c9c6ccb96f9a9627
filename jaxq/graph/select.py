"""Selects nodes of a graph by name, pattern, operator, attributes, or by what lies between two of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxq.checks import check_kind
from jaxq.errors import ConfigError, JaxqWarning, did_you_mean
from jaxq.graph.ir import FrozenDict, Graph, Literal, Node


@dataclass(frozen=True)
class Subgraph:
    """All nodes on paths from one of the nodes `inputs` to one of the nodes `outputs`, these included.

    A node lies on such a path if it can be reached from an input and an output can be reached from it: two walks over the graph,
    whatever the number of paths.

    Attributes:
      inputs, outputs: node names.

    Raises:
      ConfigError: an end is no name and no list of names.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        for key in ("inputs", "outputs"):
            object.__setattr__(self, key, as_tuple(self, key, f"{key} of a Subgraph"))


@dataclass(frozen=True)
class Operation:
    """Nodes of one operator whose attributes have these values, all of them.

    Attributes:
      type: the operator; several are joined by `|`.
      attributes: name -> value. Attributes that the file leaves out have none.

    Raises:
      ConfigError: the type is no text, or the attributes are no mapping.
    """

    type: str
    attributes: Mapping[str, Any] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        check_kind("type", self.type, str)
        check_kind("attributes", self.attributes, Mapping)
        frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in self.attributes.items()}
        object.__setattr__(self, "attributes", FrozenDict(frozen))

    def matches(self, node: Node) -> bool:
        return node.op in self.type.split("|") and all(
            key in node.attributes and same_value(node.attributes[key], value) for key, value in self.attributes.items()
        )

    def __str__(self) -> str:
        listed = ", ".join(f"{key} = {value!r}" for key, value in self.attributes.items())
        return f"{self.type} with {listed}" if listed else self.type


@dataclass(frozen=True)
class IgnoredScope:
    """What stays in float, by node.

    Attributes:
      names: node names, exactly. A node that is merged into another one before anything is quantized (Identity, Dropout,
        BatchNormalization) may be named; that alone keeps nothing in float, and is warned of.
      patterns: regular expressions that a whole node name must match.
      types: operator names.
      subgraphs: what lies between nodes.
      operations: operators with attributes, as in POT's `ignored.operations`.
      validate: whether an entry that matches nothing is an error, or a warning.

    Raises:
      ConfigError: an entry is of another kind, or a pattern is no regular expression.
    """

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    subgraphs: tuple[Subgraph, ...] = ()
    operations: tuple[Operation, ...] = ()
    validate: bool = True

    def __post_init__(self) -> None:
        for key in ("names", "patterns", "types"):
            object.__setattr__(self, key, as_tuple(self, key, f"ignored {key}"))
        for key, kind in (("subgraphs", Subgraph), ("operations", Operation)):
            value = getattr(self, key)
            entries = (value,) if isinstance(value, kind) else tuple(value)
            for entry in entries:
                if not isinstance(entry, kind):
                    raise ConfigError(f"ignored {key}: {entry!r} is no {kind.__name__}", path=(key,))
            object.__setattr__(self, key, entries)
        for pattern in self.patterns:
            check_pattern(pattern, "ignored pattern")

    def select(self, graph: Graph, folded: Mapping[str, str] | None = None) -> frozenset[str]:
        """The names of the ignored nodes.

        Args:
          graph: of the model.
          folded: name of a node of the file that is not in the graph -> the node that makes its result now, or "".

        Raises:
          ConfigError: an entry matches nothing, and `validate` is on; the message gives the nearest name.
        """
        nodes = [node for _, node in graph.walk()]
        hits: set[str] = set()
        for key, wrong, found in self._entries(graph, nodes, folded or {}):
            if found is None:
                if self.validate:
                    raise ConfigError(wrong, path=(key,))
                warnings.warn(wrong, JaxqWarning, stacklevel=3)
            else:
                hits |= found
        return frozenset(hits)

    def warn_of_folded(self, ignored: Collection[str], folded: Mapping[str, str]) -> None:
        """Warns of names whose nodes are merged into others that are not ignored (`stand_ins`)."""
        for name in self.names:
            place = folded.get(name)
            if place and place not in ignored:
                message = f"ignored node {name!r} is merged into {place!r}, which is quantized; ignore that to keep it in float"
                warnings.warn(message, JaxqWarning, stacklevel=3)

    def _entries(
        self, graph: Graph, nodes: list[Node], folded: Mapping[str, str]
    ) -> Iterator[tuple[str, str, set[str] | None]]:
        """For each entry: the attribute it stands in, what to say if it selects nothing, and the nodes it selects or None."""
        for key, what, found in by_name(nodes, self.names, self.patterns, self.types, folded):
            yield key, f"ignored {key.removesuffix('s')} {what}", found
        names = {node.name for node in nodes}
        for subgraph in self.subgraphs:
            unknown = [name for name in (*subgraph.inputs, *subgraph.outputs) if name not in names]
            if unknown:
                hint = did_you_mean(unknown[0], names)
                yield "subgraphs", f"ignored subgraph: {unknown[0]!r} is no node{hint}", None
                continue
            between = nodes_between(graph, subgraph)
            ends = f"{', '.join(subgraph.inputs)} to {', '.join(subgraph.outputs)}"
            yield "subgraphs", f"ignored subgraph: no path leads from {ends}", between or None
        for operation in self.operations:
            matching = {node.name for node in nodes if operation.matches(node)}
            ops = {node.op for node in nodes}
            wanted = operation.type.split("|")
            there = [node for node in nodes if node.op in wanted]
            unknown = [key for key in operation.attributes if not any(key in node.attributes for node in there)]
            hint = did_you_mean(wanted[0], ops)
            if there and unknown:
                known = sorted({key for node in there for key in node.attributes})
                hint = did_you_mean(unknown[0], known) or f"; their attributes are {', '.join(known) or 'none'}"
            elif there:
                hint = ""
            yield "operations", f"ignored operation {str(operation)!r} matches no node{hint}", matching or None


def by_name(
    nodes: Collection[Node],
    names: Iterable[str] = (),
    patterns: Iterable[str] = (),
    types: Iterable[str] = (),
    folded: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str, set[str] | None]]:
    """For each entry: the argument in which it stands, what to say if it selects nothing, and the nodes it selects or None."""
    folded = folded or {}
    known, ops = {node.name for node in nodes}, {node.op for node in nodes}
    for name in names:
        found: set[str] | None = {name} if name in known else set() if name in folded else None
        yield "names", f"{name!r} matches no node{did_you_mean(name, {*known, *folded})}", found
    for op in types:
        found = {node.name for node in nodes if node.op == op}
        yield "types", f"{op!r} matches no node{did_you_mean(op, ops)}", found or None
    for pattern in patterns:
        found = {name for name in known if re.fullmatch(pattern, name)}
        hint = "" if found else pattern_hint(pattern, known)
        yield "patterns", f"{pattern!r} matches no node of {len(known)}{hint}", found or None


def pattern_hint(pattern: str, known: Collection[str]) -> str:
    """What to write in place of a regular expression that matches no whole name."""
    within = next((name for name in sorted(known) if re.search(pattern, name)), None)
    flags = re.match(r"\(\?[a-zA-Z]+\)", pattern)
    start = flags.group() if flags else ""
    wider = f"{start}.*(?:{pattern[len(start) :]}).*"
    if within is None or not re.fullmatch(wider, within):
        return did_you_mean(pattern, known)
    return f"; it must match a whole name: for {within!r}, write {wider!r}"


def stand_ins(before: Graph, after: Graph) -> dict[str, str]:
    """Name of a node that a rewrite took out -> the node that makes its result now, or "" where none does.

    The result of a node that is gone is made by the node it was merged into (BatchNormalization), or is that of the node
    before it (Identity, Dropout), or is constant.
    """
    kept = {node.name for node in after.wiring.nodes}
    makers = {name: node.name for name, node in after.wiring.producers.items()}
    found: dict[str, str] = {}
    source: dict[str, str] = {}  # tensor -> the node that makes its values now
    for _, node in before.walk():
        if node.name in kept:
            source.update(dict.fromkeys(node.outputs, node.name))
            continue
        own = next((makers[name] for name in node.outputs if name in makers), None)
        found[node.name] = own or source.get(node.inputs[0] if node.inputs else "", "")
        source.update(dict.fromkeys(node.outputs, found[node.name]))
    return found


def nodes_between(graph: Graph, subgraph: Subgraph) -> set[str]:
    """The names of the nodes on paths between the ends of `subgraph`, in time linear in the size of the graph."""
    after: dict[str, set[str]] = {}
    before: dict[str, set[str]] = {}
    makers = {name: node.name for name, node in graph.wiring.producers.items()}
    for node in graph.wiring.nodes:
        inner = {name for sub in node.subgraphs for _, each in sub.walk() for name in each.inputs}
        for name in {*node.inputs, *inner}:
            if name in makers and makers[name] != node.name:
                after.setdefault(makers[name], set()).add(node.name)
                before.setdefault(node.name, set()).add(makers[name])
    return reachable(subgraph.inputs, after) & reachable(subgraph.outputs, before)


def reachable(starts: Iterable[str], edges: Mapping[str, Iterable[str]]) -> set[str]:
    """The starts, and all that edges lead to from them."""
    found = set(starts)
    pending = list(found)
    while pending:
        for name in edges.get(pending.pop(), ()):
            if name not in found:
                found.add(name)
                pending.append(name)
    return found


def as_tuple(owner: object, key: str, what: str) -> tuple[str, ...]:
    """An attribute that is one string, or several, as a tuple.

    Raises:
      ConfigError: it is something else; the message starts with `what`.
    """
    value = getattr(owner, key)
    several = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not all(isinstance(each, str) for each in several):
        raise ConfigError(f"{what} = {value!r}; expected a string or a list of strings", path=(key,))
    return several


def check_pattern(pattern: str, what: str) -> None:
    """Refuses what is no regular expression.

    Raises:
      ConfigError: the message starts with `what`.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{what} {pattern!r} is not a regular expression: {error}", path=("patterns",)) from None


def same_value(found: Any, wanted: Any) -> bool:
    """Whether an attribute has that value: a number or string, or a list of them."""
    if isinstance(found, Literal):
        found = found.array
    if isinstance(found, Graph):
        return False
    if isinstance(found, str) or isinstance(wanted, str):
        return bool(found == wanted)
    found, wanted = np.asarray(found), np.asarray(wanted)
    return found.shape == wanted.shape and bool(np.allclose(found, wanted, rtol=1e-6, atol=0.0))
