"""A bad file gives an error of jaxq's that names the node or tensor; never another error, a hang, or a full memory."""

import numpy as np
import onnx
import pytest
from models import written
from mutations import attempt, function_model, mutated, recurse, seeds
from onnx import TensorProto, helper, numpy_helper

from jaxq.analysis.inspect import summarize
from jaxq.errors import JaxqError, ModelError
from jaxq.graph.fusion import fuse
from jaxq.onnx_io.check import MOST_NODES
from jaxq.onnx_io.load import load
from jaxq.ops import MOST_BYTES, find
from jaxq.ops.budget import MOST_VISITS, Budget, predicted_bytes

X = np.ones((2, 4), np.float32)
HEAD = "(float[2, 4] x) => (float[R, C] y)"


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def model_of(text: str, opset: int = 17, **initializers) -> onnx.ModelProto:
    return written(f"{HEAD} {{ {text} }}", opset, **initializers)


def changed(model: onnx.ModelProto, change) -> onnx.ModelProto:
    change(model)
    return model


def with_tensor(**fields) -> onnx.ModelProto:
    """A model whose only initializer is made of these fields of a TensorProto."""
    model = model_of("[sum] y = Add (x, w)")
    model.graph.initializer.append(TensorProto(name="w", **fields))
    return model


def calling_twice(depth: int) -> onnx.ModelProto:
    """A function that calls a function twice that calls a function twice ..."""
    model = model_of("y = local.f0 (x)")
    model.opset_import.append(helper.make_opsetid("local", 1))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for level in range(depth):
        inner = (
            {"op_type": f"f{level + 1}", "domain": "local"} if level + 1 < depth else {"op_type": "Neg", "domain": ""}
        )
        body = [helper.make_node(inputs=[a], outputs=[b], **inner) for a, b in (("a", "b"), ("b", "c"))]
        model.functions.append(helper.make_function("local", f"f{level}", ["a"], ["c"], body, imports))
    return model


LOOP = "[turns] y = Loop ({}) <body = body (int64 i, bool go, float[2, 4] s) => (bool on, float[2, 4] t) {{ {} }}>"
YES = np.array(True)

BAD = {
    "two tensors of a name": (
        model_of("[a] y = Neg (x)  [b] y = Relu (x)"),
        r"'y' is made twice, by node 'a' \(Neg\) and by node 'b'",
    ),
    "a tensor of the name of an input": (
        model_of("[a] x = Neg (x)  y = Relu (x)"),
        r"'x' is made twice, by an input .* and by node 'a'",
    ),
    "two initializers of a name": (
        changed(model_of("y = Add (x, w)", w=X), lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        "tensor 'w' is made twice, by an initializer and by an initializer",
    ),
    "two outputs of a name": (
        changed(model_of("y = Neg (x)"), lambda m: m.graph.output.append(m.graph.output[0])),
        "two outputs of the name 'y'",
    ),
    "a circle": (
        model_of("[one] a = Add (x, c)  [two] b = Neg (a)  [three] c = Relu (b)  y = Neg (c)"),
        r"in a circle: .*'(one|two|three)' \(",
    ),
    "a lost tensor": (
        model_of("[sum] y = Add (x, lost)"),
        r"'lost' is read but nothing makes it: .* input of node 'sum' \(Add\)",
    ),
    "a lost output": (model_of("z = Neg (x)"), "'y' is read but nothing makes it: .* output of graph 'network'"),
    "an attribute of another kind": (
        model_of('[soft] y = Softmax <axis = "one"> (x)'),
        r"'soft' \(Softmax, opset 17\): attribute 'axis' is 'one', not of kind INT",
    ),
    "an attribute of no kind": (
        changed(
            model_of("[soft] y = Softmax <axis = 1> (x)"), lambda m: setattr(m.graph.node[0].attribute[0], "type", 0)
        ),
        r"node 'soft' \(Softmax\): attribute 'axis' is of kind UNDEFINED",
    ),
    "an unknown attribute": (
        model_of("[soft] y = Softmax <axes = 1> (x)"),
        "'soft' .* attribute 'axes' is not one of Softmax's",
    ),
    "a missing attribute": (model_of("[to] y = Cast (x)"), r"'to' \(Cast, opset 17\): its attribute 'to' is missing"),
    "a missing input": (
        model_of("[sum] y = Add (x)"),
        r"'sum' \(Add, opset 17\) has 1 inputs, but takes 2: \['A', 'B'\]",
    ),
    "an absent input": (model_of('[sum] y = Add ("", x)'), "'sum' .* its input 'A' is missing"),
    "too many outputs": (model_of("[neg] y, z = Neg (x)"), r"'neg' .* has 2 outputs, but takes 1"),
    "another rank": (
        model_of("[conv] y = Conv (x, w)", w=np.ones((1, 1, 3, 3), np.float32)),
        r"node 'conv' \(Conv, opset 17\)",
    ),
    "a bias of another length": (
        model_of("[conv] y = Conv (x, w, b)", w=np.ones((2, 4, 1), np.float32), b=np.ones(3, np.float32)),
        r"node 'conv' \(Conv, opset 17\): the bias must have shape \[2\], .* shapes \[\?, \[2, 4, 1\], \[3\]\]",
    ),
    "a group that does not divide": (
        model_of("[conv] y = Conv <group = 3> (x, w)", w=np.ones((4, 1, 1), np.float32)),
        r"node 'conv' .* 3 group\(s\) divide",
    ),
    "statistics of several lengths": (
        model_of("[norm] y = BatchNormalization (x, a, a, b, b)", a=np.ones(4, np.float32), b=np.ones(5, np.float32)),
        r"node 'norm' .* vectors of one length",
    ),
    "a kernel of rank 1": (
        model_of("[conv] y = Conv (x, w)", w=np.ones(3, np.float32)),
        r"node 'conv' \(Conv, opset 17\)",
    ),
    "a dense layer of rank 1": (
        model_of("[dense] y = Gemm <transB = 1> (x, w)", w=np.ones(4, np.float32)),
        r"node 'dense' \(Gemm, opset 17\)",
    ),
    "shapes that do not fit": (
        model_of("a = Neg (x)  [product] b = MatMul (a, w)  y = Relu (b)", w=np.ones((5, 3), np.float32)),
        r"'product' \(MatMul, opset 17\) cannot run on inputs \['float32\[2, 4\]', 'float32\[5, 3\]'\]",
    ),
    "shapes that do not fit in a branch": (
        model_of(
            """[choice] y = If (yes) <then_branch = t () => (float[2, 4] a) { [inner] a = MatMul (x, x) },
                 else_branch = e () => (float[2, 4] b) { b = Neg (x) }>""",
            yes=YES,
        ),
        r"node 'inner' \(MatMul",
    ),
    "an unknown domain": (
        model_of("[it] y = com.acme.Fold (x)"),
        r"com.acme.Fold \(opset 1\) is not implemented: .* first 'it'",
    ),
    "the domain that is jaxq's own": (
        model_of("[it] y = jaxq.Conv (x, x)"),
        "jaxq.Conv is not implemented: .* first 'it'",
    ),
    "no opset": (
        changed(model_of("[neg] y = Neg (x)"), lambda m: m.ClearField("opset_import")),
        "'neg' .* imports no opset of them",
    ),
    "two opsets": (
        changed(model_of("y = Neg (x)"), lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 12))),
        "two opsets of domain 'ai.onnx': 17 and 12",
    ),
    "a function that calls itself": (
        changed(
            function_model(),
            lambda m: m.functions[0].node.add(op_type="Inner", domain="local", input=["a"], output=["q"]),
        ),
        "call each other in a circle: local.Inner -> local.Inner",
    ),
    "functions that call each other": (
        changed(
            function_model(),
            lambda m: m.functions[0].node.add(op_type="Outer", domain="local", input=["a"], output=["q"]),
        ),
        "in a circle: local.(Inner -> local.Outer|Outer -> local.Inner)",
    ),
    "functions that call too often": (
        calling_twice(40),
        f"nodes when its functions are inlined; more than {MOST_NODES}",
    ),
    "a call with too many inputs": (
        changed(function_model(), lambda m: m.graph.node[0].input.append("x")),
        r"\(Outer\) calls a function of 1 inputs and 1 outputs",
    ),
    "data that are too short": (
        with_tensor(data_type=1, dims=[2, 4], raw_data=bytes(31)),
        r"'w', float\[2, 4\], needs 32 bytes of data, but has 31",
    ),
    "a negative dimension": (
        with_tensor(data_type=1, dims=[2, -4], raw_data=bytes(32)),
        r"'w', float\[2, -4\], has a negative",
    ),
    "enormous dimensions without data": (with_tensor(data_type=1, dims=[1 << 40, 1 << 20]), "'w'.*has no data"),
    "an unknown type": (with_tensor(data_type=99, dims=[1], raw_data=bytes(4)), "'w' has element type 99"),
    "strings instead of numbers": (
        model_of("[sum] y = Add (x, w)", w=np.array(["a", "b"], object)),
        r"node 'sum' \(Add, opset 17\): \w+ consists of strings, which JAX does not know",
    ),
    "an input that is a map": (
        changed(model_of("y = Neg (x)"), lambda m: setattr(m.graph.input[0].type.map_type, "key_type", 7)),
        "'x' is declared as a map",
    ),
    "an input of no type": (
        changed(model_of("y = Neg (x)"), lambda m: m.graph.input[0].ClearField("type")),
        "input 'x' is not declared",
    ),
    "a branch that reads what is not there": (
        model_of(
            """[choice] y = If (yes) <then_branch = t () => (float[2, 4] a) { [inner] a = Add (x, nowhere) },
                 else_branch = e () => (float[2, 4] b) { b = Neg (x) }>""",
            yes=YES,
        ),
        "'nowhere' is read .* node 'inner'",
    ),
    "an If without branches": (
        model_of("[choice] y = If (yes)", yes=YES),
        "'choice' .* attribute '(then|else)_branch' is missing",
    ),
    "a Loop without a body": (
        model_of("[turns] y = Loop (three, yes, x)", yes=YES, three=np.int64(3)),
        "'turns' .* 'body' is missing",
    ),
    "a Loop whose body takes something else": (
        model_of(
            "[turns] y = Loop (three, yes, x, x) <body = b (int64 i, bool go, float[2, 4] s) => (bool on, float[2, 4] t) {"
            " on = Identity (go) t = Neg (s) }>",
            yes=YES,
            three=np.int64(3),
        ),
        r"node 'turns' \(Loop",
    ),
    "a Scan with wrong counts": (
        model_of("[scan] y = Scan <num_scan_inputs = 3, body = b (float[4] s) => (float[4] t) { t = Neg (s) }> (x)"),
        r"'scan' \(Scan, opset 17\): num_scan_inputs = 3 does not fit",
    ),
    "a loop without end": (
        model_of(LOOP.format(", yes, x", "on = Identity (yes)  t = Neg (s)"), yes=YES),
        "'turns' .* never end",
    ),
    "a loop without end that counts nothing": (
        model_of(LOOP.format(", , x", "on = Identity (go)  t = Neg (s)")),
        "'turns' .* so it would never end",
    ),
    **{
        f"a huge {name}": (model_of(text, opset, **values), f"node '{name}' .*({message})")
        for name, text, opset, values, message in (
            (
                "ConstantOfShape",
                "[ConstantOfShape] y = ConstantOfShape (s)",
                17,
                {"s": ints(1 << 20, 1 << 20)},
                "4.1e.03 GiB",
            ),
            (
                "Range",
                "[Range] y = Range (a, b, c)",
                17,
                {"a": np.int64(0), "b": np.int64(1 << 50), "c": np.int64(1)},
                "GiB",
            ),
            ("Expand", "[Expand] y = Expand (x, s)", 17, {"s": ints(1 << 40, 1, 1)}, "device has"),
            ("Tile", "[Tile] y = Tile (x, s)", 17, {"s": ints(1 << 20, 1 << 20)}, "device has"),
            ("Pad", "[Pad] y = Pad (x, s)", 17, {"s": ints(1 << 20, 0, 0, 1 << 20)}, "device has"),
            (
                "OneHot",
                "a = Cast <to = 7> (x)  [OneHot] y = OneHot (a, d, v)",
                17,
                {"d": ints(1 << 40), "v": np.float32([0, 1])},
                "GiB",
            ),
            ("Resize", "[Resize] y = Resize (x, , , s)", 18, {"s": ints(1 << 20, 1 << 20)}, "device has"),
            ("Resize2", "[Resize2] y = Resize (x, , , s)", 18, {"s": ints(2, 1 << 50)}, "GiB"),
            ("HannWindow", "[HannWindow] y = HannWindow (s)", 17, {"s": np.int64(1 << 40)}, "GiB"),
            ("Upsample", "[Upsample] y = Upsample <scales = [1e6, 1e6]> (x)", 7, {}, "device has|GiB"),
            (
                "Static",
                "a = Expand (one, s)  b = Transpose <perm = [1, 0]> (a)  [Static] y = Add (a, b)",
                17,
                {"s": ints(1 << 18, 1), "one": np.int64(1).reshape(1, 1)},
                "512 GiB",
            ),
        )
    },
}


def test_weights_that_do_not_fit_each_other_are_left_to_the_run_not_merged():
    model = model_of(
        "a = Conv (e, w)  [norm] y = BatchNormalization (a, s, s, s, s)  e = Unsqueeze (x, zero)",
        w=np.ones((3, 2, 1), np.float32),
        s=np.ones(4, np.float32),
        zero=ints(0),
    )
    loaded = load(model)
    assert fuse(loaded.graph, loaded.params)[0] is loaded.graph
    assert summarize(loaded, "onnxruntime").operators["BatchNormalization"] == 1
    with pytest.raises(ModelError, match="node 'norm'"):
        loaded(X)


def test_the_terminal_shows_nothing_but_the_error(capfd):
    with pytest.raises(ModelError, match="'lost' is read but nothing makes it"):
        load(model_of("[sum] y = Add (x, lost)"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model, message", BAD.values(), ids=BAD)
def test_a_bad_model_is_refused_by_name(model, message):
    with pytest.raises(ModelError, match=message):
        load(model.SerializeToString())({"x": X})


def test_the_error_from_inside_is_the_cause():
    model = load(model_of("[product] y = MatMul (x, w)", w=np.ones((5, 3), np.float32)))
    with pytest.raises(ModelError) as raised:
        model([X])
    assert isinstance(raised.value.__cause__, TypeError)


def test_tensors_without_elements_are_valid():
    model = load(written("(float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", w=np.ones((4, 3), np.float32)))
    assert model([np.zeros((0, 4), np.float32)])["y"].shape == (0, 3)
    model = load(model_of("y = Concat <axis = 1> (x, w)", w=np.zeros((2, 0), np.float32)))
    np.testing.assert_array_equal(model([X])["y"], X)


def test_a_loop_may_run_as_often_as_the_largest_integer_allows():
    """What exporters write for `while`."""
    body = "q = ReduceSum <keepdims = 0> (s)  on = Less (q, limit)  t = Add (s, s)"
    model = load(
        model_of(LOOP.format("most, yes, x", body), most=np.int64((1 << 63) - 1), yes=YES, limit=np.float32(100))
    )
    np.testing.assert_array_equal(model([X])["y"], np.full_like(X, 32))


def test_loops_within_loops_do_not_go_on_for_ever():
    """The number of turns is known, and the shape of the state changes: nothing but unrolling would do."""
    inner = "q = Concat <axis = 0> (s, s)  t = Slice (q, zero, last)  on = Identity (go)"
    text = f"""[outer] y = Loop (many, yes, x) <body = b (int64 j, bool up, float[A, 4] u) => (bool onn, float[A, 4] v) {{
        onn = Identity (up)
        [inner] v = Loop (many, yes, u) <body = c (int64 i, bool go, float[B, 4] s) => (bool on, float[B, 4] t)
        {{ {inner} }}> }}>"""
    model = load(model_of(text, many=np.int64(1 << 40), yes=YES, zero=ints(0), last=ints(-1)))
    with pytest.raises(ModelError):
        model([X])


def test_the_walk_counts_the_nodes_it_visits():
    budget = Budget()
    budget.visits = 1
    budget.visit()
    with pytest.raises(ModelError, match=f"more than {MOST_VISITS} nodes had to be visited"):
        budget.visit()


def test_values_that_grow_step_by_step_are_bounded_in_all(monkeypatch):
    monkeypatch.setattr("jaxq.graph.passes.MOST_BYTES", 1 << 24)
    doubled = "  ".join(f"v{n + 1} = Concat <axis = 0> (v{n}, v{n})" for n in range(40))
    start = np.ones(1 << 10, np.int64)
    with pytest.raises(ModelError, match=r"node 'Concat.*' \(Concat, opset 17\): its result would have .* MiB"):
        load(model_of(f"{doubled}  y = Gather <axis = 0> (v40, i)", v0=start, i=ints(0)))


def test_the_size_of_a_result_is_known_before_it_is_made():
    tile = find("Tile", "", 17)
    assert predicted_bytes(tile, [X, ints(1000, 1000)], {}) == X.nbytes * 10**6
    assert predicted_bytes(tile, [X, ints(1, 2, 3)], {}) == X.nbytes * 6
    budget = Budget(1000)
    with pytest.raises(ModelError, match=r"its result would have .* 2 GiB in all"):
        budget.check(tile, [X, ints(10, 10)], {})
    budget.check(tile, [X, ints(2, 2)], {})
    budget.spend([X], (np.tile(X, (2, 2)), X.T))
    assert budget.left == 1000 - 4 * X.nbytes
    assert Budget().left == MOST_BYTES


def test_an_initializer_with_data_in_any_field_is_read():
    for proto in (
        helper.make_tensor("w", TensorProto.FLOAT, [2, 4], X.ravel()),
        numpy_helper.from_array(X, "w"),
        TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 4], raw_data=X.tobytes()),
    ):
        model = model_of("y = Add (x, w)")
        model.graph.initializer.append(proto)
        np.testing.assert_array_equal(load(model)([X])["y"], 2 * X)


# ---------------------------------------------------------------------------------------------------------------- chance


@pytest.fixture(scope="module")
def models():
    return seeds()


def test_the_models_are_valid_before_they_are_broken(models):
    for name, model in models.items():
        assert attempt(model.SerializeToString(), run=True) == "fine", name


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_a_broken_model_runs_or_is_refused(models, first):
    """Any error that is not jaxq's ends the test; `python tests/mutations.py 0 10000` tries more."""
    refused = 0
    for seed in range(first, first + 100):
        _, content = mutated(models, seed)
        refused += attempt(content, run=seed % 20 == 0) != "fine"
    assert refused > 50  # or the mutations do not break anything


def test_recursion_is_among_the_mutations(models):
    import random

    model = onnx.ModelProto()
    model.CopyFrom(models["function"])
    for seed in range(3):
        recurse(model, random.Random(seed))
    with pytest.raises(JaxqError):
        load(model)
