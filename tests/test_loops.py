"""Bodies of loops: calibrated over all turns, quantized where the target runs them in integers, and said where it does not."""

import numpy as np
import onnx
import onnx.parser
import pytest
from models import run_at, run_onnx, smooth, written

import jaxq
from jaxq.analysis.inspect import summarize
from jaxq.analysis.lint import lint
from jaxq.errors import AccuracyError, JaxqWarning
from jaxq.placement.choose import IN_LOOP
from jaxq.placement.fates import INTEGER, LEFT
from jaxq.placement.targets import ONNXRUNTIME

QUICK = jaxq.AdvancedQuantizationParameters(disable_bias_correction=True, disable_channel_alignment=True)
W, V = (np.random.default_rng(seed).normal(size=(8, 8), scale=0.35).astype(np.float32) for seed in range(2))
NUMBERS = ", ".join(f"{each:.6g}" for each in W.ravel())
ROWS = "(float[T, 2, 8] xs, float[2, 8] h) => (float[2, 8] y, float[T, 2, 8] ys)"
SCAN = "y, ys = Scan <num_scan_inputs = 1, body = b (float[2, 8] s, float[2, 8] x) => (float[2, 8] t, float[2, 8] o)"
LOOP = "(float[2, 8] x) => (float[2, 8] y) { y ="
LSTM = """p = Gemm (x, wx, bx)  q = Gemm (s, wh)  a = Add (p, q)  i, f, g, k = Split <axis = 1, num_outputs = 4> (a)
    i1 = Sigmoid (i)  f1 = Sigmoid (f)  g1 = Tanh (g)  k1 = Sigmoid (k)
    m = Mul (i1, g1)  n = Mul (f1, c)  d = Add (m, n)  z = Tanh (d)  t = Mul (k1, z)  o = Identity (t)"""
MODELS = {  # name -> (text, constants, tensors with a quantizer, kernels in integers)
    "a scan": (
        f"{ROWS} {{ {SCAN} {{ p = MatMul (x, w)  t = Tanh (p)  q = MatMul (s, v)  o = Tanh (q) }}> (h, xs) }}",
        {"w": W, "v": V}, {"x", "s", "w", "v"}, 2,
    ),
    "a scan with a weight of its own": (
        f"{ROWS} {{ {SCAN} <float[8, 8] w = {{{NUMBERS}}}> {{ p = MatMul (x, w)  t = Tanh (p)  o = Add (s, t) }}> (h, xs) }}",
        {}, {"x", "w"}, 1,
    ),
    "a scan backwards, along axis 1": (
        """(float[2, T, 8] xs, float[2, 8] h) => (float[2, 8] y, float[2, T, 8] ys) {
        y, ys = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1], scan_output_axes = [1],
        body = b (float[2, 8] s, float[2, 8] x) => (float[2, 8] t, float[2, 8] o) {
        p = MatMul (x, w)  t = Tanh (p)  q = MatMul (s, v)  o = Tanh (q) }> (h, xs) }""",
        {"w": W, "v": V}, {"x", "s", "w", "v"}, 2,
    ),
    "a scan with an LSTM": (
        f"""(float[T, 2, 8] xs, float[2, 8] h, float[2, 8] c0) => (float[2, 8] y, float[2, 8] e, float[T, 2, 8] ys) {{
        y, e, ys = Scan <num_scan_inputs = 1, body = b (float[2, 8] s, float[2, 8] c, float[2, 8] x)
        => (float[2, 8] t, float[2, 8] d, float[2, 8] o) {{ {LSTM} }}> (h, c0, xs) }}""",
        {"wx": smooth(8, 32), "wh": smooth(8, 32, seed=1), "bx": smooth(32)}, {"x", "s", "wx", "wh", "bx"}, 2,
    ),
    "few turns": (
        f"""{LOOP} Loop (n, , x) <body = b (int64 i, bool c, float[2, 8] s) => (bool d, float[2, 8] t) {{
        d = Identity (c)  p = MatMul (s, w)  r = Relu (p)  q = MatMul (r, v)  t = Tanh (q) }}> }}""",
        {"n": np.int64(3), "w": W, "v": V}, {"s", "r", "w", "v"}, 2,
    ),
    "a tensor from outside": (
        """(float[2, 8] x, float[2, 8] h) => (float[2, 8] y, float[2, 8] z) { z = MatMul (x, v)
        y = Loop (n, , h) <body = b (int64 i, bool c, float[2, 8] s) => (bool d, float[2, 8] t) {
        d = Identity (c)  p = MatMul (x, w)  q = Tanh (p)  r = MatMul (s, v)  o = Tanh (r)  t = Add (q, o) }> }""",
        {"n": np.int64(20), "w": W, "v": V}, {"x", "s", "w", "v"}, 3,
    ),
    "many turns": (
        f"""{LOOP} Loop (n, , x) <body = b (int64 i, bool c, float[2, 8] s) => (bool d, float[2, 8] t) {{
        d = Identity (c)  p = MatMul (s, w)  q = Tanh (p)  t = Add (q, step) }}> }}""",
        {"n": np.int64(40), "w": W, "step": np.full(8, 0.1, np.float32)}, {"s", "w"}, 1,
    ),
    "as many turns as the data ask for": (
        f"""{LOOP} Loop (, go, x) <body = b (int64 i, bool c, float[2, 8] s) => (bool d, float[2, 8] t) {{
        p = MatMul (s, w)  q = Tanh (p)  t = Add (q, s)
        a = Abs (t)  m = ReduceMax <keepdims = 0> (a)  d = Less (m, most) }}> }}""",
        {"go": np.array(True), "most": np.float32(12), "w": W}, {"s@quantized", "w"}, 1,
    ),
    "a branch in a loop": (
        f"""{LOOP} Loop (n, , x) <body = b (int64 i, bool c, float[2, 8] s) => (bool d, float[2, 8] t) {{
        d = Identity (c)  m = ReduceMean <keepdims = 0> (s)  k = Greater (m, zero)
        u = If (k) < then_branch = yes () => (float[2, 8] e) {{ p = MatMul (s, w)  e = Tanh (p) }},
                     else_branch = no () => (float[2, 8] f) {{ q = MatMul (s, v)  f = Sin (q) }} >  t = Tanh (u) }}> }}""",
        {"n": np.int64(4), "w": W, "v": V, "zero": np.float32(0)}, {"s@quantized", "w", "v"}, 2,
    ),
    "a scan in a loop": (
        """(float[3, 2, 8] x) => (float[3, 2, 8] y) { y = Loop (n, , x) <body = b (int64 i, bool c, float[3, 2, 8] s)
        => (bool d, float[3, 2, 8] t) { d = Identity (c)  z = Scan <num_scan_inputs = 1,
        body = e (float[2, 8] a) => (float[2, 8] o) { p = MatMul (a, w)  o = Tanh (p) }> (s)  t = Add (z, s) }> }""",
        {"n": np.int64(20), "w": W}, {"a", "w"}, 1,
    ),
    "a convolution": (
        """(float[3, 1, 4, 6, 6] xs) => (float[3, 1, 4, 6, 6] ys) { ys = Scan <num_scan_inputs = 1,
        body = b (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] o) { a = Conv <pads = [1, 1, 1, 1]> (x, k, e)  r = Relu (a)
        o = Conv <pads = [1, 1, 1, 1]> (r, k2) }> (xs) }""",
        {"k": smooth(4, 4, 3, 3), "e": smooth(4), "k2": smooth(4, 4, 3, 3, seed=1)}, {"x", "r", "k", "k2", "e"}, 1,
    ),
}  # fmt: skip


def model_of(name: str) -> onnx.ModelProto:
    text, numbers, _, _ = MODELS[name]
    return written(text, opset=18, **numbers)


def samples(proto: onnx.ModelProto, count: int = 4, turns: int = 3) -> list[dict[str, np.ndarray]]:
    shapes = {
        each.name: [size.dim_value or turns for size in each.type.tensor_type.shape.dim] for each in proto.graph.input
    }
    return [{name: smooth(*shape, seed=seed) for name, shape in shapes.items()} for seed in range(count)]


def quantize(proto: onnx.ModelProto, feeds: list, **options) -> jaxq.Model:
    return jaxq.quantize(proto, jaxq.Dataset(feeds, batch_axis=None), advanced_parameters=QUICK, **options)


@pytest.mark.parametrize("name", MODELS)
def test_bodies_of_loops_are_quantized_and_run_in_integers(name, tmp_path):
    _, _, wanted, kernels = MODELS[name]
    proto, path = model_of(name), tmp_path / "model.onnx"
    feeds = samples(proto)
    made = quantize(proto, feeds)
    assert set(made.encodings) >= wanted
    jaxq.save(made, path)
    report = jaxq.verify(path, feeds)
    assert report.agrees, report.verdict
    assert sum(report.integer_kernels.values()) == kernels, (report.integer_kernels, report.float_kernels)
    assert not lint(jaxq.load(path), ONNXRUNTIME) or report.float_kernels
    exact = run_onnx(proto, feeds[0])
    for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"):
        (found,) = run_at(path, level, feeds[:1])
        for key, value in made(feeds[0]).items():
            largest = np.abs(exact[key]).max()
            np.testing.assert_allclose(value, found[key], atol=0.02 * largest)
            assert 0 < np.abs(found[key] - exact[key]).max() < 0.2 * largest


def growing(condition: str, **numbers) -> onnx.ModelProto:
    """The state, of which a product is taken, doubles from turn to turn."""
    return written(
        f"""{LOOP} Loop ({condition}, x) <body = b (int64 i, bool c, float[2, 8] s) => (bool d, float[2, 8] t) {{
        p = MatMul (s, w)  z = Mul (p, tiny)  u = Mul (s, two)  t = Add (u, z)
        a = Abs (t)  m = ReduceMax <keepdims = 0> (a)  d = Less (m, most) }}> }}""",
        w=W, tiny=np.float32(1e-6), two=np.float32(2), **numbers,
    )  # fmt: skip


@pytest.mark.parametrize("turns", [3, 24, None])
def test_ranges_hold_what_every_turn_makes(turns):
    most = np.float32(np.inf if turns else 2**24)
    numbers = {"n": np.int64(turns)} if turns else {"go": np.array(True)}
    proto = growing("n, " if turns else ", go", most=most, **numbers)
    feeds = [{"x": np.full((2, 8), sign, np.float32)} for sign in (1, -1)]
    estimator = jaxq.RangeEstimatorParametersSet.MINMAX
    advanced = jaxq.AdvancedQuantizationParameters(
        disable_bias_correction=True, activations_range_estimator_params=estimator
    )
    made = jaxq.quantize(proto, jaxq.Dataset(feeds, batch_axis=None), advanced_parameters=advanced)
    (params,) = (each for name, each in made.encodings.items() if name.startswith("s"))
    largest = 2 ** ((turns or 24) - 1)
    np.testing.assert_allclose(float(params.scale) * 127.5, largest, rtol=0.02)


def test_a_branch_in_a_loop_is_calibrated_by_the_turns_that_take_it():
    proto = written(
        f"""{LOOP} Loop (n, , x) <body = b (int64 i, bool c, float[2, 8] s) => (bool d, float[2, 8] t) {{
        d = Identity (c)  m = ReduceMean <keepdims = 0> (s)  k = Greater (m, zero)
        u = If (k) < then_branch = yes () => (float[2, 8] e) {{ a = Mul (s, ten)  e = MatMul (a, w) }},
                     else_branch = no () => (float[2, 8] f) {{ f = MatMul (s, w) }} >
        z = Mul (u, tiny)  r = Mul (s, back)  t = Add (r, z) }}> }}""",
        n=np.int64(5), w=W, zero=np.float32(0), ten=np.float32(10), tiny=np.float32(1e-6), back=np.float32(-1.5),
    )  # fmt: skip
    made = quantize(proto, [{"x": np.full((2, 8), 1 + seed / 100, np.float32)} for seed in range(4)])
    params = made.encodings["a"]  # of 1, 2.25 and 5 times ten; the other turns would give -15 and -34
    assert int(params.zero_point) == int(params.qmin)
    np.testing.assert_allclose(float(params.scale) * 255, 1.03 * 50.6, rtol=0.03)


def test_the_arithmetic_of_a_cell_in_a_scan_stays_in_float():
    made = quantize(proto := model_of("a scan with an LSTM"), samples(proto))
    assert set(made.encodings) == MODELS["a scan with an LSTM"][2]


WHY_NOT = {  # target -> why a body is not quantized
    "openvino": IN_LOOP, "tensorrt": IN_LOOP, "qnn": IN_LOOP, "ascend": IN_LOOP,
}  # fmt: skip


@pytest.mark.parametrize("target", WHY_NOT)
def test_other_targets_leave_bodies_in_float_and_say_so(target):
    text = f"{ROWS} {{ {SCAN} {{ p = MatMul (x, w)  t = Tanh (p)  o = Add (t, s) }}> (h, zs)  zs = MatMul (xs, v) }}"
    before, after = text.split("zs = MatMul (xs, v)")
    proto = written(before.replace("{ y, ys", "{ zs = MatMul (xs, v)  y, ys", 1) + after, opset=18, w=W, v=V)
    with pytest.warns(
        JaxqWarning, match=rf"1 layer\(s\) in bodies of loops stay in float, since {IN_LOOP}: 'MatMul#2'"
    ):
        made = quantize(proto, samples(proto), target_device=target)
    assert "v" in made.encodings
    assert {"x", "w"}.isdisjoint(made.encodings)
    assert summarize(jaxq.load(proto), target).fates["MatMul"] == {INTEGER: 1, LEFT.format(IN_LOOP): 1}


def test_what_is_said_of_a_body_is_what_the_runtime_does():
    proto = model_of("a scan")
    assert summarize(jaxq.load(proto), "onnxruntime").fates["MatMul"] == {INTEGER: 2}
    assert summarize(quantize(proto, samples(proto)), "onnxruntime").fates["MatMul"] == {INTEGER: 2}


def test_a_body_whose_shapes_change_from_turn_to_turn_stays_in_float_and_is_named():
    proto = written("""(float[2, 8] x) => (float[N, M] y) { y = Loop (n, , x) <body = b (int64 i, bool c, float[A, B] s)
        => (bool d, float[C, D] t) { d = Identity (c)  p = MatMul (w, s)  t = Concat <axis = 1> (s, p) }> }""",
        n=np.int64(3), w=W[:2, :2])  # fmt: skip
    proto = with_layer(proto)
    with pytest.warns(
        JaxqWarning, match="since their tensors do not keep shape and type from turn to turn: 'MatMul#2'"
    ):
        made = quantize(proto, samples(proto))
    assert "w" not in made.encodings


def with_layer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a layer in front, so that something is quantized."""
    graph = onnx.parser.parse_graph("front (float[2, 8] x0) => (float[2, 8] x) { x = MatMul (x0, front) }")
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    proto.graph.node.insert(0, graph.node[0])
    proto.graph.input[0].name = "x0"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(W, "front"))
    return proto


def test_of_a_loop_that_makes_no_turn_nothing_is_quantized():
    proto = model_of("a scan")
    some, none = samples(proto), samples(proto, 1, turns=0)
    with pytest.warns(JaxqWarning, match="since no calibration sample runs them: 'MatMul', 'MatMul#2'"):
        made = quantize(proto, none)
    assert not made.encodings
    assert (
        set(quantize(proto, [*none, *some]).encodings) == set(quantize(proto, [*some, *none]).encodings) >= {"w", "v"}
    )


def test_a_scan_over_nothing_on_the_host_gives_no_rows():
    proto = written("""(float[N, 3] x) => (float[3] last, float[M, 3] y) {
        a = Abs (x)  s = ReduceSum <keepdims = 0> (a, one)  n = NonZero (s)  i = Squeeze (n)  k = Gather (x, i)
        first = ReduceSum <keepdims = 0> (x, zero)
        last, y = Scan <num_scan_inputs = 1, body = b (float[3] before, float[3] row) => (float[3] after, float[3] out) {
            after = Add (before, row)  out = Neg (after) }> (first, k) }""", one=np.array([1]), zero=np.array([0]))  # fmt: skip
    model = jaxq.load(proto)
    some = {"x": np.array([[1, 2, 3], [0, 0, 0], [1, 1, 1]], np.float32)}
    for key, value in run_onnx(proto, some).items():
        np.testing.assert_array_equal(model(some)[key], value)
    found = model({"x": np.zeros((2, 3), np.float32)})  # ONNX Runtime fails on it
    assert found["y"].shape == (0, 3)
    np.testing.assert_array_equal(found["last"], np.zeros(3))


def controlled(name: str, ranking: str) -> jaxq.Model:
    """Of a model with a layer in front, what accuracy control leaves quantized where hardly any error is allowed."""
    proto = model_of(name)
    feeds = samples(proto)
    wanted = [run_onnx(proto, feed)["y"] for feed in feeds]
    return jaxq.quantize_with_accuracy_control(
        proto,
        jaxq.Dataset(feeds, batch_axis=None),
        feeds,
        lambda model, items: (
            -max(float(np.abs(model(feed)["y"] - exact).max()) for feed, exact in zip(feeds, wanted, strict=True))
        ),
        max_drop=1e-5,
        advanced_quantization_parameters=QUICK,
        advanced_accuracy_restorer_parameters=jaxq.AdvancedAccuracyRestorerParameters(ranking=ranking),
    )


@pytest.mark.parametrize("ranking", ["alone", "gradient"])
def test_accuracy_control_switches_layers_of_a_body(ranking):
    # t is made of x alone: what reads s makes the rows, on which the metric does not look
    assert set(controlled("a scan", ranking).encodings) == {"s", "v"}


def test_a_ranking_by_gradients_says_that_it_does_not_go_through_every_loop():
    with pytest.raises(AccuracyError, match=r"'gradient' does not go through a loop .* take 'alone' or 'exact'"):
        controlled("as many turns as the data ask for", "gradient")
