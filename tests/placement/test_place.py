"""Where quantizers go, as tables: one line for each quantized tensor, with the tensor whose quantizer it shares."""

import textwrap
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from models import (
    Network,
    branching_network,
    free_size_network,
    residual_network,
    shuffle_network,
    transformer_block,
    written,
)

from jaxq.engine.model import Model
from jaxq.errors import ConfigError
from jaxq.graph.fusion import fuse
from jaxq.numerics.quantizer import IntType, PerAxis, PerTensor
from jaxq.onnx_io.load import load
from jaxq.pipeline import planned
from jaxq.placement.place import IgnoredScope, Plan, is_transformer, place_quantizers
from jaxq.placement.plan import BiasForm
from jaxq.placement.schemes import FP8QuantizationParameters, Override, QuantizationParameters
from jaxq.placement.targets import ASCEND, ONNXRUNTIME, OPENVINO, PORTABLE, QNN, TENSORRT, Target


def fused(proto: onnx.ModelProto) -> Model:
    model = load(proto)
    graph, params = fuse(model.graph, model.params)
    return model.replace(graph=graph, params=params)


def plan_of(
    proto: onnx.ModelProto, ignored: IgnoredScope | None = None, target: Target = ONNXRUNTIME, **options: Any
) -> Plan:
    """The plan for a target; free axes have size 8, integers are 8000."""
    model = fused(proto)
    feed = {}
    for name, declared in model.inputs.items():
        shape = [size if isinstance(size, int) else 8 for size in declared.shape]
        feed[name] = np.full(shape, 8000 if declared.dtype == "int64" else 0, declared.dtype)
    dtypes = {name: shape.dtype.name for name, shape in model.traced(feed).tensors.items()}
    names = (ignored or IgnoredScope()).select(model.graph)
    return place_quantizers(model.graph, model.params, dtypes, target, ignored=names, **options)


def table(plan: Plan) -> str:
    """The plan as text, in the order of the graph."""
    made = [*plan.graph.inputs, *(name for _, node in plan.graph.walk() for name in node.outputs)]
    lines = []
    for name in made:
        if name in plan.activations:
            group = plan.activations[name]
            lines.append(name if group == name.partition("@")[0] else f"{name} = {group}")
    for weight in plan.weights:
        axis = weight.scheme.granularity.axis if isinstance(weight.scheme.granularity, PerAxis) else "all"
        lines.append(f"{weight.name} / {axis}")
    integer = [bias for bias in plan.biases if bias.form is BiasForm.PRODUCTS]
    lines.extend(f"{bias.name} in {bias.activation} * {bias.weight}" for bias in integer)
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, and the table of its quantizers."""

    model: onnx.ModelProto
    table: str
    ignored: IgnoredScope | None = None
    options: dict[str, Any] = field(default_factory=dict)


RANDOM = np.random.default_rng(0)


def convolutions(text: str, **more: Any) -> onnx.ModelProto:
    """A network over x [N, 4, 8, 8]; w1, w2, w3 are weights of 1x1 convolutions from 4 to 4 channels."""
    weights = {name: RANDOM.normal(size=(4, 4, 1, 1)).astype(np.float32) for name in ("w1", "w2", "w3") if name in text}
    return written(f"(float[N, 4, 8, 8] x) => {text}", **weights, **more)


SMALL = np.float32([0.5])

CASES = {
    "a residual network": Case(
        model=residual_network(),
        table="""
            image
            stem.relu
            depthwise.relu
            pointwise.norm
            sum.relu
            pooled
            features = pooled
            stem.weight / 0
            depthwise.weight / 0
            pointwise.weight / 0
            scores.weight / 1
            stem.norm.bias in image * stem.weight
            depthwise.norm.bias in stem.relu * depthwise.weight
            pointwise.norm.bias in depthwise.relu * pointwise.weight
            scores.bias in features * scores.weight
        """,
    ),
    "Concat and what moves values share a quantizer": Case(
        model=shuffle_network(),
        table="""
            image
            left.relu
            right.relu = left.relu
            both = left.relu
            groups = left.relu
            swapped = left.relu
            shuffled = left.relu
            mixed.relu
            small = mixed.relu
            features = mixed.relu
            left.weight / 0
            right.weight / 0
            mixed.weight / 0
            scores.weight / 1
            left.bias in image * left.weight
            right.bias in image * right.weight
            mixed.bias in shuffled * mixed.weight
            scores.bias in features * scores.weight
        """,
    ),
    "a transformer's products, and nothing else of it": Case(
        model=transformer_block(),
        table="""
            norm
            query
            query.heads = query
            query.split = query
            key
            key.heads = key
            key.split = key
            value
            value.heads = value
            value.split = value
            attention
            context
            context.joined = context
            context.flat = context
            after.norm
            swish
            query.weight / 1
            key.weight / 1
            value.weight / 1
            projection.weight / 1
            wide.weight / 1
            narrow.weight / 1
        """,
    ),
    "only the branch that the first sample takes": Case(
        model=branching_network(),
        table="""
            sound
            features
            slow.relu
            fast.weight / 0
            slow.weight / 0
            slow.weight2 / 0
            score.raw.weight / 1
            score.raw.bias in features * score.raw.weight
        """,
    ),
    "an activation function that is merged into the kernel has no quantizer before it": Case(
        model=convolutions(
            "(float[N, 4, 8, 8] y) { a = Conv (x, w1)  b = Clip (a, zero, six)  y = Conv (b, w2) }",
            zero=np.float32(0), six=np.float32(6),
        ),
        table="""
            x
            b
            w1 / 0
            w2 / 0
        """,
    ),
    "an activation function that is not merged has one on both sides": Case(
        model=convolutions("(float[N, 4, 8, 8] y) { a = Conv (x, w1)  b = LeakyRelu (a)  y = Conv (b, w2) }"),
        table="""
            x
            a
            b
            w1 / 0
            w2 / 0
        """,
    ),
    "an activation function in float between kernels": Case(
        model=convolutions("(float[N, 4, 8, 8] y) { a = Conv (x, w1)  b = Elu (a)  y = Conv (b, w2) }"),
        table="""
            x
            a
            b
            w1 / 0
            w2 / 0
        """,
    ),
    "nothing behind the last kernel": Case(
        model=convolutions("(float[N, 4, 8, 8] y) { a = Conv (x, w1)  b = Sigmoid (a)  y = Mul (a, b) }"),
        table="""
            x
            w1 / 0
        """,
    ),
    "a Relu that is read twice, by a kernel and in float": Case(
        model=convolutions("(float[N, 4, 8, 8] y, float[N, 4, 8, 8] z) {"
                           " a = Conv (x, w1)  b = Relu (a)"
                           "  y = Conv (b, w2)  z = Exp (b) }"),
        # The runtime has b in integers only: the float reader works on those.
        table="""
            x
            b
            w1 / 0
            w2 / 0
        """,
    ),
    "a float tensor that is read by a kernel and in float": Case(
        model=convolutions("(float[N, 4, 8, 8] y, float[N, 4, 8, 8] z) { a = Exp (x)  y = Conv (a, w1)  z = Neg (a) }"),
        table="""
            a@quantized
            w1 / 0
        """,
    ),
    "a graph input that is read in float too": Case(
        model=convolutions("(float[N, 4, 8, 8] y, float[N, 4, 8, 8] z) { y = Conv (x, w1)  z = Neg (x) }"),
        table="""
            x@quantized
            w1 / 0
        """,
    ),
    "a graph output keeps its exact value": Case(
        model=convolutions("(float[N, 4, 8, 8] y, float[N, 4, 8, 8] a) { a = Conv (x, w1)  b = Relu (a)  y = Conv (b, w2) }"),
        table="""
            x
            b
            w1 / 0
            w2 / 0
        """,
    ),
    "a graph output that a kernel reads": Case(
        model=convolutions("(float[N, 4, 8, 8] y, float[N, 4, 8, 8] a) { a = Conv (x, w1)  y = Conv (a, w2) }"),
        table="""
            x
            a@quantized
            w1 / 0
            w2 / 0
        """,
    ),
    "the size of a tensor is no reading of it": Case(
        model=convolutions("(float[N, 4, M] y) { a = Conv (x, w1)  s = Shape (x)  n = Slice (s, from, to)"
                           "  t = Concat <axis = 0> (n, rest)  b = Reshape (a, t)  y = MatMul (b, m) }",
                           m=np.ones((64, 2), np.float32),
                           **{"from": np.array([0]), "to": np.array([2]), "rest": np.array([64])}),
        table="""
            x
            a
            b = a
            w1 / 0
            m / 1
        """,
    ),
    "pooling": Case(
        model=convolutions("(float[N, 4, 4, 4] y) { a = Conv (x, w1)"
                           "  b = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (a)"
                           "  c = MaxPool <kernel_shape = [1, 1]> (b)  y = Conv (c, w2) }"),
        table="""
            x
            a
            b
            c = b
            w1 / 0
            w2 / 0
        """,
    ),
    "pooling of what is float anyway": Case(
        model=convolutions("(float[N, 4, 4, 4] y) { a = Mul (x, x)  b = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (a)"
                           "  c = Log (b)  y = Conv (c, w1) }"),
        table="""
            c
            w1 / 0
        """,
    ),
    "a constant that is added or multiplied is no second input": Case(
        model=convolutions("(float[N, 4, 8, 8] y) {"
                           " p = Conv (x, w1)  a = Relu (p)  b = Mul (a, half)  c = Add (half, b)"
                           "  y = Conv (c, w2) }", half=SMALL),
        table="""
            x
            a
            c
            w1 / 0
            w2 / 0
        """,
    ),
    "a gate inside of the network": Case(
        model=convolutions("(float[N, 4, 8, 8] y) { a = Conv (x, w1)  b = Sigmoid (a)  c = Mul (a, b)  y = Conv (c, w2) }"),
        table="""
            x
            a
            b
            c
            w1 / 0
            w2 / 0
        """,
    ),
    "a weight that two nodes share is quantized once, its bias not": Case(
        model=convolutions("(float[N, 4, 8, 8] y) { a = Conv (x, w1, b)  y = Conv (a, w1, b) }", b=np.ones(4, np.float32)),
        table="""
            x
            a
            w1 / 0
        """,
    ),
    "Gemm, transposed, and with factors": Case(
        model=written("(float[N, 4] x) => (float[N, 3] y) { a = Gemm <transB = 1> (x, v, b)  y = Gemm <alpha = 0.5> (a, w, c) }",
                      v=np.ones((5, 4), np.float32), b=np.ones(5, np.float32),
                      w=np.ones((5, 3), np.float32), c=np.ones(3, np.float32)),
        table="""
            x
            a
            v / 0
            w / 1
            b in x * v
            c in a * w
        """,
    ),
    "a constant on the left has the type of activations": Case(
        model=written("(float[2, 4, 5] x) => (float[2, 3, 5] y) { y = MatMul (w, x) }", w=np.ones((3, 4), np.float32)),
        table="""
            x
            w / all
        """,
    ),
    "a stack of matrices has one scale": Case(
        model=written("(float[2, 3, 4] x) => (float[2, 3, 5] y) { y = MatMul (x, w) }", w=np.ones((2, 4, 5), np.float32)),
        table="""
            x
            w / all
        """,
    ),
    "float16 stays": Case(
        model=written("(float16[N, 4] h, float[N, 4] x) => (float16[N, 4] y, float[N, 4] z) {"
                      " y = MatMul (h, v)  z = MatMul (x, w) }",
                      v=np.ones((4, 4), np.float16), w=np.ones((4, 4), np.float32)),
        table="""
            x
            w / 1
        """,
    ),
    "an ignored kernel": Case(
        model=residual_network(),
        ignored=IgnoredScope(names="Conv_depthwise"),
        table="""
            image
            stem.relu
            depthwise.relu
            pointwise.norm
            sum.relu
            pooled
            features = pooled
            stem.weight / 0
            pointwise.weight / 0
            scores.weight / 1
            stem.norm.bias in image * stem.weight
            pointwise.norm.bias in depthwise.relu * pointwise.weight
            scores.bias in features * scores.weight
        """,
    ),
    "an ignored kind": Case(
        model=residual_network(),
        ignored=IgnoredScope(types=("Conv", "Add")),
        table="""
            pooled
            features = pooled
            scores.weight / 1
            scores.bias in features * scores.weight
        """,
    ),
    "a network that is said to be a transformer": Case(
        model=residual_network(),
        options={"transformer": True},
        table="""
            image
            stem.relu
            depthwise.relu
            pooled
            features = pooled
            stem.weight / 0
            depthwise.weight / 0
            pointwise.weight / 0
            scores.weight / 1
            stem.norm.bias in image * stem.weight
            depthwise.norm.bias in stem.relu * depthwise.weight
            pointwise.norm.bias in depthwise.relu * pointwise.weight
            scores.bias in features * scores.weight
        """,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_quantizers_stand_as_in_the_table(case):
    found = table(plan_of(case.model, case.ignored, **case.options))
    assert found == textwrap.dedent(case.table).strip()


def reads(plan: Plan, op: str) -> list[str]:
    """What the nodes of that kind read."""
    return [name for node in plan.graph.nodes if node.op == op for name in node.inputs]


def test_float_readers_keep_the_exact_value_and_quantized_ones_get_a_name_of_their_own():
    plan = plan_of(CASES["a float tensor that is read by a kernel and in float"].model)
    assert reads(plan, "Identity") == ["a"]
    assert reads(plan, "Conv") == ["a@quantized", "w1"]
    assert reads(plan, "Neg") == ["a"]
    assert plan.graph.outputs == ("y", "z")


def test_the_graph_stays_the_same_object_where_nobody_needs_an_exact_value():
    model = fused(residual_network())
    dtypes = dict.fromkeys(
        ["image", "stem.relu", "depthwise.relu", "pointwise.norm", "sum.relu", "pooled", "features"], "float32"
    )
    assert place_quantizers(model.graph, model.params, dtypes, ONNXRUNTIME).graph is model.graph


def test_the_size_is_asked_of_the_tensor_itself():
    plan = plan_of(CASES["the size of a tensor is no reading of it"].model)
    assert reads(plan, "Shape") == ["x"]
    assert "Identity" not in {node.op for node in plan.graph.nodes}


def test_a_tensor_of_the_outer_graph_that_a_branch_reads_is_isolated_there():
    net = Network()
    image, rate = net.input("x", ["N", 2, 4]), net.input("rate", [], onnx.TensorProto.INT64)
    branches = []
    for name in ("left", "right"):
        inner = Network()
        inner.node("Conv", [image, inner.weight(f"{name}.w", 2, 2, 1)], f"{name}.y")
        inner.output(f"{name}.y", ["N", 2, 4])
        initializers = [onnx.numpy_helper.from_array(value, key) for key, value in inner.initializers.items()]
        branches.append(onnx.helper.make_graph(inner.nodes, name, [], inner.outputs, initializers))
    yes = net.node("Equal", [rate, net.constant("one", 1, np.int64)], "yes")
    net.node("If", [yes], "y", then_branch=branches[0], else_branch=branches[1])
    net.node("Neg", [image], "z")
    net.output("y", ["N", 2, 4])
    net.output("z", ["N", 2, 4])
    plan = plan_of(net.proto())
    assert set(plan.activations) == {"x@quantized"}
    assert [node.inputs[0] for _, node in plan.graph.walk() if node.op in ("Conv", "Neg")] == ["x@quantized"] * 2 + [
        "x"
    ]


@pytest.mark.parametrize(
    "proto, found", [(transformer_block(), True), (residual_network(), False), (free_size_network(), False)]
)
def test_a_transformer_is_known_by_its_attention(proto, found):
    assert is_transformer(load(proto).graph) is found


# ------------------------------------------------------------------------------------------------- how biases are kept

VECTOR, MATRIX = np.ones(4, np.float32), np.eye(4, dtype=np.float32)
GEMM = "(float[N, 4] x) => (float[N, 4] y) { y = Gemm (x, w, b) }"
PRODUCTS, OWN, FLOAT = BiasForm


@pytest.mark.parametrize(
    "text, numbers, options, expected",
    [
        (GEMM, {}, {}, PRODUCTS),
        (GEMM, {}, {"weights": QuantizationParameters(mode="asymmetric")}, PRODUCTS),
        (GEMM, {}, {"weights": QuantizationParameters(per_channel=False)}, PRODUCTS),
        (GEMM, {}, {"weights": QuantizationParameters(num_bits=4)}, PRODUCTS),
        (GEMM, {}, {"weights": QuantizationParameters(num_bits=16)}, OWN),
        (GEMM, {}, {"activations": QuantizationParameters(num_bits=16)}, OWN),
        (GEMM, {}, {"activations": FP8QuantizationParameters()}, OWN),
        (GEMM, {}, {"target": OPENVINO}, FLOAT),
        (GEMM, {}, {"target": TENSORRT}, FLOAT),
        (GEMM, {}, {"target": PORTABLE}, FLOAT),
        (GEMM, {"b": VECTOR[:1]}, {}, PRODUCTS),
        (GEMM, {"b": VECTOR[None]}, {}, PRODUCTS),
        ("(float[N, 4] x) => (float[N, 4] y) { y = Gemm <beta = 2.0> (x, w, b) }", {}, {}, PRODUCTS),
        ("(float[N, 3, 4] x) => (float[N, 3, 4] y) { t = MatMul (x, w)  y = Add (b, t) }", {}, {"target": PORTABLE}, FLOAT),
        ("(float[N, 4, 8, 8] x) => (float[N, 4, 16, 16] y) { y = ConvTranspose <strides = [2, 2]> (x, w, b) }",
         {"w": np.ones((4, 4, 2, 2), np.float32)}, {}, FLOAT),
    ],
)  # fmt: skip
def test_a_bias_is_kept_as_the_products_want_it(text, numbers, options, expected):
    plan = plan_of(written(text, **{"w": MATRIX, "b": VECTOR, **numbers}), **options)
    assert [(bias.name, bias.form) for bias in plan.biases] == [("b", expected)]
    assert plan.biases[0].activation in plan.activations


# ----------------------------------------------------------------------------------------------------- what is ignored

GRAPH = load(residual_network()).graph


@pytest.mark.parametrize(
    "scope, names",
    [
        (IgnoredScope(), []),
        (IgnoredScope(names=["Conv_stem", "Add_sum"]), ["Add_sum", "Conv_stem"]),
        (IgnoredScope(types="Add"), ["Add_sum"]),
        (IgnoredScope(patterns="Conv_.*wise"), ["Conv_depthwise", "Conv_pointwise"]),
        (IgnoredScope(names="nowhere", types="Nothing", patterns="x+", validate=False), []),
    ],
    ids=str,  # of lists: sets are printed in another order in each process
)
def test_nodes_are_ignored_by_name_kind_and_pattern(scope, names):
    assert sorted(scope.select(GRAPH)) == names


def test_nodes_of_branches_can_be_ignored():
    assert IgnoredScope(names="Conv_slow.conv").select(load(branching_network()).graph) == {"Conv_slow.conv"}


@pytest.mark.parametrize(
    "scope, message",
    [
        ({"names": "Conv_stm"}, "ignored name 'Conv_stm' matches no node; did you mean 'Conv_stem'?"),
        ({"types": "Convv"}, "ignored type 'Convv' matches no node; did you mean 'Conv'?"),
        (
            {"patterns": "Conv"},
            "ignored pattern 'Conv' matches no node of 13; it must match a whole name: for 'Conv_depthwise', "
            "write '.*(?:Conv).*'",
        ),
        ({"patterns": "("}, "ignored pattern '(' is not a regular expression: missing ), unterminated subpattern"),
    ],
)
def test_what_matches_nothing_is_an_error_with_the_nearest_name(scope, message):
    with pytest.raises(ConfigError) as raised:
        IgnoredScope(**scope).select(GRAPH)
    assert str(raised.value).startswith(message)


# ------------------------------------------------------------------------------------------ other targets, and options

WIDE = QuantizationParameters(num_bits=16)
TWO_READERS = convolutions(
    "(float[N, 4, 8, 8] y) { a = Exp (x)  [one] b = Conv (a, w1)  [two] c = Conv (a, w2)  y = Add (b, c) }"
)


@pytest.mark.parametrize(
    "target, tensors",
    [
        # Of an addition, TensorRT wants the skip connection quantized, and what the kernel before makes left to that kernel.
        (TENSORRT, ["depthwise.relu", "features", "image", "pooled", "stem.relu", "sum.relu"]),
        (OPENVINO, ["depthwise.relu", "features", "image", "pointwise.norm", "pooled", "stem.relu", "sum.relu"]),
        (QNN, ["depthwise.relu", "features", "image", "pointwise.norm", "pooled", "scores", "stem.relu", "sum.relu"]),
        (ASCEND, ["depthwise.relu", "features", "image", "stem.relu@quantized"]),
    ],
    ids=lambda each: each.name if isinstance(each, Target) else "",
)
def test_each_target_has_quantizers_where_its_table_wants_them(target, tensors):
    assert sorted(plan_of(residual_network(), target=target).activations) == tensors


def test_activations_of_depthwise_convolutions_have_channels_where_the_table_says_so():
    plan = plan_of(convolutions("(float[N, 4, 8, 8] y) { a = Conv (x, w1)  y = Conv <group = 4> (a, d) }",
                                d=np.ones((4, 1, 3, 3), np.float32)), target=OPENVINO)  # fmt: skip
    assert {group: plan.schemes[group].granularity for group in ("x", "a")} == {"x": PerTensor(), "a": PerAxis(1)}
    both = plan_of(convolutions("(float[N, 4, 8, 8] y, float[N, 4, 8, 8] z) { a = Conv (x, w1)  y = Conv <group = 4> (a, d)"
                                "  z = Conv (a, w2) }", d=np.ones((4, 1, 3, 3), np.float32)), target=OPENVINO)  # fmt: skip
    assert both.schemes["a"].granularity == PerTensor()  # another reader wants one scale


def test_readers_that_want_different_widths_get_the_wider_one_or_one_each():
    overrides = [Override(names="two", activations=WIDE)]
    merged = plan_of(TWO_READERS, overrides=overrides)
    assert {group: scheme.grid.bits for group, scheme in merged.schemes.items()} == {"a": 16}
    for rule in ("merge_if_all_branches_same", "do_not_merge_branches"):
        split = plan_of(TWO_READERS, overrides=overrides, propagation=rule)
        assert {group: scheme.grid.bits for group, scheme in split.schemes.items()} == {"a": 8, "a@two": 16}
    chained = plan_of(TWO_READERS, overrides=overrides, propagation="merge_with_potential_requantization")
    assert [node.inputs[0] for node in chained.graph.nodes if node.name == "a@two"] == ["a"]


def test_readers_that_want_the_same_share_it_unless_they_must_not():
    assert set(plan_of(TWO_READERS, propagation="merge_if_all_branches_same").schemes) == {"a"}
    assert set(plan_of(TWO_READERS, propagation="do_not_merge_branches").schemes) == {"a", "a@two"}


def test_outputs_can_be_quantized_and_are_not_clipped():
    model = convolutions("(float[N, 4, 8, 8] y) { y = Conv (x, w1) }")
    assert set(plan_of(model).activations) == {"x"}
    plan = plan_of(model, quantize_outputs=True)
    assert set(plan.activations) == {"x", "y"}
    assert plan.unclipped == {"y"}


def test_scores_before_a_final_sigmoid_are_not_clipped():
    model = convolutions("(float[N, 4, 8, 8] y) { a = Conv (x, w1)  b = Relu (a)  c = Conv (b, w2)  y = Sigmoid (c) }")
    plan = plan_of(model, target=QNN)
    assert {plan.activations["c"], plan.activations["y"]} == set(plan.unclipped)
    assert plan_of(model).unclipped == frozenset()  # ONNX Runtime leaves them in float


def test_boxes_and_scores_keep_ranges_of_their_own_in_the_last_concat():
    model = convolutions(
        "(float[N, 8, 8, 8] y) { a = Conv (x, w1)  b = Sigmoid (a)  c = Conv (x, w2)  y = Concat <axis = 1> (b, c) }"
    )
    plan = plan_of(model, target=QNN)
    assert len({plan.activations[name] for name in ("b", "c", "y")}) == 3
    inner = convolutions("(float[N, 4, 8, 8] y) { a = Conv (x, w1)  c = Conv (x, w2)"
                         "  d = Concat <axis = 1> (a, c)  y = Conv (d, w) }",
                         w=np.ones((4, 8, 1, 1), np.float32))  # fmt: skip
    plan = plan_of(inner, target=QNN)
    assert len({plan.activations[name] for name in ("a", "c", "d")}) == 1


def test_the_decoding_of_boxes_is_left_alone():
    model = convolutions("(float[N, 4, 8, 8] y) { a = Conv (x, w1)  b = Conv (x, w2)  c = Add (a, b)  y = Mul (c, a) }")
    plan = plan_of(model, target=OPENVINO)
    assert set(plan.activations) == {"x"}
    assert list(plan.left.values()) == ["arithmetic behind the last layer"] * 2
    assert "Add" not in {node.op for node in plan_of(model).graph.nodes if node.name in plan_of(model).nodes}


def test_what_is_selected_from_is_left_alone():
    model = written("(float[N, 16] x) => (float[N, 2] y, int64[N, 2] i) { a = MatMul (x, w)  b = Add (a, a)"
                    "  c = GlobalAveragePool (b)  y, i = TopK (b, k) }", w=np.ones((16, 16), np.float32),
                    k=np.array([2]))  # fmt: skip
    plan = plan_of(model, target=OPENVINO)
    assert set(plan.activations) == {"x"}


def test_a_weight_shared_with_an_ignored_node_stays_exact_for_that_one():
    model = convolutions("(float[N, 4, 8, 8] y) { [one] a = Conv (x, w1)  [two] y = Conv (a, w1) }")
    plan = plan_of(model, IgnoredScope(names="two"))
    assert dict(plan.copies) == {"w1@float": "w1"}
    assert [node.inputs[1] for node in plan.graph.nodes if node.op == "Conv"] == ["w1", "w1@float"]
    prepared = planned(fused(model), plan)
    np.testing.assert_array_equal(prepared.params["w1@float"], prepared.params["w1"])


def test_recurrent_layers_have_weights_for_each_gate():
    model = written("(float[5, N, 3] x) => (float[5, 1, N, 4] y) { y = LSTM <hidden_size = 4> (x, w, r) }",
                    w=np.ones((1, 16, 3), np.float32), r=np.ones((1, 16, 4), np.float32))  # fmt: skip
    plan = plan_of(model, target=ASCEND)
    assert [(weight.name, weight.scheme.granularity) for weight in plan.weights] == [
        ("w", PerAxis(1)),
        ("r", PerAxis(1)),
    ]
    assert set(plan.activations) == {"x"}


def test_a_table_of_embeddings_is_a_weight():
    model = written("(int64[N, 3] i) => (float[N, 3, 2] y) { a = Gather (table, i)  y = MatMul (a, w) }",
                    table=np.ones((8, 4), np.float32), w=np.ones((4, 2), np.float32))  # fmt: skip
    plan = plan_of(model, target=OPENVINO)
    assert [(weight.name, weight.scheme.granularity) for weight in plan.weights] == [
        ("table", PerAxis(0)),
        ("w", PerAxis(1)),
    ]


def test_products_of_activations_are_symmetric_for_openvino():
    plan = plan_of(transformer_block(), target=OPENVINO)
    assert plan.schemes["query"].symmetric
    assert not plan.schemes["norm"].symmetric
    assert "attention" not in plan.activations  # the product with the values stays in float


def test_a_transposed_convolution_has_its_channels_on_axis_one_whatever_its_groups():
    model = written("(float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) { y = ConvTranspose <group = 2> (x, w) }",
                    w=np.ones((4, 3, 1, 1), np.float32))  # fmt: skip
    assert not plan_of(model, target=OPENVINO).weights, "its integer kernel has no groups"
    for target in (ONNXRUNTIME, TENSORRT):
        (weight,) = plan_of(model, target=target).weights
        assert weight.scheme.granularity == PerAxis(1)
        assert weight.scheme.grid in (IntType(8, narrow=True), IntType(7))


def test_what_others_hold_need_not_be_watched():
    plan = plan_of(shuffle_network())
    assert "shuffled" in plan.moved
    assert not {"image", "left.relu", "right.relu"} & plan.moved
