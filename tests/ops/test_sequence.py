"""Sequences and optionals. What the official suite does not show: mistakes, and that lists of traced arrays compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import written

import jaxq
from jaxq.engine.execute import execute
from jaxq.errors import DynamicShapeError, ModelError
from jaxq.onnx_io.save import to_proto
from jaxq.ops import find, is_static


def meaning(name):
    return find(name, "", 17).function


x = np.arange(6, dtype=np.float32)


def test_a_sequence_of_traced_arrays_compiles():
    text = "(float[6] x) => (float[2] y) { s = SplitToSequence (x, two) y = SequenceAt (s, last) }"
    model = jaxq.load(written(text, two=np.int64(2), last=np.int64(-1)))
    found = jax.jit(lambda x: execute(model.graph, {}, {"x": x})[0])(jnp.asarray(x))
    np.testing.assert_array_equal(found["y"], [4, 5])


def test_a_sequence_is_known_when_all_of_it_is():
    assert is_static([])
    assert is_static([x, x])
    assert not is_static([x, jnp.asarray(x)])


def test_positions_count_from_both_ends():
    sequence = [np.float32(0), np.float32(1), np.float32(2)]
    assert meaning("SequenceAt")(sequence, np.array(-3)) == 0
    assert meaning("SequenceErase")(sequence) == [0, 1]
    assert meaning("SequenceErase")(sequence, np.array(-3)) == [1, 2]
    assert meaning("SequenceInsert")(sequence, np.float32(9), np.array(-1)) == [0, 1, 9, 2]
    assert meaning("SequenceInsert")(sequence, np.float32(9), np.array(3)) == [0, 1, 2, 9]
    with pytest.raises(ModelError, match=r"SequenceAt.position is 3, outside of a sequence of 3"):
        meaning("SequenceAt")(sequence, np.array(3))
    with pytest.raises(ModelError, match=r"SequenceErase.position is -1, outside of a sequence of 0"):
        meaning("SequenceErase")([])


def test_a_position_that_depends_on_the_data_does_not_compile():
    with pytest.raises(DynamicShapeError, match=r"SequenceAt.position must be known"):
        meaning("SequenceAt")([x], jnp.asarray(0))


def test_wrong_parts_are_refused():
    with pytest.raises(ModelError, match=r"length 6 cannot be split into \[2, 3\]"):
        meaning("SplitToSequence")(x, np.array([2, 3]))
    with pytest.raises(ModelError, match=r"SplitToSequence.split is 0"):
        meaning("SplitToSequence")(x, np.array(0))
    with pytest.raises(ModelError, match="the sequence is empty"):
        meaning("ConcatFromSequence")([], axis=0)
    with pytest.raises(ModelError, match="the optional is empty"):
        meaning("OptionalGetElement")(None)


def test_types_of_sequences_and_optionals_are_written_as_they_were_read():
    text = """(seq(float[a]) s, optional(float[b]) o) => (seq(float[a]) t, bool h) {
        t = Identity (s) h = OptionalHasElement (o) }"""
    model = jaxq.load(written(text))
    assert str(model.inputs["s"]) == "sequence of float32[a]"
    assert str(model.inputs["o"]) == "optional of float32[b]"
    assert jaxq.load(to_proto(model)).graph.types == model.graph.types
    found = model({"s": [x, x[:2]], "o": None})
    assert [len(each) for each in found["t"]] == [6, 2]
    assert not found["h"]
