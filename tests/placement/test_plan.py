"""A plan makes the model ready for calibration: its graph, and copies of what two kinds of readers share."""

import numpy as np
from models import written
from placement.test_place import fused, plan_of

from jaxq.graph.ir import Graph, Node
from jaxq.graph.select import IgnoredScope
from jaxq.pipeline import planned
from jaxq.placement.plan import read_copies


def test_an_identity_stands_right_behind_its_source():
    steps = (("Neg", "x", "a"), ("Abs", "a", "y"), ("Exp", "a", "z"))
    nodes = [Node(op, (source,), (made,), name=op) for op, source, made in steps]
    graph = Graph(tuple(nodes), ("x",), ("y", "z"))
    changed = read_copies(graph, {("Abs", 0): "b"}, {"b": "a"})
    assert [node.op for node in changed.nodes] == ["Neg", "Identity", "Abs", "Exp"]
    assert [node.inputs for node in changed.nodes] == [("x",), ("a",), ("b",), ("a",)]


SHARED = "(float[N, 4] x) => (float[N, 4] y) { [one] a = MatMul (x, w)  b = Exp (a)  [two] y = MatMul (b, w) }"


def test_a_prepared_model_computes_the_same():
    random = np.random.default_rng(0)
    proto = written(SHARED, w=random.normal(size=(4, 4)).astype(np.float32))
    model = fused(proto)
    prepared = planned(model, plan_of(proto, IgnoredScope(names="two")))
    assert prepared.params.keys() == {"w", "w@float"}
    x = random.normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(prepared(x)["y"]), np.asarray(model(x)["y"]))
