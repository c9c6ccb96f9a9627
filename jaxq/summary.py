"""What a model holds, and what a target would make of it, without any data: for `jaxq inspect`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from jaxq.collect import tensor_shapes
from jaxq.errors import JaxqError
from jaxq.fusion import fuse
from jaxq.graph import FrozenDict, Literal, Node
from jaxq.lint import Finding, lint
from jaxq.model import Model
from jaxq.patterns import graphs, is_depthwise
from jaxq.placement import Plan, place_quantizers, quantized_nodes
from jaxq.schemes import rule_for
from jaxq.split import split
from jaxq.targets import Target, find_target

TRIED_SIZES = (1, 64, 224)  # for free dimensions other than the batch, until the model can be traced

INTEGER = "in integers"
STORED = "float, with weights in integers: the runtime has no kernel for more"
FOLDED = "folded into other nodes"
MERGED = "merged into the integer kernel before it"
MOVES = "moves integers"
NO_FLOATS = "shapes, integers, or a branch not taken"
NO_KERNEL = "float: no integer kernel"
FLOAT_AROUND = "float: what it moves stays float"
LEFT = "float: {}"  # and why, as the plan says it
NO_READER = "float: nothing in integers follows"
ON_HOST = "float: on the host, since shapes depend on values"
NO_FIT = "float: its data or weights are constant, computed, or not float32"

QUANTIZED_FATES = frozenset({INTEGER, FOLDED, MERGED, MOVES})


@dataclass(frozen=True)
class Summary:
    """What a model holds.

    Attributes:
      inputs, outputs: name -> type in words.
      opsets: domain ("" is ONNX's own) -> version.
      operators: operator -> number of nodes, those in branches and loops too, the most frequent first.
      parameter_count, parameter_bytes: of all weights.
      quantized: whether it holds QuantizeLinear or DequantizeLinear.
      fates: operator -> what becomes of its nodes -> how many; empty for a model that is quantized already.
      metadata: what the file says about itself.
      findings: of a quantized model, what the target would refuse or leave slow.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    opsets: Mapping[str, int]
    operators: Mapping[str, int]
    parameter_count: int
    parameter_bytes: int
    quantized: bool
    fates: Mapping[str, Mapping[str, int]]
    metadata: Mapping[str, str]
    findings: tuple[Finding, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, for JSON."""
        return asdict(self)


def summarize(model: Model, target: str) -> Summary:
    """What the model holds, and which of its nodes `target` would compute in integers.

    Raises:
      ConfigError: there is no such target.
    """
    wanted = find_target(target)
    operators = Counter(node.op for _, node in model.graph.walk())
    quantized = bool(quantized_nodes(model.graph))
    return Summary(
        inputs={name: str(wanted) for name, wanted in model.inputs.items()},
        outputs={name: str(made) for name, made in model.outputs.items()},
        opsets=dict(model.graph.opsets),
        operators=dict(operators.most_common()),
        parameter_count=sum(math.prod(value.shape) for value in model.params.values()),
        parameter_bytes=sum(map(stored_bytes, model.params.values())),
        quantized=quantized,
        fates={} if quantized else count_fates(model, wanted),
        metadata=dict(model.metadata),
        findings=lint(model, wanted) if quantized else (),
    )


# Types of which several share a byte -> bits.
NARROW = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4_e2m1fn": 4}


def stored_bytes(value: Any) -> int:
    """The bytes that an array takes in a file; in memory, numbers of 4 bits take a whole one each."""
    count = math.prod(value.shape)
    bits = NARROW.get(value.dtype.name)
    return int(count * value.dtype.itemsize if bits is None else (count * bits + 7) // 8)


def count_fates(model: Model, target: Target) -> dict[str, dict[str, int]]:
    """Operator -> what becomes of its nodes (one of the words above) -> how many."""
    graph, params = fuse(model.graph, model.params)
    fused = model.replace(graph=graph, params=params)
    dtypes, on_host = guess_run(fused)
    plan = place_quantizers(graph, params, dtypes, target, ignored=on_host)
    left = {node.name: node for _, node in graph.walk()}
    producers = {name: node for node in left.values() for name in node.outputs}
    found: dict[str, Counter[str]] = {}
    for _, node in model.graph.walk():
        if node.name in on_host:
            fate = ON_HOST
        else:
            fate = fate_of(left[node.name], plan, params, target, dtypes, producers) if node.name in left else FOLDED
        found.setdefault(node.op, Counter())[fate] += 1
    return {op: dict(counts.most_common()) for op, counts in found.items()}


def fate_of(
    node: Node,
    plan: Plan,
    params: Mapping[str, Any],
    target: Target,
    dtypes: Mapping[str, str],
    producers: Mapping[str, Node],
) -> str:
    """What becomes of a node of the graph that the plan was made for."""
    rule = rule_for(target, node, depthwise=is_depthwise(node, params)) or target.other
    if node.name in plan.nodes:
        return STORED if rule is not None and rule.stored else INTEGER
    if not any(dtypes.get(name, "").startswith(("float", "bfloat")) for name in node.outputs):
        return NO_FLOATS
    before = producers.get(node.inputs[0]) if node.inputs else None
    if node.op in target.fused and before is not None and before.op in target.fusing and before.name in plan.nodes:
        made_by = rule_for(target, before)
        return NO_KERNEL if made_by is not None and made_by.stored else MERGED
    if node.op in target.same_scale:
        return MOVES if all(name in plan.activations for name in node.outputs if name) else FLOAT_AROUND
    if node.name in plan.left:
        return LEFT.format(plan.left[node.name])
    if rule is None:
        return NO_KERNEL
    constants = {*params, *(name for each in graphs(plan.graph) for name in each.constants)}
    varying = [name for name in node.inputs if name and name not in constants]
    needed = 1 if rule.weights or rule.activations is None else len(rule.activations)
    return NO_FIT if len(varying) < needed or not rule.body_only else NO_READER


def guess_run(model: Model) -> tuple[dict[str, str], frozenset[str]]:
    """(tensor name -> dtype name, names of the nodes that the host runs), as far as one can tell without data.

    Sizes that the model leaves free are guessed.
    """
    for size in TRIED_SIZES:
        static, inputs = _guess_inputs(model, size)
        try:
            shapes = tensor_shapes(model, static, inputs)
            on_host = split(model.graph, model.params, static, inputs).host_nodes
            return {name: shape.dtype.name for name, shape in shapes.items()}, on_host
        except JaxqError:
            continue
    made = (name for _, node in model.graph.walk() for name in node.outputs if name)
    declared = {name: each.dtype for name, each in model.graph.types.items()}
    return dict.fromkeys([*model.params, *made], "float32") | declared, frozenset()


def _guess_inputs(model: Model, size: int) -> tuple[FrozenDict[str, Literal], dict[str, jax.ShapeDtypeStruct]]:
    """Inputs with a batch of one and `size` in place of every other free dimension; static ones are zeros."""
    static: dict[str, Literal] = {}
    inputs: dict[str, jax.ShapeDtypeStruct] = {}
    for name, wanted in model.inputs.items():
        shape = tuple(
            each if isinstance(each, int) else (1 if axis == 0 else size)
            for axis, each in enumerate(wanted.shape or ())
        )
        if name in model.graph.static_inputs:
            static[name] = Literal.of(np.zeros(shape, wanted.dtype))
        else:
            inputs[name] = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(wanted.dtype))
    return FrozenDict(static), inputs
