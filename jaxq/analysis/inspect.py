"""What a model holds, and what a target would make of it, without any data: for `jaxq inspect`."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from jaxq.algorithms.float_types import as_declared, in_float32, to_replace, without_needless_casts
from jaxq.analysis.lint import Finding, lint
from jaxq.engine.model import Model
from jaxq.engine.traced import Signature
from jaxq.errors import JaxqError
from jaxq.graph.fusion import fuse
from jaxq.graph.ir import FrozenDict, Literal
from jaxq.graph.patterns import WEIGHTED
from jaxq.numerics.quantizer import QuantParams
from jaxq.onnx_io.qdq import storage
from jaxq.placement.fates import FOLDED, INTEGER, ON_HOST, Fates
from jaxq.placement.place import Plan, place_quantizers, quantized_nodes
from jaxq.placement.schemes import type_name
from jaxq.placement.targets import TARGETS, Target, find_target

TRIED_SIZES = (1, 64, 224)  # for free dimensions other than the batch, until the model can be traced


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
    """Operator -> what becomes of its nodes (one of the words of `jaxq.placement.fates`) -> how many.

    Of a model with encodings, what these make of it; of a float model, what `quantize` would make of it by default.
    """
    if model.encodings:
        dtypes, on_host, shapes = guess_run(model)
        kinds = {name: stored_type(each) for name, each in model.encodings.items() if bool(np.all(each.enabled))}
        fates = Fates(model.graph, model.params, kinds, target, dtypes, {}, shapes)
        made = model.graph
    else:
        wide = in_float32(model, types) if (types := to_replace(model)) else model
        with as_declared(wide):
            graph = without_needless_casts(wide.graph, guess_run(wide)[0]) if types else model.graph
            graph, params = fuse(graph, wide.params)
            dtypes, on_host, shapes = guess_run(model.replace(graph=graph, params=params))
        plan = place_quantizers(graph, params, dtypes, target, ignored=on_host)
        fates = Fates(plan.graph, params, encoded_types(plan), target, dtypes, plan.left, shapes)
        made = plan.graph
    nodes = {node.name: node for _, node in made.walk()}
    found: dict[str, Counter[str]] = {}
    for _, node in model.graph.walk():
        if node.op == "Identity" and model.encodings:
            continue  # a name for quantized readers
        fate = ON_HOST if node.name in on_host else fates.of(nodes[node.name]) if node.name in nodes else FOLDED
        found.setdefault(node.op, Counter())[fate] += 1
    return {op: dict(counts.most_common()) for op, counts in found.items()}


def fates_of(model: Model) -> dict[str, dict[str, int]]:
    """What becomes of the nodes of a quantized model in the runtime that it was made for, as its metadata say."""
    name = model.metadata.get("jaxq.target", "")
    return count_fates(model, TARGETS[name]) if name in TARGETS else {}


def layers_in_words(fates: Mapping[str, Mapping[str, int]]) -> str:
    """What becomes of the layers with weights, in one line: `20 Conv in integers; 1 Conv float: its result is ...`."""
    groups: dict[str, list[str]] = {}
    for op, counts in sorted(fates.items()):
        for fate, count in counts.items() if op in WEIGHTED else ():
            groups.setdefault(fate, []).append(f"{count} {op}")
    order = sorted(groups, key=lambda fate: fate != INTEGER)
    return "; ".join(f"{', '.join(groups[fate])} {fate}" for fate in order)


def encoded_types(plan: Plan) -> dict[str, str]:
    """Name of each tensor, weight and bias that the plan quantizes -> the type that its integers are kept in."""
    kinds = {name: type_name(plan.schemes[group].grid) for name, group in plan.activations.items()}
    kinds |= {weight.name: type_name(weight.scheme.grid) for weight in plan.weights}
    return kinds | {bias.name: "int32" for bias in plan.biases}


def stored_type(params: QuantParams) -> str:
    """The type that the numbers of an encoding are kept in."""
    return storage(params)[0].name


def guess_run(model: Model) -> tuple[dict[str, str], frozenset[str], dict[str, tuple[int, ...]]]:
    """(tensor -> dtype name, names of the nodes that the host runs, tensor -> shape), as far as one can tell without data.

    Sizes that the model leaves free are guessed. So are inputs that decide on shapes; those that decide on branches alone are
    left open, so that both branches are seen.
    """
    for known, size in itertools.product((False, True), TRIED_SIZES):
        static, inputs = _guess_inputs(model, size, known=known)
        try:
            traced = model.traced(Signature.of(inputs, static))
            shapes, on_host = traced.tensors, traced.parts.host_nodes
            if on_host and not known:
                continue  # perhaps only since a value is not known
            dtypes = {name: each.dtype.name for name, each in shapes.items()}
            return dtypes, on_host, {name: tuple(each.shape) for name, each in shapes.items()}
        except JaxqError:
            continue
    made = (name for _, node in model.graph.walk() for name in node.outputs if name)
    declared = {name: each.dtype for name, each in model.graph.types.items()}
    return dict.fromkeys([*model.params, *made], "float32") | declared, frozenset(), {}


def _guess_inputs(
    model: Model, size: int, *, known: bool
) -> tuple[FrozenDict[str, Literal], dict[str, jax.ShapeDtypeStruct]]:
    """Inputs with a batch of one and `size` in place of every other free dimension; static ones, if they are known, are zeros."""
    static: dict[str, Literal] = {}
    inputs: dict[str, jax.ShapeDtypeStruct] = {}
    for name, wanted in model.inputs.items():
        shape = tuple(
            each if isinstance(each, int) else (1 if axis == 0 else size)
            for axis, each in enumerate(wanted.shape or ())
        )
        if known and name in model.graph.static_inputs:
            static[name] = Literal.of(np.zeros(shape, wanted.dtype))
        else:
            inputs[name] = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(wanted.dtype))
    return FrozenDict(static), inputs
