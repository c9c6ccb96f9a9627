"""Resizing, cropping and putting together: early versions against ONNX Runtime, gradients, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from node_case import Case, assert_agrees, normal, run_jaxq, run_runtime

from jaxq.errors import DynamicShapeError, ModelError, UnsupportedOpError
from jaxq.ops import find

x, line, volume = normal(1, 2, 4, 5), normal(1, 2, 6), normal(1, 1, 3, 4, 3)
FOR_ROI = np.array([0, 0, 0.2, 0.1, 1, 1, 0.9, 1.2], np.float32)


def scales(*values):
    return np.array(values, np.float32)


def sizes(*values):
    return np.array(values, np.int64)


def upsample(opset, mode, *factors, data=x):
    if opset < 9:
        return Case(
            op="Upsample",
            inputs=(data,),
            opset=opset,
            attributes={"mode": mode, "scales": [float(factor) for factor in factors]},
        )
    return Case(op="Upsample", inputs=(data, scales(*factors)), opset=opset, attributes={"mode": mode}, static=(1,))


def resize_10(mode, *factors, data=x):
    return Case(op="Resize", inputs=(data, scales(*factors)), opset=10, attributes={"mode": mode}, static=(1,))


def resize(*factors, to=None, opset=11, data=x, roi=None, **attributes):
    roi = scales() if roi is None else roi
    inputs = (data, roi, scales(*factors)) if to is None else (data, roi, scales(), sizes(*to))
    return Case(op="Resize", inputs=inputs, opset=opset, attributes=attributes, static=tuple(range(1, len(inputs))))


CASES = {
    "Upsample 7 nearest": upsample(7, "nearest", 1, 1, 2, 3),
    "Upsample 7 linear": upsample(7, "linear", 1, 1, 2, 2),
    "Upsample 9 nearest": upsample(9, "nearest", 1, 1, 2.6, 1.3),
    "Upsample 9 linear": upsample(9, "linear", 1, 1, 1.5, 2.4),
    "Upsample 9 line": upsample(9, "nearest", 1, 1, 2, data=line),
    "Resize 10 nearest": resize_10("nearest", 1, 1, 2.5, 1.2),
    "Resize 10 nearest, smaller": resize_10("nearest", 1, 1, 0.6, 0.5),
    "Resize 10 linear": resize_10("linear", 1, 1, 2, 1.4),
    "Resize 10 linear, smaller": resize_10("linear", 1, 1, 0.6, 0.7),
    # Whole lengths: ONNX aligns the corners of a length of 6.8 at 5.8, ONNX Runtime at 5.
    **{
        f"Resize 11 {mode}, {places}": resize(1, 1, 1.75, 0.6, mode=mode, coordinate_transformation_mode=places)
        for mode in ("nearest", "linear", "cubic")
        for places in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    },
    **{
        f"Resize 11 nearest, {rounding}": resize(
            1, 1, 2, 0.5, nearest_mode=rounding, coordinate_transformation_mode="half_pixel"
        )
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    },
    "Resize 11 to sizes": resize(to=(1, 2, 7, 3), mode="linear"),
    "Resize 11 to one cell": resize(to=(1, 2, 1, 1), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    "Resize 11 for nets": resize(
        to=(1, 2, 9, 3), mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor"
    ),
    "Resize 11 crop": resize(
        to=(1, 2, 3, 6), roi=FOR_ROI, mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=7.0,
    ),
    "Resize 11 cubic inside": resize(1, 1, 2, 1.5, mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    "Resize 11 volume": resize(1, 1, 2, 0.5, 1.4, mode="linear", data=volume),
    "Resize 13 of bytes": resize(1, 1, 2, 2, opset=13, data=(x * 9).astype(np.int8)),
    "Resize 18 antialias": resize(1, 1, 0.5, 0.6, opset=18, mode="linear", antialias=1),
    "Resize 18 symmetric": resize(
        1, 1, 1.3, 0.7, opset=19, mode="linear", coordinate_transformation_mode="half_pixel_symmetric"
    ),
    "Resize 18 not larger": resize(
        to=(9, 6), opset=18, axes=[2, 3], mode="linear", keep_aspect_ratio_policy="not_larger"
    ),
    "Resize 18 not smaller": resize(
        to=(9, 6), opset=18, axes=[2, 3], mode="linear", keep_aspect_ratio_policy="not_smaller"
    ),
    "CenterCropPad": Case(
        op="CenterCropPad", inputs=(x, sizes(7, 2)), opset=18, attributes={"axes": [-2, 3]}, static=(1,)
    ),
    "Col2Im": Case(
        op="Col2Im",
        inputs=(normal(1, 12, 9), sizes(5, 6), sizes(2, 3)),
        opset=18,
        attributes={"strides": [2, 2], "pads": [1, 1, 0, 0]},
        static=(1, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_runtime(case):
    assert_agrees(case, rtol=1e-4)


def test_the_first_upsample_names_height_and_width():
    function = find("Upsample", "", 6).function
    got = function(jnp.asarray(x), height_scale=2.0, width_scale=3.0)
    np.testing.assert_array_equal(got, x.repeat(2, axis=2).repeat(3, axis=3))
    assert function(jnp.asarray(x), height_scale=2.0, width_scale=3.0, mode="bilinear").shape == (1, 2, 8, 15)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_the_weights_of_each_cell_sum_to_one(mode):
    """So a gradient of ones over the output is shared by the input, whole."""
    function = find("Resize", "", 11).function

    def total(x):
        return jnp.sum(function(x, None, scales(1, 1, 2, 0.7), mode=mode))

    gradient = jax.jit(jax.grad(total))(jnp.asarray(x))
    np.testing.assert_allclose(jnp.sum(gradient), 2 * 8 * 3, rtol=1e-5)


def test_a_resize_to_its_own_size_is_nothing():
    for mode in ("nearest", "linear", "cubic"):
        [got] = run_jaxq(resize(1, 1, 1, 1, mode=mode))
        np.testing.assert_array_equal(got, x)


def test_half_floats_stay_half_floats():
    narrow = x.astype(np.float16)
    [got] = run_jaxq(resize(1, 1, 1.7, 0.6, mode="cubic", data=narrow))
    [wanted] = run_runtime(resize(1, 1, 1.7, 0.6, mode="cubic", data=narrow.astype(np.float32)))
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, wanted, rtol=5e-3, atol=5e-3)


def test_what_is_not_defined_is_refused():
    def refused(match, case, error=UnsupportedOpError):
        with pytest.raises(error, match=match):
            run_jaxq(case)

    refused("mode = 'area'; expected nearest, linear or cubic", resize(1, 1, 2, 2, mode="area"))
    refused("mode = 'area'; expected nearest, linear or cubic", upsample(9, "area", 1, 1, 2, 2))
    refused("nearest_mode = 'up'; expected one of round_prefer_floor", resize(1, 1, 2, 2, nearest_mode="up"))
    refused(
        "coordinate_transformation_mode = 'corner' is not one that ONNX defines",
        resize(1, 1, 2, 2, coordinate_transformation_mode="corner"),
    )
    refused(
        "keep_aspect_ratio_policy = 'larger'; expected stretch",
        resize(to=(1, 2, 9, 9), opset=18, keep_aspect_ratio_policy="larger"),
    )
    refused("Resize needs scales or sizes", Case(op="Resize", inputs=(x,), opset=13), ModelError)
    traced = Case(op="Resize", inputs=(x, scales(1, 1, 2, 2)), opset=10)
    refused("Resize.scales must be known before the data is", traced, DynamicShapeError)
