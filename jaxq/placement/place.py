"""Decides which tensors get quantizers, and which of them share one, for a target.

The table says what a runtime computes in integers; the algorithm is the same for all (steps 1 to 3: `jaxq.placement.choose`):

1. the nodes with an integer kernel are chosen, but for those that are ignored, prepare a selection, or belong to a pattern that
   the table leaves in float;
2. their activation inputs get quantizers, and their outputs where the kernel wants that and something quantized follows,
   behind an activation function that the runtime merges into the kernel;
3. quantizers move up through operators that only move values (both sides then share one quantizer);
4. a float reader of a tensor whose exact value still exists keeps reading that: the quantized readers get a name of their own;
5. what the readers of a group of tensors ask for is made one scheme; weights and biases follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxq.graph.ir import Graph, Node, tensor_names, unused_name
from jaxq.graph.linear import BIASED, Linear, is_product
from jaxq.graph.masks import softmax_inputs, what_counts
from jaxq.graph.patterns import is_transformer
from jaxq.graph.ranks import ranks
from jaxq.graph.select import IgnoredScope
from jaxq.numerics.quantizer import PerAxis, PerTensor, Scheme
from jaxq.placement.choose import Places, is_weight
from jaxq.placement.overflow import hold_to_seven_bits
from jaxq.placement.plan import Bias, BiasForm, Plan, Weight, read_copies
from jaxq.placement.schemes import (
    OverflowFix,
    Override,
    Parameters,
    QuantizerPropagationRule,
    Wishes,
    common_scheme,
    type_name,
    weight_axis,
)
from jaxq.placement.targets import Target

QUANTIZED_OPS = frozenset({"QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger"})
QUANTIZED_SUFFIX = "@quantized"  # of the name that quantized readers get where float readers keep the tensor
FLOAT_SUFFIX = "@float"  # of the copy of a weight that ignored nodes keep
KEEPS_CHANNELS = frozenset({"MaxPool", "Pad", "Resize", "Upsample"})  # axis 1 of what they move stays axis 1
SCORES = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax"})


def quantized_nodes(graph: Graph) -> list[Node]:
    """The nodes by which a model is quantized already: those that make, read or compute with quantized integers."""
    return [node for _, node in graph.walk() if node.op in QUANTIZED_OPS or node.op.startswith("QLinear")]


def place_quantizers(
    graph: Graph,
    params: Mapping[str, Any],
    dtypes: Mapping[str, str],
    target: Target,
    *,
    symmetric: bool = False,
    ignored: Iterable[str] = (),
    transformer: bool | None = None,
    activations: Parameters | None = None,
    weights: Parameters | None = None,
    overrides: Sequence[Override] = (),
    overflow_fix: OverflowFix | str | None = None,
    quantize_outputs: bool = False,
    propagation: QuantizerPropagationRule | str = QuantizerPropagationRule.MERGE_ALL_IN_ONE,
) -> Plan:
    """Places quantizers for `target`.

    Args:
      graph: the float graph, after passes.
      params: its weights; only their names and shapes are looked at.
      dtypes: tensor name -> dtype name, for every tensor that is made when the graph runs.
      target: the runtime's table.
      symmetric: whether activations are quantized symmetrically, where `activations` has no mode.
      ignored: names of nodes that stay in float.
      transformer: whether to use the rules for transformers; None finds out.
      activations, weights: how they are quantized, where that differs from the target's defaults.
      overrides: the same for some of the nodes; later ones win.
      overflow_fix: which weights are held to 7 bits; None asks the table.
      quantize_outputs: whether the outputs of the model are quantized, whatever the table says.
      propagation: what becomes of the quantizers of one tensor whose readers want different ones.

    Raises:
      ConfigError: the target does not take what is asked for, or an override selects nothing.
    """
    transformer = is_transformer(graph) if transformer is None else transformer
    wishes = Wishes.of(graph, target, symmetric, activations, weights, overrides)
    work = Places(graph, params, dtypes, target, transformer, frozenset(ignored), wishes, quantize_outputs)
    rule = QuantizerPropagationRule(propagation)
    work.choose_places()
    if rule is not QuantizerPropagationRule.MERGE_ALL_IN_ONE and (edges := branches(work, rule)):
        copies = {new: old for _, new, old in edges}
        split = read_copies(graph, {edge: new for edge, new, _ in edges}, copies)
        again = rule is QuantizerPropagationRule.MERGE_WITH_POTENTIAL_REQUANTIZATION
        work = replace(
            work.fresh(split),
            dtypes={**dtypes, **dict.fromkeys(copies, "float32")},
            requantized=frozenset(copies) if again else frozenset(),
        )
        work.choose_places()
    plan = plan_of(work)
    fix = OverflowFix(target.overflow_fix if overflow_fix is None else overflow_fix)
    return replace(plan, weights=hold_to_seven_bits(plan, params, fix))


def plan_of(places: Places) -> Plan:
    """Steps 4 and 5."""
    groups = places.groups()
    graph, renamed = isolate(places)
    known = ranks(places.graph, places.params) if places.target.chained_width else {}
    weights = merged(weight for node in places.nodes for weight in weights_of(places, node, known))
    schemes = schemes_of(places, groups)
    biases = tuple(bias for node in places.nodes if (bias := bias_of(places, node, groups, schemes, weights, renamed)))
    graph, copies = copy_params(places, graph, {weight.name for weight in weights})
    floors = softmax_inputs(graph, places.values)
    masked = frozenset(what_counts(graph, places.values, dict.fromkeys(floors, 0.0), lambda _: (0.0, 0.0)))
    if masked.isdisjoint((*groups, *(renamed.values()), *(weight.name for weight in weights))):
        floors, masked = {}, frozenset()  # all in float
    return Plan(
        graph=graph,
        activations={renamed.get(name, name): group for name, group in groups.items()},
        schemes=schemes,
        weights=weights,
        biases=biases,
        nodes=tuple(node.name for node in places.nodes if node.name in places.chosen),
        moved=frozenset(renamed.get(name, name) for name in groups if places.is_moved(name)),
        unclipped=frozenset(group for name, group in groups.items() if name in floors or must_not_clip(places, name)),
        floors=floors,
        masked=masked,
        copies=copies,
        left={name: why for name, why in places.left.items() if name not in places.chosen},
    )


def isolate(places: Places) -> tuple[Graph, dict[str, str]]:
    """The graph with an Identity before the quantized readers of tensors that also have float readers."""
    names = {*tensor_names(places.graph), *places.params}
    renamed: dict[str, str] = {}
    for name in sorted(places.wanted):
        exact = name in places.outputs or not places.integer_only(name)
        others = [reader for reader in places.readers.get(name, []) if not places.takes_quantized(*reader)]
        if exact and (others or name in places.outputs):
            renamed[name] = unused_name(name + QUANTIZED_SUFFIX, names)
    edges = {
        (node.name, index): new
        for name, new in renamed.items()
        for node, index in places.readers.get(name, [])
        if node.op not in ("Shape", "Size") and places.takes_quantized(node, index)
    }
    sources = {new: name for name, new in renamed.items()}
    return (read_copies(places.graph, edges, sources) if renamed else places.graph), renamed


def branches(places: Places, rule: QuantizerPropagationRule) -> list[tuple[tuple[str, int], str, str]]:
    """Readers that get a quantizer of their own: (node name, input), the name of their copy, the tensor."""
    names = {*tensor_names(places.graph), *places.params}
    found: list[tuple[tuple[str, int], str, str]] = []
    for name in sorted(places.wanted):
        wishes: dict[Any, str] = {}
        for node, index in places.readers.get(name, []):
            if node.name not in places.chosen or index not in places.places(node):
                continue
            apart = rule is QuantizerPropagationRule.DO_NOT_MERGE_BRANCHES
            wish: Any = (node.name, index) if apart else places.wish(node, index)
            if wish not in wishes:
                wishes[wish] = unused_name(f"{name}@{node.name}", names) if wishes else name
            if wishes[wish] != name:
                found.append(((node.name, index), wishes[wish], name))
    return found


def schemes_of(places: Places, groups: Mapping[str, str]) -> dict[str, Scheme]:
    """Group -> the scheme that suits all of its readers; where none says anything, that of what makes it."""
    wanted: dict[str, list[Scheme]] = {group: [] for group in groups.values()}
    makers: dict[str, list[Scheme]] = {group: [] for group in groups.values()}
    mixed: set[str] = set()  # groups whose tensors do not have the channels on the same axis
    for name, group in groups.items():
        for node, index in places.readers.get(name, []):
            if node.name in places.chosen and index in places.places(node):
                wanted[group].append(places.wish(node, index))
        maker = places.producer.get(name)
        if maker is not None and maker.name in places.chosen:
            makers[group].append(places.wish(maker))
        if maker is not None and places.moves(maker) and maker.op not in KEEPS_CHANNELS:
            mixed.add(group)
    return {
        group: common_scheme(wanted[group] or makers[group] or [places.wishes.default()], channels=group not in mixed)
        for group in sorted(wanted)
    }


def must_not_clip(places: Places, name: str) -> bool:
    """Whether a clipped value would change what the model says: a score before its final Sigmoid, or an output."""
    pending, seen = [name], {name}
    while pending:
        current = pending.pop()
        if current in places.graph.outputs:
            return True
        for reader, _ in places.readers.get(current, []):
            if reader.name in places.tail and reader.op in SCORES:
                return True
            if reader.name in places.tail and current in places.moves(reader):
                pending.extend(each for each in reader.outputs if each not in seen)
                seen.update(reader.outputs)
    return False


def weights_of(places: Places, node: Node, known: Mapping[str, int]) -> Iterator[Weight]:
    """The params that the node multiplies with: per channel where the kernel can, else with one scale."""
    rule = places.chosen.get(node.name)
    if rule is None:
        return
    positions = range(len(node.inputs)) if rule.activations is None else sorted({*rule.weights, *rule.activations})
    for position in positions:
        name = node.inputs[position] if position < len(node.inputs) else ""
        if not is_weight(places.params.get(name)):
            continue
        if position not in rule.weights:  # in the place of an activation, whose type the kernel wants there
            yield Weight(name, replace(places.wish(node), granularity=PerTensor()))
            continue
        chained = is_chained(places, node, known)
        axis = None if chained else weight_axis(node, rule, places.params[name].ndim)
        yield Weight(name, places.wishes.weight(node.name, axis))


def is_chained(places: Places, node: Node, known: Mapping[str, int]) -> bool:
    """Whether the runtime merges a product of matrices, without a bias, with the one behind it (`Target.chained_width`).

    `known` are the ranks of tensors; what may be a matrix counts as one. A bias of one number for all channels is none.
    """
    if not is_product(node) or known.get(node.inputs[0], 2) != 2:
        return False
    weight = places.params.get(node.inputs[1])
    if weight is None or max(weight.shape) > places.target.chained_width:
        return False
    bias = places.params.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else 0.0
    if bias is None or np.unique(bias).size > 1:
        return False
    name = places.fused_output(node)
    readers = places.readers.get(name, [])
    return name not in places.outputs and len(readers) == 1 and is_product(readers[0][0])


def bias_of(
    places: Places,
    node: Node,
    groups: Mapping[str, str],
    schemes: Mapping[str, Scheme],
    weights: Iterable[Weight],
    renamed: Mapping[str, str],
) -> Bias | None:
    """The bias of a product of quantized tensors, and how it is kept (`BiasForm`)."""
    rule, name = places.chosen.get(node.name), bias_name(places, node)
    if rule is None or name is None:
        return None
    quantized = {each.name: each.scheme for each in weights} | {
        tensor: schemes[group] for tensor, group in groups.items()
    }
    data, weight = node.inputs[:2]
    if data not in quantized or weight not in quantized or isinstance(quantized[data].granularity, PerAxis):
        return None  # with scales for the channels of the data there is no one unit of the products
    made = Bias(name, node.name, renamed.get(data, data), renamed.get(weight, weight), BiasForm.FLOAT)
    alone = len(places.readers[name]) == 1 and name not in places.outputs
    if "int32" not in places.target.bias_types or not alone:
        return made
    if any(type_name(quantized[each].grid) in places.target.storage_types for each in (data, weight)):
        return replace(made, form=BiasForm.OWN)
    linear = Linear.of(node, places.params)
    if rule.bias is None or linear is None or not linear.is_unscaled:
        return made
    if np.shape(places.params[name]) != (linear.outputs,):
        return made  # a Gemm may have one number for all
    return replace(made, form=BiasForm.PRODUCTS)


def bias_name(places: Places, node: Node) -> str | None:
    """The param that the node adds to its products; or the vector that an Add behind a MatMul does, which runtimes merge."""
    if node.op in BIASED:
        return node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] in places.params else None
    added = places.graph.wiring.added(node.outputs[0]) if node.op == "MatMul" else None
    if added is None or added[0].name in places.chosen:
        return None
    other = added[1]
    return other if other in places.params and np.ndim(places.params[other]) == 1 else None


def copy_params(places: Places, graph: Graph, quantized: set[str]) -> tuple[Graph, dict[str, str]]:
    """The graph in which ignored nodes read copies of quantized weights; new name -> old name."""
    names = {*tensor_names(graph), *places.params}
    edges: dict[tuple[str, int], str] = {}
    copies: dict[str, str] = {}
    for name in sorted(quantized):
        exact = [(node, index) for node, index in places.readers.get(name, []) if node.name in places.left]
        if exact:
            new = unused_name(name + FLOAT_SUFFIX, names)
            copies[new] = name
            edges.update({(node.name, index): new for node, index in exact})
    return (read_copies(graph, edges, {}) if edges else graph), copies


def merged(weights: Iterable[Weight]) -> tuple[Weight, ...]:
    """Each param once; one that nodes want along different axes gets one scale, one that they want in two widths the wider."""
    found: dict[str, list[Scheme]] = {}
    for weight in weights:
        found.setdefault(weight.name, []).append(weight.scheme)
    return tuple(Weight(name, common_scheme(schemes)) for name, schemes in found.items())


__all__ = [
    "QUANTIZED_SUFFIX",
    "Bias",
    "IgnoredScope",
    "Plan",
    "Weight",
    "is_transformer",
    "place_quantizers",
    "quantized_nodes",
]
