"""That a part of a graph makes what the whole makes, from tensors that are handed in."""

import numpy as np
import pytest
from models import NETWORKS, samples, written

from jaxq.engine.execute import execute
from jaxq.graph.cut import between, stages
from jaxq.onnx_io.load import load

CHAIN = written(
    """(float[N, 4] x) => (float[N, 4] y, int64[2] size) {
      a = Relu (x) b = Neg (a) size = Shape (a) c = Reshape (b, size) d = Add (c, a) unused = Exp (d) y = Tanh (d) }"""
)


def names(part):
    return [node.outputs[0] for node in part.nodes]


def test_a_part_has_the_nodes_between_its_sources_and_targets():
    graph = load(CHAIN).graph
    assert names(between(graph, (), ["y"])) == ["a", "b", "size", "c", "d", "y"]
    part = between(graph, ["b", "d"], ["y"])
    assert (names(part), part.inputs, part.outputs) == (["y"], ("d",), ("y",))
    part = between(graph, ["d", "a", "b"], ["d"])  # a known value is made again, from what is there
    assert (names(part), part.inputs, part.outputs) == (["size", "c", "d"], ("a", "b"), ("d",))
    part = between(graph, ["b"], ["b", "x"])  # a source that is a target is made; an input goes through
    assert (names(part), part.inputs, part.outputs) == (["a", "b"], ("x",), ("b", "x"))


def test_a_part_reads_what_bodies_inside_of_it_read():
    graph = load(NETWORKS["branching"][0]()).graph
    (node,) = [node for node in graph.nodes if node.op == "If"]
    made = [name for each in graph.nodes[: graph.nodes.index(node)] for name in each.outputs]
    part = between(graph, made, node.outputs)
    assert part.nodes == (node,)
    assert part.inputs == ("sound", "is_slow")  # the body reads the one, the node itself the other


@pytest.mark.parametrize("name", ["residual", "transformer"])
@pytest.mark.parametrize("count", [1, 3])
def test_stages_one_behind_the_other_make_what_the_whole_makes(name, count):
    model = load(NETWORKS[name][0]())
    (feed,) = samples(name, 1)
    seen = {}
    wanted, _ = execute(model.graph, model.params, feed, tap=lambda key, x, carry: (seen.setdefault(key, x), carry))
    parts = stages(model.graph, frozenset(seen), frozenset(model.params), count)
    assert len(parts) == count
    there, found = dict(feed), {}
    for part in parts:
        made, _ = execute(part.graph, model.params, {key: there[key] for key in part.graph.inputs})
        there |= {key: made[key] for key in part.handed_on}
        found |= {key: made[key] for key in part.outputs}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(np.asarray(found[key]), np.asarray(value), rtol=1e-5, atol=1e-6)
