"""What exporters write, compiled: each idiom against ONNX Runtime. Those with results of unknown shape are in test_split.py."""

import numpy as np
import pytest
from idioms import LARGEST, assert_alike, idiom, ints, normal

IDIOMS = {
    "SAM: the original size comes as floats": idiom(
        """
    (float[N,3,H,W] x, float[2] o) => (float[N,3,a,b] y) { hw = Cast<to=7>(o) sz = Concat<axis=0>(nc,hw)
    y = Resize<mode="linear",coordinate_transformation_mode="half_pixel">(x,,,sz) }
    """,
        [{"x": normal(1, 3, 5, 6), "o": np.array([8, 9], "float32")}],
        nc=ints(1, 3),
    ),
    "a while loop that the data ends": idiom(
        """
    (float[4] x) => (float[4] y, int64 n) { t = Constant<value_int=9223372036854775807>()
    c = Constant<value=bool {1}>() z = Constant<value_int=0>()
    y,n = Loop<body = B(int64 i, bool ci, float[4] a, int64 k) => (bool co, float[4] b, int64 k2) {
    two = Constant<value_float=1.5>() b = Mul(a,two) s = ReduceSum<keepdims=0>(b)
    l = Constant<value_float=100.0>() aa = Abs(s) co = Less(aa,l) one = Constant<value_int=1>()
    k2 = Add(k,one)}>(t,c,x,z) }
    """,
        [{"x": normal(4) + 1}],
    ),
    "a loop that gives one tensor twice": idiom(
        """
    (float[4] x) => (float[4] y, float[K,4] r) { t = Constant<value_int=3>() c = Constant<value=bool {1}>()
    y,r = Loop<body = B(int64 i, bool ci, float[4] a) => (bool ci, float[4] b, float[4] b) {
    two = Constant<value_float=1.5>() b = Mul(a,two) }>(t,c,x) }
    """,
        [{"x": normal(4) + 1}],
    ),
    "a loop of many turns": idiom(
        """
    (float[4] x) => (float[4] y, float[K,4] r) { t = Constant<value_int=30>() c = Constant<value=bool {1}>()
    y,r = Loop<body = B(int64 i, bool ci, float[4] a) => (bool ci2, float[4] b, float[4] o) {
    ci2 = Identity(ci) fi = Cast<to=1>(i) b = Add(a,fi) o = Identity(b)}>(t,c,x) }
    """,
        [{"x": normal(4) + 1}],
    ),
    "the number of turns is an input": idiom(
        """
    (float[4] x, int64 t) => (float[4] y, float[K,4] r) { c = Constant<value=bool {1}>()
    y,r = Loop<body = B(int64 i, bool ci, float[4] a) => (bool ci2, float[4] b, float[4] o) {
    ci2 = Identity(ci) fi = Cast<to=1>(i) b = Add(a,fi) o = Identity(b)}>(t,c,x) }
    """,
        [
            {"x": normal(4) + 1, "t": np.array(3)},
            {"x": normal(4) + 1, "t": np.array(0)},
            {"x": normal(4), "t": np.array(40)},
        ],
    ),
    "transformers: an attention mask, with -1 in the shape to expand to": idiom(
        """
    (int64[N,L] ids) => (float[N,1,L,L] m) { s = Shape(ids) n = Gather(s,c0) l = Gather(s,c1)
    n1 = Unsqueeze(n,c0v) l1 = Unsqueeze(l,c0v) sh = Concat<axis=0>(n1,one,l1,l1)
    one4 = ConstantOfShape<value=int64[1]{-1}>(four) eq = Equal(sh,one4)
    o = ConstantOfShape<value=int64[1]{1}>(four) ws = Where(eq,o,sh) e0 = Unsqueeze(ids,ax12)
    z = Greater(e0,c0) f1 = Cast<to=1>(z) em = Expand(f1,ws) inv = Sub(onef,em) ib = Cast<to=9>(inv)
    m = Where(ib,neg,inv) }
    """,
        [{"ids": np.array([[1, 0, 2], [0, 0, 3]])}, {"ids": np.array([[1, 0, 2, 4]])}],
        c0=np.int64(0),
        c1=np.int64(1),
        c0v=ints(0),
        one=ints(1),
        four=ints(4),
        ax12=ints(1, 2),
        onef=np.float32(1),
        neg=np.float32(np.finfo("float32").min),
    ),
    "transformers: past keys of length zero": idiom(
        """
    (float[1,2,L,4] q, float[1,2,P,4] past) => (float[1,2,T,4] k, float[1,2,L,T] a, int64[L] pos) {
    k = Concat<axis=2>(past,q) kt = Transpose<perm=[0,1,3,2]>(k) a0 = MatMul(q,kt) a = Softmax(a0)
    sp = Shape<start=2,end=3>(past) sq = Shape<start=2,end=3>(q) ps = Squeeze(sp) t0 = Add(sp,sq)
    ts = Squeeze(t0) pos = Range(ps,ts,one) }
    """,
        [{"q": normal(1, 2, 3, 4), "past": normal(1, 2, 0, 4)}, {"q": normal(1, 2, 1, 4), "past": normal(1, 2, 3, 4)}],
        one=np.int64(1),
    ),
    "torchvision: the best 1000, or all": idiom(
        """
    (float[N,M] x) => (float[N,K] v, int64[N,K] i) { s = Shape<start=1>(x) c = Concat<axis=0>(s,th)
    k = ReduceMin<keepdims=1>(c) v,i = TopK<axis=-1>(x,k) }
    """,
        [{"x": normal(3, 7)}],
        th=ints(1000),
    ),
    "a last part that is smaller": idiom(
        """
    (float[N,7] x) => (float[N,a] p, float[N,b] q, float[N,c] r) { p,q,r = Split<axis=1,num_outputs=3>(x) }
    """,
        [{"x": normal(3, 7)}],
        opset=18,
    ),
    "absent optional inputs": idiom(
        """
    (float[N,3,H,W] x) => (float[N,3,a,b] y, float[N,3,H,W] z) { s = Shape(x) nc = Slice(s,c0,c2)
    hw = Slice(s,c2,c4) h2 = Mul(hw,c2) sz = Concat<axis=0>(nc,h2)
    y = Resize<mode="linear",coordinate_transformation_mode="half_pixel">(x,,,sz) z = Clip(x,,mx) }
    """,
        [{"x": normal(1, 3, 5, 6)}],
        c0=ints(0),
        c2=ints(2),
        c4=ints(4),
        mx=np.float32(0.3),
    ),
    "torch: interpolate by a scale, before opset 13": idiom(
        """
    (float[N,3,H,W] x) => (float[N,3,a,b] y) { s = Shape(x) h = Gather(s,i2) hf = Cast<to=1>(h)
    hm = Mul(hf,sc) hfl = Floor(hm) h1 = Cast<to=7>(hfl) hu = Unsqueeze(h1,c0) nc = Slice(s,c0,c2)
    sz = Concat<axis=0>(nc,hu,hu)
    y = Resize<mode="nearest",coordinate_transformation_mode="asymmetric",nearest_mode="floor">(x,e,e,sz) }
    """,
        [{"x": normal(1, 3, 5, 6)}],
        opset=13,
        i2=np.int64(2),
        sc=np.float32(1.7),
        c0=ints(0),
        c2=ints(2),
        e=np.zeros(0, "float32"),
    ),
    "sizes are an input": idiom(
        """
    (float[N,3,H,W] x, int64[4] sz) => (float[a,b,c,d] y) { y = Resize<mode="linear">(x,,,sz) }
    """,
        [{"x": normal(1, 3, 5, 6), "sz": ints(1, 3, 7, 9)}, {"x": normal(1, 3, 5, 6), "sz": ints(1, 3, 4, 4)}],
    ),
    "scales are an input": idiom(
        """
    (float[N,3,H,W] x, float[4] sc) => (float[a,b,c,d] y) { y = Resize<mode="linear">(x,,sc) }
    """,
        [{"x": normal(1, 3, 5, 6), "sc": np.array([1, 1, 2, 1.5], "float32")}],
    ),
    "k is an input": idiom(
        """
    (float[N] x, int64[1] k) => (float[K] v, int64[K] i) { v,i = TopK(x,k) }
    """,
        [{"x": normal(8), "k": ints(3)}, {"x": normal(8), "k": ints(5)}],
    ),
    "torch: split into a list, pick from it": idiom(
        """
    (float[N,6] x) => (float[N,2] y) { s = SplitToSequence<axis=1>(x,two) a = SequenceAt(s,z)
    b = SequenceAt(s,m) y = Add(a,b) }
    """,
        [{"x": normal(3, 6)}],
        two=np.int64(2),
        z=np.int64(0),
        m=np.int64(-1),
    ),
    "a sequence is an output": idiom(
        """
    (float[N,6] x) => (seq(float[N,2]) s) { s = SplitToSequence<axis=1>(x,two) }
    """,
        [{"x": normal(3, 6)}],
        two=np.int64(2),
    ),
    "masks are booleans": idiom(
        """
    (bool[N,M] m, float[N,M] x) => (float[N,M] y, bool[N] a) { y = Where(m,x,z) mi = Cast<to=7>(m)
    mm = ReduceMax<axes=[1],keepdims=0>(mi) a = Cast<to=9>(mm) }
    """,
        [{"m": normal(3, 4) > 0, "x": normal(3, 4)}],
        opset=13,
        z=np.float32(0),
    ),
    "indices are int32": idiom(
        """
    (int32[N,L] i) => (float[N,L,3] y, int32[N,L] j) { y = Gather(t,i) j = Mul(i,i) }
    """,
        [{"i": np.array([[0, 1], [4, 2]], "int32")}],
        t=normal(5, 3),
    ),
    "float16": idiom(
        """
    (float16[N,4] x) => (float16[N,3] y, float16[N,1] s) { y = MatMul(x,wt) s = ReduceMean<axes=[1]>(y) }
    """,
        [{"x": normal(2, 4).astype("float16")}],
        wt=normal(4, 3).astype("float16"),
    ),
    "RoBERTa: positions count what is no padding": idiom(
        """
    (int64[N,L] ids) => (int64[N,L] p) { e = Equal(ids,one) n = Not(e) m = Cast<to=6>(n) c = CumSum(m,ax)
    c2 = Mul(c,m) c3 = Cast<to=7>(c2) p = Add(c3,one) }
    """,
        [{"ids": np.array([[0, 5, 6, 1, 1]])}],
        one=np.int64(1),
        ax=np.int64(1),
    ),
    "T5: buckets of relative positions": idiom(
        """
    (float[N,L] x) => (int64[L,L] b) { s = Shape<start=1>(x) l = Squeeze(s) r = Range(z,l,one)
    q = Unsqueeze(r,a0) k = Unsqueeze(r,a1) d = Sub(q,k) g = Greater(d,z) gi = Cast<to=7>(g)
    g16 = Mul(gi,c16) ab = Abs(d) sm = Less(ab,c8) fl = Cast<to=1>(ab) dv = Div(fl,f8) lg = Log(dv)
    l2 = Div(lg,lgm) l3 = Mul(l2,f8) li = Cast<to=7>(l3) la = Add(li,c8) full = Shape(la)
    cs = ConstantOfShape<value=int64[1]{15}>(full) mn = Min(la,cs) w = Where(sm,ab,mn) b = Add(g16,w) }
    """,
        [{"x": normal(1, 12)}],
        z=np.int64(0),
        one=np.int64(1),
        a0=ints(0),
        a1=ints(1),
        c16=np.int64(16),
        c8=np.int64(8),
        f8=np.float32(8),
        lgm=np.float32(np.log(16)),
    ),
    "TensorFlow: crop and resize": idiom(
        """
    (float[N,3,H,W] x) => (float[N,3,a,b] y) {
    y = Resize<mode="linear",coordinate_transformation_mode="tf_crop_and_resize",extrapolation_value=1.5>(x,roi,,sz) }
    """,
        [{"x": normal(1, 3, 8, 8)}],
        opset=13,
        roi=np.array([0, 0, 0.1, 0.2, 1, 1, 0.8, 1.2], "float32"),
        sz=ints(1, 3, 4, 6),
    ),
    "TensorFlow: channels last, SAME padding": idiom(
        """
    (float[N,H,W,3] x) => (float[N,a,b,4] y) { t = Transpose<perm=[0,3,1,2]>(x)
    c = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(t,k) r = Relu(c)
    p = MaxPool<auto_pad="SAME_UPPER",kernel_shape=[3,3],strides=[2,2]>(r)
    u = Resize<mode="nearest",coordinate_transformation_mode="tf_half_pixel_for_nn">(p,e,s2)
    y = Transpose<perm=[0,2,3,1]>(u) }
    """,
        [{"x": normal(1, 9, 11, 3)}],
        opset=11,
        k=normal(4, 3, 3, 3),
        e=np.zeros(0, "float32"),
        s2=np.array([1, 1, 2, 2], "float32"),
    ),
    "LSTM with states of a computed shape": idiom(
        """
    (float[L,N,3] x) => (float[L,2,N,4] y, float[2,N,4] h) { s = Shape(x) n = Gather(s,i1)
    sh = Concat<axis=0>(two,n,four) z = ConstantOfShape(sh)
    y,h = LSTM<direction="bidirectional",hidden_size=4>(x,W,R,B,,z,z) }
    """,
        [{"x": normal(5, 2, 3)}],
        i1=ints(1),
        two=ints(2),
        four=ints(4),
        W=normal(2, 16, 3),
        R=normal(2, 16, 4),
        B=normal(2, 32),
    ),
    "the depth of OneHot is a dimension": idiom(
        """
    (int64[N] x, float[M,C] t) => (float[N,C] y) { s = Shape<start=1>(t) d = Squeeze(s) y = OneHot(x,d,v) }
    """,
        [{"x": ints(1, 2, 0), "t": normal(2, 4)}],
        v=np.array([0, 1], "float32"),
    ),
    "an optional": idiom(
        """
    (float[N] x) => (bool h, float[N] y) { o = Optional(x) h = OptionalHasElement(o)
    y = OptionalGetElement(o) }
    """,
        [{"x": normal(3)}],
    ),
    "SequenceMap": idiom(
        """
    (float[N,4] x) => (float[N,4] y) { s = SplitToSequence<axis=0>(x)
    q = SequenceMap< body = B(float[1,4] a) => (float[1,4] b) { b = Neg(a) }>(s)
    y = ConcatFromSequence<axis=0>(q) }
    """,
        [{"x": normal(3, 4)}],
    ),
    "optimum: a decoder with and without past in one file": idiom(
        """
    (float[1,2,L,4] q, float[1,2,P,4] past, bool[1] use_cache) => (float[1,2,L,4] y, float[1,2,T,4] k) {
    y,k = If< then_branch = A() => (float[1,2,a,4] y1, float[1,2,b,4] k1) { k1 = Concat<axis=2>(past,q)
    t = Transpose<perm=[0,1,3,2]>(k1) m = MatMul(q,t) y1 = MatMul(m,k1) },
    else_branch = B() => (float[1,2,c,4] y2, float[1,2,d,4] k2) { k2 = Identity(q)
    t2 = Transpose<perm=[0,1,3,2]>(k2) m2 = MatMul(q,t2) y2 = MatMul(m2,k2) }>(use_cache) }
    """,
        [
            {"q": normal(1, 2, 3, 4), "past": normal(1, 2, 0, 4), "use_cache": np.array([False])},
            {"q": normal(1, 2, 1, 4), "past": normal(1, 2, 3, 4), "use_cache": np.array([True])},
        ],
    ),
    "TensorFlow: a loop over the pictures of a batch": idiom(
        """
    (float[N,H,W,3] x) => (float[N,6,6,3] y) { s = Shape(x) n = Gather(s,z) c = Constant<value=bool {1}>()
    y = Loop<body = B(int64 i, bool ci) => (bool co, float[6,6,3] o) { co = Identity(ci) g = Gather(x,i)
    ax = Constant<value_ints=[0]>() u = Unsqueeze(g,ax) t = Transpose<perm=[0,3,1,2]>(u)
    sz = Constant<value_ints=[1,3,6,6]>()
    r = Resize<mode="linear",coordinate_transformation_mode="half_pixel">(t,,,sz)
    t2 = Transpose<perm=[0,2,3,1]>(r) o = Squeeze(t2,ax) }>(n,c) }
    """,
        [{"x": normal(2, 5, 4, 3)}, {"x": normal(20, 5, 4, 3)}],
        z=np.int64(0),
    ),
    "TensorFlow: map_fn, ended by its counter": idiom(
        """
    (float[N,H,W,3] x) => (float[N,2] y) { s = Shape(x) n = Gather(s,z) c = Constant<value=bool {1}>()
    t = Constant<value_int=9223372036854775807>() i0 = Constant<value_int=0>() c1 = Less(i0,n)
    i2,y = Loop<body = B(int64 it, bool ci, int64 i) => (bool co, int64 i3, float[2] o) { g = Gather(x,i)
    m = ReduceMean<keepdims=0>(g) st = Constant<value_ints=[2]>() o = Expand(m,st)
    one = Constant<value_int=1>() i3 = Add(i,one) co = Less(i3,n) }>(t,c1,i0) }
    """,
        [{"x": normal(2, 5, 4, 3)}, {"x": normal(5, 5, 4, 3)}],
        z=np.int64(0),
    ),
    "no rows": idiom(
        """
    (float[N,4] x) => (float[N,3] y, float[4] s, int64 n) { y = MatMul(x,k)
    s = ReduceSum<axes=[0],keepdims=0>(x) n = Size(x) }
    """,
        [{"x": normal(0, 4)}, {"x": normal(2, 4)}],
        opset=12,
        k=normal(4, 3),
    ),
    "branches in branches, reading from outside": idiom(
        """
    (float[N] x, bool p, bool q) => (float[N] y) { a = Exp(x) y = If< then_branch = A() => (float[N] u) {
    b = Neg(a) u = If< then_branch = C() => (float[N] u1) { u1 = Add(a,b) },
    else_branch = D() => (float[N] u2) { u2 = Mul(x,b) }>(q) }, else_branch = B() => (float[N] v) {
    v = Sub(x,a) }>(p) }
    """,
        [*[{"x": normal(3), "p": np.array(i), "q": np.array(j)} for i in (True, False) for j in (True, False)]],
    ),
    "slices from the end, and backwards": idiom(
        """
    (float[N,L,3] x) => (float[N,a,3] y, float[N,L,3] z) { y = Slice(x,m1,e,ax) z = Slice(x,m1,mn,ax,st) }
    """,
        [{"x": normal(2, 4, 3)}],
        m1=ints(-1),
        e=ints(LARGEST),
        ax=ints(1),
        mn=ints(-LARGEST - 1),
        st=ints(-1),
    ),
    "pad to a multiple of eight": idiom(
        """
    (float[N,3,H,W] x) => (float[N,3,a,b] y) { s = Shape<start=2>(x) r = Mod(s,e8) q = Sub(e8,r)
    p = Mod(q,e8) pads = Concat<axis=0>(z4,z2,p) y = Pad<mode="reflect">(x,pads) }
    """,
        [{"x": normal(1, 3, 5, 6)}, {"x": normal(1, 3, 8, 7)}],
        e8=ints(8),
        z4=ints(0, 0, 0, 0),
        z2=ints(0, 0),
    ),
    "float16 with a normalization in float32": idiom(
        """
    (float16[N,L,8] x) => (float16[N,L,8] y) { c = Cast<to=1>(x) m = ReduceMean<axes=[-1]>(c) d = Sub(c,m)
    p = Pow(d,two) v = ReduceMean<axes=[-1]>(p) ve = Add(v,eps) s = Sqrt(ve) n = Div(d,s) h = Cast<to=10>(n)
    g = Mul(h,gam) y = Add(g,bet) }
    """,
        [{"x": normal(2, 3, 8).astype("float16")}],
        two=np.float32(2),
        eps=np.float32(1e-5),
        gam=normal(8).astype("float16"),
        bet=normal(8).astype("float16"),
    ),
    "indices from the end": idiom(
        """
    (float[N,M] x, int64[N,1] i) => (float[N,1] y, float[N,1,M] z) { y = GatherElements<axis=1>(x,i)
    z = Gather(x,i) }
    """,
        [{"x": normal(3, 4), "i": np.array([[-1], [0], [2]])}],
    ),
    "a causal mask by Trilu": idiom(
        """
    (float[N,L,L] x) => (float[N,L,L] y) { s = Shape<start=1>(x) o = ConstantOfShape<value=bool[1]{1}>(s)
    m = Trilu<upper=1>(o,one) y = Where(m,ninf,x) }
    """,
        [{"x": normal(1, 4, 4)}],
        one=np.int64(1),
        ninf=np.float32(-np.inf),
    ),
    "a list of three, from a loop": idiom(
        """
    (float[N,4] x) => (float[N,12] y) { t = Constant<value_int=3>() c = Constant<value=bool {1}>()
    e = SequenceEmpty()
    sq = Loop<body = B(int64 i, bool ci, seq(float[N,4]) a) => (bool ci2, seq(float[N,4]) b) {
    ci2 = Identity(ci) fi = Cast<to=1>(i) v = Mul(x,fi) b = SequenceInsert(a,v) }>(t,c,e)
    y = ConcatFromSequence<axis=1>(sq) }
    """,
        [{"x": normal(2, 4)}],
    ),
    "torch: unbind": idiom(
        """
    (float[3,N,4] x) => (float[N,4] y) { s = SplitToSequence<axis=0,keepdims=0>(x) a = SequenceAt(s,z)
    n = SequenceLength(s) nn = Sub(n,o) b = SequenceAt(s,nn) y = Add(a,b) }
    """,
        [{"x": normal(3, 2, 4)}],
        z=np.int64(0),
        o=np.int64(1),
    ),
    "a scalar expanded": idiom(
        """
    (float[N] x) => (float[a,b] y) { s = Shape(x) c = Concat<axis=0>(two,s) y = Expand(one,c) }
    """,
        [{"x": normal(3)}],
        opset=13,
        two=ints(2),
        one=np.float32(3),
    ),
    "a kernel that is an input": idiom(
        """
    (float[1,2,H,W] x, float[3,2,3,3] k) => (float[1,3,a,b] y) { y = Conv(x,k) }
    """,
        [{"x": normal(1, 2, 5, 6), "k": normal(3, 2, 3, 3)}],
    ),
    "Paddle: interpolate": idiom(
        """
    (float[N,3,H,W] x) => (float[N,3,a,b] y) { s = Shape(x) hw = Slice(s,c2,c4) hi = Cast<to=6>(hw)
    t = Mul(hi,two) ti = Cast<to=7>(t) nc = Slice(s,c0,c2) sz = Concat<axis=0>(nc,ti)
    y = Resize<mode="linear",coordinate_transformation_mode="half_pixel">(x,e,e,sz) }
    """,
        [{"x": normal(1, 3, 3, 4)}],
        opset=11,
        c0=ints(0),
        c2=ints(2),
        c4=ints(4),
        two=np.array(2, "int32"),
        e=np.zeros(0, "float32"),
    ),
    "LSTM with lengths": idiom(
        """
    (float[L,N,3] x, int32[N] sl) => (float[L,1,N,4] y) { y,h,c = LSTM<hidden_size=4>(x,W,R,B,sl) }
    """,
        [{"x": normal(5, 2, 3), "sl": np.array([3, 5], "int32")}],
        opset=14,
        W=normal(1, 16, 3),
        R=normal(1, 16, 4),
        B=normal(1, 32),
    ),
    "CLIP: the features at the last token": idiom(
        """
    (int64[N,L] ids, float[N,L,4] h) => (float[N,4] y) { a = ArgMax<axis=1,keepdims=0>(ids)
    s = Shape<end=1>(h) n = Squeeze(s) r = Range(z,n,one) ru = Unsqueeze(r,m1) au = Unsqueeze(a,m1)
    i = Concat<axis=1>(ru,au) y = GatherND(h,i) }
    """,
        [{"ids": np.array([[1, 9, 3], [4, 2, 9]]), "h": normal(2, 3, 4)}],
        z=np.int64(0),
        one=np.int64(1),
        m1=ints(-1),
    ),
    "torch: roll": idiom(
        """
    (float[N,H,W,C] x) => (float[N,H,W,C] y) { a = Slice(x,m2,e,c1) b = Slice(x,z,m2,c1)
    y = Concat<axis=1>(a,b) }
    """,
        [{"x": normal(1, 5, 5, 2)}],
        m2=ints(-2),
        e=ints(LARGEST),
        z=ints(0),
        c1=ints(1),
    ),
    "torch: index_put with accumulate": idiom(
        """
    (float[N,M] x, int64[K] i, float[K] v) => (float[N,M] y) { s = Shape<start=1>(x) u = Unsqueeze(i,m1)
    z = Mul(u,zero) ii = Concat<axis=1>(z,u) y = ScatterND<reduction="add">(x,ii,v) }
    """,
        [{"x": normal(2, 4), "i": ints(1, 1, 3), "v": normal(3)}],
        opset=18,
        m1=ints(-1),
        zero=np.int64(0),
    ),
    "EfficientDet: the best of all classes": idiom(
        """
    (float[1,N,C] s, float[1,N,4] b) => (float[1,5] v, int64[1,5] cls, float[1,5,4] bb) { r = Reshape(s,fl)
    v,i = TopK(r,k5) sh = Shape<start=2>(s) cls = Mod(i,sh) a = Div(i,sh) au = Unsqueeze(a,m1)
    ex = Expand(au,e4) bb = GatherElements<axis=1>(b,ex) }
    """,
        [{"s": normal(1, 7, 3), "b": normal(1, 7, 4)}],
        fl=ints(1, -1),
        k5=ints(5),
        m1=ints(-1),
        e4=ints(1, 1, 4),
    ),
    "anchors from the size of the picture": idiom(
        """
    (float[N,C,H,W] x) => (float[a,2] y) { s = Shape(x) h = Gather(s,i2) wd = Gather(s,i3)
    rh = Range(z,h,one) rw = Range(z,wd,one) rhf = Cast<to=1>(rh) rwf = Cast<to=1>(rw)
    hu = Unsqueeze(rhf,a1) wu = Unsqueeze(rwf,a0) hw = Unsqueeze(h,a0) ww = Unsqueeze(wd,a0)
    hs = Concat<axis=0>(hw,ww) he = Expand(hu,hs) we = Expand(wu,hs) hf = Reshape(he,m1) wf = Reshape(we,m1)
    hfu = Unsqueeze(hf,a1) wfu = Unsqueeze(wf,a1) y = Concat<axis=1>(hfu,wfu) }
    """,
        [{"x": normal(1, 2, 3, 4)}],
        i2=np.int64(2),
        i3=np.int64(3),
        z=np.int64(0),
        one=np.int64(1),
        a1=ints(1),
        a0=ints(0),
        m1=ints(-1),
    ),
    "torchvision: a picture without a batch, resized by its own size": idiom(
        """
    (float[3,H,W] x) => (float[1,4,a,b] y) { s = Shape(x) hw = Slice(s,c1,c3) f1 = Cast<to=1>(hw)
    mn = ReduceMin<keepdims=0>(f1) mx = ReduceMax<keepdims=0>(f1) r1 = Div(t,mn) r2 = Div(tm,mx)
    r = Min(r1,r2) ru = Unsqueeze(r,z) o = Concat<axis=0>(one,one,ru,ru) xu = Unsqueeze(x,z)
    rs = Resize<mode="linear",coordinate_transformation_mode="half_pixel">(xu,,o) y = Conv(rs,k) }
    """,
        [{"x": normal(3, 8, 10)}, {"x": normal(3, 6, 14)}],
        c1=ints(1),
        c3=ints(3),
        t=np.float32(12),
        tm=np.float32(20),
        z=ints(0),
        one=np.array([1], "float32"),
        k=normal(4, 3, 3, 3),
    ),
    "a sequence is an input": idiom(
        """
    (seq(float[a]) s, int64 i) => (float[b] y) { y = SequenceAt(s,i) }
    """,
        [{"s": [normal(2), normal(3)], "i": np.array(1)}],
    ),
}


@pytest.mark.parametrize("title", IDIOMS)
def test_runs_compiled_as_in_the_runtime(title):
    model = assert_alike(IDIOMS[title])
    for feed in IDIOMS[title].feeds:
        assert model.traced(model.feed(feed)).parts.tail is None
