"""Models with results whose shapes depend on values: a compiled head, a tail on the host, and what the rest makes of them."""

import jax
import numpy as np
import pytest
from flax import nnx
from idioms import assert_alike, idiom, ints, normal
from models import Network, smooth, written

import jaxq
from jaxq.analysis.inspect import ON_HOST, summarize
from jaxq.analysis.outputs import compare_rows
from jaxq.analysis.verdict import SAME_ROWS
from jaxq.engine.partition import may_have_tail
from jaxq.errors import DynamicShapeError, JaxqWarning
from jaxq.onnx_io.runtime import session
from jaxq.placement.place import IgnoredScope

IDIOMS = {
    "torch: x[x > 0]": idiom(
        """
    (float[N,M] x) => (int64[K,2] i, float[K] v) { z = Constant<value_float=0.0>() g = Greater(x,z)
    n = NonZero(g) i = Transpose<perm=[1,0]>(n) v = GatherND(x,i) }
    """,
        [{"x": normal(3, 4)}, {"x": normal(5, 2)}, {"x": -abs(normal(2, 2))}],
    ),
    "boxes above a score, the best of them": idiom(
        """
    (float[N] s, float[N,4] b) => (float[K] v, float[K,4] q) { g = Greater(s,th) k = Compress<axis=0>(s,g)
    bb = Compress<axis=0>(b,g) n = Shape(k) m = Min(n,mx) v,i = TopK(k,m) q = Gather(bb,i) }
    """,
        [{"s": normal(9), "b": normal(9, 4)}, {"s": -abs(normal(9)), "b": normal(9, 4)}],
        th=np.float32(0),
        mx=ints(3),
    ),
    "torch: x[x > 0] *= 2": idiom(
        """
    (float[N,M] x) => (float[N,M] y) { g = Greater(x,th) n = NonZero(g) i = Transpose<perm=[1,0]>(n)
    v = GatherND(x,i) d = Mul(v,two) y = ScatterND(x,i,d) }
    """,
        [{"x": normal(3, 4)}],
        th=np.float32(0),
        two=np.float32(2),
    ),
    "a while loop that collects rows": idiom(
        """
    (float[4] x) => (float[4] y, float[K,4] r) { t = Constant<value_int=9223372036854775807>()
    c = Constant<value=bool {1}>()
    y,r = Loop<body = B(int64 i, bool ci, float[4] a) => (bool co, float[4] b, float[4] o) {
    two = Constant<value_float=1.5>() b = Mul(a,two) s = ReduceSum<keepdims=0>(b)
    l = Constant<value_float=100.0>() aa = Abs(s) co = Less(aa,l) o = Identity(b)}>(t,c,x) }
    """,
        [{"x": normal(4) + 1}],
    ),
    "torch: a list that a loop appends to": idiom(
        """
    (float[N] x) => (float[K] y) { z = Constant<value_float=0.0>() g = Greater(x,z) gi = Cast<to=7>(g)
    t = ReduceSum<keepdims=0>(gi) c = Constant<value=bool {1}>() e = SequenceEmpty()
    sq = Loop<body = B(int64 i, bool ci, seq(float[1]) a) => (bool ci2, seq(float[1]) b) {
    ci2 = Identity(ci) ax = Constant<value_ints=[0]>() ii = Unsqueeze(i,ax) v = Gather(x,ii)
    b = SequenceInsert(a,v) }>(t,c,e) y = ConcatFromSequence<axis=0>(sq) }
    """,
        [{"x": normal(9)}, {"x": normal(4)}],
    ),
    "a branch whose result has as many elements as the data says": idiom(
        """
    (float[N] x) => (float[K] y) { z = Constant<value_float=0.0>() s = ReduceSum<keepdims=0>(x)
    c = Greater(s,z) y = If< then_branch = A() => (float[a] u) { g = Greater(x,z) u = Compress(x,g) },
    else_branch = B() => (float[b] v) { v = Neg(x) }>(c) }
    """,
        [{"x": normal(9)}, {"x": -normal(9)}],
    ),
    "branches of different ranks": idiom(
        """
    (float[N,1] x) => (float[K] y) { z = Constant<value_float=0.0>() ax = Constant<value_ints=[0,1]>()
    s = ReduceSum<keepdims=0>(x,ax) c = Greater(s,z) y = If< then_branch = A() => (float[a] u) {
    m = Constant<value_ints=[-1]>() u = Reshape(x,m) }, else_branch = B() => (float[b] v) {
    aa = Constant<value_ints=[0,1]>() v0 = ReduceSum<keepdims=0>(x,aa) r = Constant<value_ints=[1]>()
    v = Reshape(v0,r) }>(c) }
    """,
        [{"x": normal(9, 1)}, {"x": -normal(9, 1)}],
    ),
    "NonMaxSuppression of inputs": idiom(
        """
    (float[1,N,4] b, float[1,C,N] s) => (int64[K,3] y) { mx = Constant<value_ints=[3]>()
    iou = Constant<value_floats=[0.4]>() th = Constant<value_floats=[0.1]>()
    y = NonMaxSuppression(b,s,mx,iou,th) }
    """,
        [{"b": abs(normal(1, 20, 4)), "s": normal(1, 3, 20)}],
        opset=11,
    ),
    "a second stage on the boxes that are left": idiom(
        """
    (float[1,4,8,8] x, float[N,4] r) => (float[K,4,2,2] y, float[K,3] z) { ar = ReduceSum<keepdims=0>(r,a1)
    g = Greater(ar,th) rr = Compress<axis=0>(r,g) k = Shape<start=0,end=1>(rr)
    bi = ConstantOfShape<value=int64[1]{0}>(k)
    y = RoiAlign<output_height=2,output_width=2,sampling_ratio=2>(x,rr,bi) fl = Flatten(y)
    z = Gemm(fl,W,B) }
    """,
        [{"x": normal(1, 4, 8, 8), "r": np.array([[0, 0, 4, 4], [0, 0, 1, 1], [1, 2, 6, 7]], "float32")}],
        a1=ints(1),
        th=np.float32(6),
        W=normal(16, 3),
        B=normal(3),
    ),
    "torch: cut to the longest of the lengths": idiom(
        """
    (float[N,M] x, int64[N,1] len) => (float[a,b] y) { m = ReduceMax<keepdims=0>(len) e = Unsqueeze(m,c0)
    y = Slice(x,c0,e,c1) }
    """,
        [{"x": normal(2, 5), "len": np.array([[2], [3]])}],
        c0=ints(0),
        c1=ints(1),
    ),
    "VITS: as many frames as the durations say": idiom(
        """
    (float[1,1,T] w, float[1,4,T] x) => (float[1,4,K] y) { c = Ceil(w) sm = ReduceSum<keepdims=0>(c,ax12)
    mx = Clip(sm,one) li = Cast<to=7>(mx) m = ReduceMax<keepdims=0>(li) r = Range(z,m,one64)
    cs = CumSum(c,c2) csq = Squeeze(cs,a01) rf = Cast<to=1>(r) ru = Unsqueeze(rf,a1) cu = Unsqueeze(csq,a0)
    lt = Less(ru,cu) lf = Cast<to=1>(lt) xs = Squeeze(x,a0) xt = Transpose<perm=[1,0]>(xs) p = MatMul(lf,xt)
    pt = Transpose<perm=[1,0]>(p) y0 = Unsqueeze(pt,a0) y = Conv<pads=[1,1]>(y0,k) }
    """,
        [{"w": abs(normal(1, 1, 5)) * 2, "x": normal(1, 4, 5)}, {"w": abs(normal(1, 1, 7)) * 2, "x": normal(1, 4, 7)}],
        ax12=ints(1, 2),
        one=np.float32(1),
        z=np.int64(0),
        one64=np.int64(1),
        c2=np.int64(2),
        a01=ints(0, 1),
        a1=ints(1),
        a0=ints(0),
        k=normal(4, 4, 3),
    ),
    "YOLOv3: boxes, scores and NonMaxSuppression": idiom(
        """
    (float[1,3,H,W] img, float[1,2] shape) => (float[1,K,4] b, float[1,C,K] s, int64[M,3] i) {
    c = Conv<strides=[2,2],pads=[1,1,1,1]>(img,k) t = Transpose<perm=[0,2,3,1]>(c) r = Reshape(t,rs)
    xy = Slice(r,c0,c2,ax2) wh = Slice(r,c2,c4,ax2) sc0 = Slice(r,c4,c7,ax2) e = Exp(wh) sg = Sigmoid(xy)
    h = Div(e,two) lo = Sub(sg,h) hi = Add(sg,h) bb = Concat<axis=2>(lo,hi)
    sh2 = Concat<axis=1>(shape,shape) su = Unsqueeze(sh2,ax1) b = Mul(bb,su) ss = Sigmoid(sc0)
    s = Transpose<perm=[0,2,1]>(ss) i = NonMaxSuppression(b,s,mx,iou,th) }
    """,
        [{"img": normal(1, 3, 8, 8), "shape": np.array([[416, 600]], "float32")}],
        opset=11 + 2,
        k=normal(7, 3, 3, 3),
        rs=ints(0, -1, 7),
        c0=ints(0),
        c2=ints(2),
        c4=ints(4),
        c7=ints(7),
        ax2=ints(2),
        ax1=ints(1),
        two=np.float32(2),
        mx=ints(5),
        iou=np.array([0.5], "float32"),
        th=np.array([0.5], "float32"),
    ),
    "Scan over what is left": idiom(
        """
    (float[T,3] x) => (float[3] hn, float[K,3] y) { s = ReduceSum<keepdims=0>(x,one) g = Greater(s,z)
    xs = Compress<axis=0>(x,g) h = ConstantOfShape<value=float[1]{0.5}>(three)
    hn,y = Scan<num_scan_inputs=1,body=B(float[3] st, float[3] xi) => (float[3] s2, float[3] o) {
    a = Add(st,xi) s2 = Tanh(a) o = Identity(s2) }>(h,xs) }
    """,
        [{"x": normal(6, 3)}],
        one=ints(1),
        z=np.float32(0),
        three=ints(3),
    ),
    "a loop over what was found, perhaps nothing": idiom(
        """
    (float[T] x) => (float[K,1] y) { g = Greater(x,z) n = NonZero(g) sh = Shape<start=1>(n) t = Squeeze(sh)
    c = Constant<value=bool {1}>() y = Loop<body = B(int64 i, bool ci) => (bool co, float[1] o) {
    co = Identity(ci) ax = Constant<value_ints=[1]>() ii = Unsqueeze(i,z0) gi = Gather<axis=1>(n,ii)
    gs = Reshape(gi,m1) o = Gather(x,gs) }>(t,c) }
    """,
        [{"x": normal(6)}, {"x": -abs(normal(6))}],
        z=np.float32(0),
        z0=ints(0),
        m1=ints(-1),
    ),
    "Paddle: multiclass NonMaxSuppression": idiom(
        """
    (float[1,N,4] b, float[1,C,N] s) => (float[K,6] y) { i = NonMaxSuppression(b,s,mx,iou,th)
    ci = Gather<axis=1>(i,c1) bi = Gather<axis=1>(i,c2) sb = Squeeze(b,a0) bb = Gather(sb,bi)
    b2 = Squeeze(bb,a1) sq = Squeeze(s,a0) pr = Concat<axis=1>(ci,bi) sv = GatherND(sq,pr) k = Shape(sv)
    kk = Min(k,top) tv,ti = TopK(sv,kk) bsel = Gather(b2,ti) cf = Cast<to=1>(ci) csel = Gather(cf,ti)
    tu = Unsqueeze(tv,a1) y = Concat<axis=1>(csel,tu,bsel) }
    """,
        [
            {"b": abs(normal(1, 30, 4)), "s": normal(1, 3, 30)},
            {"b": abs(normal(1, 30, 4)), "s": -abs(normal(1, 3, 30))},
        ],
        mx=ints(4),
        iou=np.array([0.5], "float32"),
        th=np.array([0.3], "float32"),
        c1=ints(1),
        c2=ints(2),
        a0=ints(0),
        a1=ints(1),
        top=ints(10),
    ),
    "detectron: another branch where nothing is found": idiom(
        """
    (float[N,4] b) => (float[K,4] y) { ar = ReduceSum<keepdims=0>(b,a1) g = Greater(ar,th)
    bb = Compress<axis=0>(b,g) s = Shape<start=0,end=1>(bb) e = Equal(s,z)
    y = If< then_branch = A() => (float[p,4] u) { z04 = Constant<value_ints=[0,4]>()
    u = ConstantOfShape(z04) }, else_branch = B() => (float[q,4] v) { v = Mul(bb,two) }>(e) }
    """,
        [{"b": normal(4, 4)}, {"b": -abs(normal(4, 4))}],
        a1=ints(1),
        th=np.float32(0),
        z=ints(0),
        two=np.float32(2),
    ),
    "FPN: each box on the level of its size": idiom(
        """
    (float[1,4,16,16] p2, float[1,4,8,8] p3, float[R,4] rois) => (float[R,4,2,2] out) {
    x1 = Slice(rois,c0,c1,ax1) y1 = Slice(rois,c1,c2,ax1) x2 = Slice(rois,c2,c3,ax1)
    y2 = Slice(rois,c3,c4,ax1) ww = Sub(x2,x1) hh = Sub(y2,y1) ar = Mul(ww,hh) sq = Sqrt(ar) dv = Div(sq,s0)
    lg = Log(dv) l2 = Div(lg,ln2) fl = Floor(l2) lv = Clip(fl,lo,hi) lvi = Cast<to=7>(lv)
    lvs = Squeeze(lvi,ax1) e0 = Equal(lvs,z0) n0 = NonZero(e0) i0 = Squeeze(n0,c0) r0 = Gather(rois,i0)
    k0 = Shape<start=0,end=1>(r0) b0 = ConstantOfShape<value=int64[1]{0}>(k0)
    o0 = RoiAlign<output_height=2,output_width=2,sampling_ratio=2,spatial_scale=0.25>(p2,r0,b0)
    e1 = Equal(lvs,z1) n1 = NonZero(e1) i1 = Squeeze(n1,c0) r1 = Gather(rois,i1)
    k1 = Shape<start=0,end=1>(r1) b1 = ConstantOfShape<value=int64[1]{0}>(k1)
    o1 = RoiAlign<output_height=2,output_width=2,sampling_ratio=2,spatial_scale=0.125>(p3,r1,b1)
    cat = Concat<axis=0>(o0,o1) ic = Concat<axis=0>(i0,i1) nn = Shape(ic) sv,si = TopK<largest=0>(ic,nn)
    out = Gather(cat,si) }
    """,
        [
            {
                "p2": normal(1, 4, 16, 16),
                "p3": normal(1, 4, 8, 8),
                "rois": np.array([[0, 0, 10, 10], [0, 0, 60, 60], [5, 5, 40, 45], [1, 2, 20, 12]], "float32"),
            },
            {
                "p2": normal(1, 4, 16, 16),
                "p3": normal(1, 4, 8, 8),
                "rois": np.array([[0, 0, 10, 10], [1, 2, 12, 12]], "float32"),
            },
        ],
        c0=ints(0),
        c1=ints(1),
        c2=ints(2),
        c3=ints(3),
        c4=ints(4),
        ax1=ints(1),
        s0=np.float32(16),
        ln2=np.float32(np.log(2)),
        lo=np.float32(0),
        hi=np.float32(1),
        z0=np.int64(0),
        z1=np.int64(1),
    ),
    "Mask R-CNN: masks pasted in a loop": idiom(
        """
    (float[N,1,4,4] m, float[N,4] b) => (float[K,8,8] y) { n = Shape<start=0,end=1>(m) t = Squeeze(n)
    c = Constant<value=bool {1}>() bi = Cast<to=7>(b)
    y = Loop<body=B(int64 i, bool ci) => (bool co, float[8,8] o) { co = Identity(ci) mm = Gather(m,i)
    box = Gather(bi,i) hw = Slice(box,c2,c4) sz = Concat<axis=0>(oo,hw) mu = Unsqueeze(mm,c0)
    r = Resize<mode="linear",coordinate_transformation_mode="half_pixel">(mu,,,sz) st = Slice(box,c0,c2)
    en0 = Add(st,hw) en = Sub(e8,en0) pads = Concat<axis=0>(z2,st,z2,en) p = Pad(r,pads)
    o = Squeeze(p,a01) }>(t,c) }
    """,
        [{"m": normal(2, 1, 4, 4), "b": np.array([[0, 1, 4, 5], [2, 2, 3, 6]], "float32")}],
        c2=ints(2),
        c4=ints(4),
        oo=ints(1, 1),
        c0=ints(0),
        e8=ints(8, 8),
        z2=ints(0, 0),
        a01=ints(0, 1),
    ),
    "TensorFlow: NonMaxSuppression of each picture, padded": idiom(
        """
    (float[N,9,4] b, float[N,9] s) => (int64[N,4] y) { sh = Shape<start=0,end=1>(b) t = Squeeze(sh)
    c = Constant<value=bool {1}>() y = Loop<body=B(int64 i, bool ci) => (bool co, int64[4] o) {
    co = Identity(ci) bb = Gather(b,i) ss = Gather(s,i) bu = Unsqueeze(bb,a0) su = Unsqueeze(ss,a01)
    k = NonMaxSuppression(bu,su,four,iou,th) col = Gather<axis=1>(k,two) flat = Squeeze(col,a1)
    n = Shape(flat) miss = Sub(four,n) pads = Concat<axis=0>(z,miss) o = Pad(flat,pads,neg) }>(t,c) }
    """,
        [{"b": abs(normal(2, 9, 4)), "s": normal(2, 9)}],
        a0=ints(0),
        a01=ints(0, 1),
        four=ints(4),
        iou=np.array([0.5], "float32"),
        th=np.array([0.2], "float32"),
        two=ints(2),
        a1=ints(1),
        z=ints(0),
        neg=np.int64(-1),
    ),
    "a decoder that stops by itself": idiom(
        """
    (float[1,4] h) => (float[K,4] y) { t = Constant<value_int=20>() c = Constant<value=bool {1}>()
    hh,y = Loop<body=B(int64 i, bool ci, float[1,4] s) => (bool co, float[1,4] s2, float[4] row) {
    s2 = Mul(s,half) row = Squeeze(s2,a0) mx = ReduceMax<keepdims=0>(s2) co = Greater(mx,th) }>(t,c,h) }
    """,
        [{"h": abs(normal(1, 4))}],
        half=np.float32(0.7),
        a0=ints(0),
        th=np.float32(0.05),
    ),
    "a list of detections, one for each picture": idiom(
        """
    (float[2,N,4] b, float[2,N] s) => (seq(float[K,4]) y) { e = SequenceEmpty() t = Constant<value_int=2>()
    c = Constant<value=bool {1}>()
    y = Loop<body=B(int64 i, bool ci, seq(float[a,4]) q) => (bool co, seq(float[d,4]) q2) {
    co = Identity(ci) bb = Gather(b,i) ss = Gather(s,i) g = Greater(ss,z) k = Compress<axis=0>(bb,g)
    q2 = SequenceInsert(q,k) }>(t,c,e) }
    """,
        [{"b": normal(2, 5, 4), "s": normal(2, 5)}],
        z=np.float32(0),
    ),
}


def detector(opset: int = 13):
    """image [N, 3, 16, 16] -> kept [K, 3], boxes [K, 4], second [K, 6]: a small network, NonMaxSuppression, a second stage."""
    net = Network(opset)
    x = net.input("image", ["N", 3, 16, 16])
    x = net.node("Relu", [net.convolution(x, "first", (3, 8))], "first.relu")
    x = net.node("Relu", [net.convolution(x, "last", (8, 8))], "last.relu")
    boxes = net.node(
        "Reshape", [net.convolution(x, "box", (8, 4), 1), net.constant("four", [0, 4, -1], np.int64)], "flat"
    )
    boxes = net.node("Transpose", [boxes], "corners", perm=[0, 2, 1])
    scores = net.node("Sigmoid", [net.convolution(x, "class", (8, 2), 1)], "probabilities")
    scores = net.node("Reshape", [scores, net.constant("two", [0, 2, -1], np.int64)], "scores")
    limits = [net.constant("most", [5], np.int64), net.constant("overlap", [0.5]), net.constant("least", [0.5])]
    net.node("NonMaxSuppression", [boxes, scores, *limits], "kept")
    net.node("Gather", ["kept", net.constant("column", 2, np.int64)], "index", axis=1)
    net.node("Reshape", [boxes, net.constant("rows", [-1, 4], np.int64)], "all")
    net.node("Gather", ["all", "index"], "boxes", axis=0)
    net.node("MatMul", ["boxes", net.weight("second.weight", 4, 6)], "second")
    for name, shape, kind in (("kept", ["K", 3], 7), ("boxes", ["K", 4], 1), ("second", ["K", 6], 1)):
        net.output(name, shape, kind)
    return net.proto()


@pytest.fixture(scope="module")
def model() -> jaxq.Model:
    return jaxq.load(detector())


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [smooth(1, 3, 16, 16) + 0.1 * normal(1, 3, 16, 16, seed=seed) for seed in range(12)]


@pytest.fixture(scope="module")
def quantized(model, pictures) -> jaxq.Model:
    return jaxq.quantize(model, pictures)


def parts_of(model, inputs):
    return model.traced(model.feed(inputs)).parts


@pytest.mark.parametrize("title", IDIOMS)
def test_runs_split_as_in_the_runtime(title):
    model = assert_alike(IDIOMS[title])
    assert any(parts_of(model, feed).tail is not None for feed in IDIOMS[title].feeds)


def test_the_head_holds_all_that_can_be_compiled(model, pictures):
    parts = parts_of(model, pictures[0])
    assert {node.op for node in parts.head.nodes} == {"Conv", "Relu", "Reshape", "Transpose", "Sigmoid"}
    assert parts.head.outputs == ("all", "corners", "scores")
    assert [node.op for node in parts.tail.nodes] == ["NonMaxSuppression", "Gather", "Gather", "MatMul"]
    assert "NonMaxSuppression.boxes must be known" in next(iter(parts.reasons.values()))


def test_a_split_is_found_once_for_each_set_of_shapes(model, pictures):
    assert parts_of(model, pictures[0]) is parts_of(model, pictures[1])
    twice = np.concatenate([pictures[0], pictures[1]])
    assert parts_of(model, twice) is not parts_of(model, pictures[0])


def test_a_graph_without_such_operators_is_not_even_traced():
    model = jaxq.load(written("(float[N] x) => (float[N] y) { y = Relu (x) }"))
    assert not may_have_tail(model.graph)
    assert parts_of(model, normal(3)).head is model.graph


def test_the_tail_computes_in_64_bit():
    text = "(float[N] x) => (int64[K] y) { g = NonZero (x) r = Squeeze (g, zero) y = Mul (r, large) }"
    model = jaxq.load(written(text, zero=ints(0), large=np.int64(2**40)))
    np.testing.assert_array_equal(model(np.float32([0, 1, 1]))["y"], ints(2**40, 2**41))


def test_shapes_that_the_tail_reads_are_known_to_it():
    text = """(float[N, M] x) => (int64[K] y) {
        e = Exp (x) s = Shape <start = 1> (e) n = NonZero (e) r = Gather (n, one) y = Add (r, s) }"""
    model = jaxq.load(written(text, one=np.int64(1)))
    parts = parts_of(model, normal(2, 3))
    np.testing.assert_array_equal(parts.known["s"], [3])
    np.testing.assert_array_equal(model(normal(2, 3))["y"], [3, 4, 5, 3, 4, 5])


def test_quantizers_stay_in_the_head(model, quantized):
    assert {"image", "first.relu", "last.relu", "first.weight"} <= set(quantized.encodings)
    assert "second.weight" not in quantized.encodings
    assert not {"corners", "boxes", "second"} & set(quantized.encodings)
    assert quantized.metadata["jaxq.ignored"] == ""


def test_the_written_file_does_what_is_simulated(quantized, pictures, tmp_path):
    path = tmp_path / "detector.onnx"
    jaxq.save(quantized, path)
    report = jaxq.verify(path, pictures)
    assert report.ok
    assert {each.name for each in report.outputs if each.same_rows is not None} == {"kept", "boxes", "second"}
    assert "of rows" in report.table()


def test_a_mistaken_scale_is_found_by_the_rows(quantized, pictures, tmp_path):
    path = tmp_path / "detector.onnx"
    jaxq.save(quantized, path)
    wrong = jaxq.load(path)
    params = {name: value * 3 if name == "last.weight_scale" else value for name, value in wrong.params.items()}
    assert any((params[name] != wrong.params[name]).any() for name in params)
    other = tmp_path / "other.onnx"
    jaxq.save(wrong.replace(params=params), other)
    outputs = jaxq.verify(path, pictures[:4]).outputs
    run = session(other, optimized=None)
    rows = [np.asarray(quantized(each)["boxes"]) for each in pictures[:4]]
    found = compare_rows("boxes", "plain", rows, [run({"image": each})["boxes"] for each in pictures[:4]])
    assert found.same_rows < SAME_ROWS <= min(each.same_rows for each in outputs)


def test_the_summary_says_what_the_host_runs(model):
    fates = summarize(model, "onnxruntime").fates
    assert fates["NonMaxSuppression"] == {ON_HOST: 1}
    assert fates["MatMul"] == {ON_HOST: 1}
    assert ON_HOST not in fates["Conv"]


def test_transformations_are_refused_and_the_head_is_offered(model, pictures):
    with pytest.raises(DynamicShapeError, match=r"4 nodes .* from 'NonMaxSuppression_kept' on.*transform `model.head"):
        jax.jit(lambda image: model(image))(pictures[0])
    module = jaxq.to_flax(model)
    assert module(pictures[0])["boxes"].shape[1] == 4
    with pytest.raises(DynamicShapeError, match="NonMaxSuppression_kept"):
        nnx.jit(lambda module, image: module(image))(module, pictures[0])
    head = jaxq.to_flax(model.head(pictures[0]))
    found = nnx.jit(lambda module, image: module(image))(head, pictures[0])
    assert found["corners"].shape == (1, 256, 4)


def test_ignoring_goes_on_working(model, pictures):
    quantized = jaxq.quantize(model, pictures, ignored_scope=IgnoredScope(types=["NonMaxSuppression", "Relu"]))
    assert set(quantized.metadata["jaxq.ignored"].split()) == {
        "NonMaxSuppression_kept",
        "Relu_first.relu",
        "Relu_last.relu",
    }


def test_a_body_of_the_tail_stays_in_float_even_where_it_reads_the_head():
    net = Network(17)
    x = net.node("Relu", [net.convolution(net.input("image", ["N", 3, 8, 8]), "first", (3, 4))], "relu")
    net.convolution(x, "second", (4, 4))
    net.node("Reshape", ["second", net.constant("flat", [-1, 16], np.int64)], "rows")
    proto = net.proto()
    tail = written(
        """(float[R, 16] rows) => (float[K, 2] y) { s = ReduceSum <keepdims = 0> (rows) c = Greater (s, zero)
        y = If <then_branch = A () => (float[a, 2] u) { u = MatMul (rows, w) },
                else_branch = B () => (float[b, 2] v) {
                p = MatMul (rows, w) n = NonZero (p) f = Cast <to = 1> (n) v = Transpose (f) }> (c) }""",
        zero=np.float32(0),
        w=normal(16, 2),
    )
    proto.graph.node.extend(tail.graph.node)
    proto.graph.initializer.extend(tail.graph.initializer)
    proto.graph.output.extend(tail.graph.output)
    model = jaxq.load(proto)
    data = [smooth(1, 3, 8, 8) + 0.1 * normal(1, 3, 8, 8, seed=seed) for seed in range(10)]
    quantized = jaxq.quantize(model, data)
    assert "first.weight" in quantized.encodings
    assert "w" not in quantized.encodings
    assert quantized(data[0])["y"].shape[1] == 2


def test_many_shapes_are_warned_of_once():
    model = jaxq.load(written("(float[N, L] x) => (float[N, L] y) { y = Relu (x) }"))
    for length in range(1, 9):
        model(normal(1, length))
    with pytest.warns(JaxqWarning, match="9 distinct input shapes .* pad, crop or resize"):
        model(normal(1, 9))
    model(normal(1, 10))
