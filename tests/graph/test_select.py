"""Nodes are selected by name, pattern, operator, attributes, and by what lies between two of them."""

import numpy as np
import pytest
from models import residual_network, shuffle_network, written

from jaxq.errors import ConfigError, JaxqWarning
from jaxq.graph.fusion import fuse
from jaxq.graph.ir import Graph, Node
from jaxq.graph.select import IgnoredScope, Operation, Subgraph, pattern_hint, stand_ins
from jaxq.onnx_io.load import load

GRAPH = load(residual_network()).graph


def test_a_subgraph_is_what_lies_on_paths_between_its_ends():
    found = IgnoredScope(subgraphs=[Subgraph("Conv_depthwise", "Add_sum")]).select(GRAPH)
    assert {"Conv_depthwise", "Conv_pointwise", "Add_sum"} <= found
    assert not {"Conv_stem", "GlobalAveragePool_pooled"} & found


def test_a_subgraph_takes_time_linear_in_the_graph():
    # 60 diamonds in a row have 2**60 paths.
    nodes, last = [], "x"
    for number in range(60):
        left, right, joined = f"l{number}", f"r{number}", f"y{number}"
        nodes += [Node("Relu", (last,), (left,), name=left), Node("Neg", (last,), (right,), name=right)]
        nodes.append(Node("Add", (left, right), (joined,), name=joined))
        last = joined
    found = IgnoredScope(subgraphs=Subgraph("l0", "y59")).select(Graph(tuple(nodes), ("x",), (last,)))
    assert len(found) == 3 * 60 - 1  # all but the other half of the first diamond


def test_operations_are_told_apart_by_their_attributes():
    proto = written("(float[N, 4] x) => (float[N, 5] y) { a = Gemm <transB = 1> (x, v)  y = Gemm <transA = 0> (a, w) }",
                    v=np.ones((5, 4), np.float32), w=np.ones((5, 5), np.float32))  # fmt: skip
    graph = load(proto).graph
    (first, second) = (node.name for node in graph.nodes)
    assert IgnoredScope(operations=[Operation("Gemm", {"transB": 1})]).select(graph) == {first}
    # An entry that does not match does not hide a later one of the same type.
    both = [Operation("Gemm", {"transB": 1}), Operation("Gemm", {"transA": 0})]
    assert IgnoredScope(operations=both).select(graph) == {first, second}


def test_attributes_may_be_lists():
    graph = load(shuffle_network()).graph
    node = next(node for node in graph.nodes if node.op == "Transpose")
    listed = Operation("Transpose", {"perm": list(node.attributes["perm"])})
    assert node.name in IgnoredScope(operations=listed).select(graph)


@pytest.mark.parametrize(
    "scope, message",
    [
        ({"subgraphs": [Subgraph("Conv_stm", "Add_sum")]}, "'Conv_stm' is no node; did you mean 'Conv_stem'?"),
        ({"subgraphs": [Subgraph("Add_sum", "Conv_stem")]}, "no path leads from Add_sum to Conv_stem"),
        ({"operations": [Operation("Conv", {"group": 99})]}, "'Conv with group = 99' matches no node"),
        (
            {"operations": [Operation("Conv", {"grup": 1})]},
            "'Conv with grup = 1' matches no node; did you mean 'group'?",
        ),
        ({"operations": [Operation("Conv", {"x": 1})]}, "'Conv with x = 1' matches no node; their attributes are "),
        ({"operations": [Operation("Cnv")]}, "'Cnv' matches no node; did you mean 'Conv'?"),
    ],
)
def test_what_matches_nothing_is_an_error_or_without_validation_a_warning(scope, message):
    with pytest.raises(ConfigError) as raised:
        IgnoredScope(**scope).select(GRAPH)
    assert message in str(raised.value)
    with pytest.warns(JaxqWarning) as warned:
        assert IgnoredScope(**scope, validate=False).select(GRAPH) == frozenset()
    assert message in str(warned[0].message)


def test_entries_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match="ignored names = 3; expected a string or a list of strings"):
        IgnoredScope(names=3)
    with pytest.raises(ConfigError, match=r"ignored types = \[Operation.*; expected a string or a list of strings"):
        IgnoredScope(types=[Operation("Conv")])
    with pytest.raises(ConfigError, match="inputs of a Subgraph = None"):
        Subgraph(None, "Add_sum")
    with pytest.raises(ConfigError, match="is no Subgraph"):
        IgnoredScope(subgraphs=[("a", "b")])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Operation(3), "type = 3; expected a str"),
        (lambda: Operation("Conv", ["group"]), r"attributes = \['group'\]; expected a Mapping"),
    ],
)
def test_operations_of_another_kind_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_node_that_the_importer_drops_can_be_named():
    proto = written("(float[N, 4] x) => (float[N, 4] y) { [same] a = Identity (x)  [product] b = MatMul (a, w)"
                    "  [drop] c = Dropout (b)  [clip] y = Relu (c) }", w=np.eye(4, dtype=np.float32))  # fmt: skip
    model = load(proto)
    assert "same" not in {node.name for node in model.graph.nodes}
    assert IgnoredScope(names=["same"]).select(model.graph, model.folded) == frozenset()
    with pytest.raises(ConfigError, match="matches no node"):
        IgnoredScope(names=["other"]).select(model.graph, model.folded)


def test_a_node_that_is_merged_into_another_stands_for_nothing_and_says_so():
    model = load(residual_network())
    name = next(node.name for node in model.graph.nodes if node.op == "BatchNormalization")
    graph, _ = fuse(model.graph, model.params)
    merged = stand_ins(model.graph, graph)
    assert merged[name].startswith("Conv_")
    scope = IgnoredScope(names=[name])
    with pytest.warns(JaxqWarning, match=f"'{name}' is merged into '{merged[name]}'"):
        scope.warn_of_folded(scope.select(model.graph), merged)


@pytest.mark.parametrize(
    "pattern, hint",
    [
        ("conv|fc", "; it must match a whole name: for 'my_conv_1', write '.*(?:conv|fc).*'"),
        ("(?i)CONV", "; it must match a whole name: for 'my_conv_1', write '(?i).*(?:CONV).*'"),
        ("fc", ""),
    ],
)
def test_the_pattern_that_is_advised_matches(pattern, hint):
    assert pattern_hint(pattern, {"my_conv_1"}).startswith(hint)
    assert bool(hint) == ("whole name" in pattern_hint(pattern, {"my_conv_1"}))
