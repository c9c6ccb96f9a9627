"""Numbers of rows that a table does not have are refused with sample and position, wherever a model meets data."""

import numpy as np
import pytest
from models import written

import jaxq
from jaxq.errors import InputError
from jaxq.onnx_io.load import load

TABLE = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def embedding(lines: str, shape: str = "int64[N, L] ids", **more):
    text = f"({shape}) => (float[A, B, C] y) {{ {lines} rows = Gather (table, picks) y = MatMul (rows, w) }}"
    return written(text, table=TABLE, w=WEIGHT, **more)


PLAIN = embedding("picks = Identity (ids)")


def ids(*values, dtype=np.int64):
    return {"ids": np.array([values], dtype)}


GOOD = [ids(0, 9, 3), ids(-10, 1, 2), ids(5, 5, 5)] * 4


WRONG = {
    "10 at position [0, 1]": ids(1, 10, 2),
    "-11 at position [0, 2]": ids(1, 2, -11),
    f"{2**40} at position [0, 0]": ids(2**40, 0, 0),
}


@pytest.mark.parametrize("position", WRONG)
def test_calibration_refuses_it_with_sample_and_position(position):
    with pytest.raises(InputError) as found:
        jaxq.quantize(PLAIN, [*GOOD[:3], WRONG[position], *GOOD])
    message = str(found.value)
    assert f"input 'ids' of sample 3 (counted from 0) holds {position}" in message
    assert "10 rows of 'table': -10 to 9" in message


def test_a_batch_is_counted_in_samples():
    batch = {"ids": np.array([[1, 2], [3, 4], [5, 99]])}
    with pytest.raises(InputError, match=r"of sample 4 .* holds 99 at position \[0, 1\]"):
        jaxq.quantize(PLAIN, [{"ids": np.array([[1, 2], [3, 4]])}, batch])


@pytest.mark.parametrize(
    ("lines", "shape"),
    [
        ("picks = Cast <to = 6> (ids)", "int64[N, L] ids"),
        ("picks = Cast <to = 7> (ids)", "float[N, L] ids"),
        ("flat = Reshape (ids, all) picks = Unsqueeze (flat, first)", "int64[N, L] ids"),
        ("picks = Transpose <perm = [1, 0]> (ids)", "int64[N, L] ids"),
    ],
)
def test_ids_are_followed_through_what_keeps_values(lines, shape):
    model = load(embedding(lines, shape, all=np.array([-1]), first=np.array([0])))
    given = np.float32 if shape.startswith("float") else np.int64
    model(ids(0, 9, -10, dtype=given))
    with pytest.raises(InputError, match=r"holds 10(\.0)? at position \[0, 1\]"):
        model(ids(0, 10, 1, dtype=given))


def test_a_constant_shift_shifts_the_range():
    model = load(embedding("picks = Add (ids, two)", two=np.int64(2)))
    model(ids(7, -12, 0))
    with pytest.raises(InputError, match=r"holds 8 .*: -12 to 7"):
        model(ids(7, 8, 0))


@pytest.mark.parametrize(
    "lines",
    [
        "picks = Clip (ids, zero, nine)",
        "picks = Mod (ids, ten)",
        "small = Less (ids, ten) picks = Where (small, ids, zero)",
        "picks = Slice (ids, start, end, axes)",
    ],
)
def test_computed_ids_raise_no_alarm(lines):
    constants = {"zero": np.int64(0), "nine": np.int64(9), "ten": np.int64(10)}
    places = {"start": np.array([0]), "end": np.array([1]), "axes": np.array([1])}
    model = load(embedding(lines, **constants, **places))
    assert np.isfinite(model(ids(3, 77, 1))["y"]).all()


@pytest.mark.parametrize(
    ("node", "good", "bad"),
    [
        ("y = Gather <axis = 1> (table, ids)", [[3]], [[4]]),
        ("y = Gather <axis = -1> (table, ids)", [[3]], [[4]]),
        ("y = GatherElements <axis = 0> (table, ids)", [[9, -10, 0]], [[0, 10, 0]]),
        ("y = GatherND (table, ids)", [[9, 3]], [[10, 0]]),
        ("y = ScatterElements <axis = 0> (table, ids, updates)", [[9, 0]], [[0, 10]]),
        ("y = ScatterND (table, ids, row)", [[9]], [[-11]]),
    ],
)
def test_other_operators_that_pick(node, good, bad):
    text = f"(int64[N, L] ids) => (float[A, B] y) {{ {node} }}"
    model = load(written(text, table=TABLE, updates=np.zeros((1, 2), np.float32), row=np.zeros((1, 4), np.float32)))
    model({"ids": np.array(good)})
    with pytest.raises(InputError, match="ONNX Runtime refuses"):
        model({"ids": np.array(bad)})


def test_a_branch_that_may_not_run_bounds_nothing():
    model = load(written(
        """(int64[N, L] ids, bool c) => (float[A, B, C] y) { y = If (c) <
          then_branch = a () => (float[A, B, C] u) { u = Gather (table, ids) },
          else_branch = b () => (float[A, B, C] v) { z = Mod (ids, ten) v = Gather (table, z) }> }""",
        table=TABLE, ten=np.int64(10),
    ))  # fmt: skip
    assert model({"ids": np.array([[12]]), "c": np.array(False)})["y"].shape == (1, 1, 4)


def test_evaluation_verification_and_compression_refuse_it_too(tmp_path):
    bad = [*GOOD, ids(1, 2, 12)]
    made = jaxq.quantize(PLAIN, GOOD)
    with pytest.raises(InputError, match=r"of sample 12 .* holds 12 at position \[0, 2\]"):
        jaxq.verify(made, bad)
    with pytest.raises(InputError, match=r"of validation sample 12 .* holds 12 at position \[0, 2\]"):
        jaxq.quantize_with_accuracy_control(PLAIN, GOOD, bad, max_drop=0.1)
    with pytest.raises(InputError, match=r"of sample 12 .* holds 12 at position \[0, 2\]"):
        jaxq.compress_weights(PLAIN, mode="int8_sym", dataset=bad, gptq=True)
