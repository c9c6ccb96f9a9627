"""The demo's model and data are what `tools/train_digits.py` says they are."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import train_digits

DEMO = Path(__file__).resolve().parent.parent / "jaxq" / "demo"
MODEL = DEMO / "digits.onnx"
SPLITS = {"calibration": 100, "validation": 297, "test": 400}


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    with np.load(DEMO / "digits.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def made_again() -> dict[str, np.ndarray]:
    return train_digits.load_splits(seed=0)


def pictures(image: np.ndarray) -> set[bytes]:
    return {one.tobytes() for one in image}


def test_the_file_holds_the_splits_that_the_tool_makes(data, made_again):
    for name, value in data.items():
        np.testing.assert_array_equal(value, made_again[name], err_msg=name, strict=True)


def test_no_picture_is_in_two_splits(data, made_again):
    splits = {name: pictures(data[f"{name}_image"]) for name in SPLITS}
    assert {name: len(split) for name, split in splits.items()} == SPLITS
    splits["training"] = pictures(made_again["training_image"])
    for (one, first), (other, second) in itertools.combinations(splits.items(), 2):
        assert not first & second, f"{one} and {other} share pictures"


def test_pixels_are_scaled_to_one(data):
    image = train_digits.to_input(data["test_image"])
    assert (image.dtype, image.min(), image.max()) == (np.float32, 0.0, 1.0)


def test_model_is_as_a_trainer_writes_it():
    model = onnx.load(MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    operators = {node.op_type for node in model.graph.node}
    assert operators >= {"Conv", "BatchNormalization", "Relu", "Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    groups = [a.i for node in model.graph.node if node.op_type == "Conv" for a in node.attribute if a.name == "group"]
    assert max(groups) > 1, "no depthwise convolution"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert MODEL.stat().st_size < 300_000


def test_model_reads_digits(data):
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": train_digits.to_input(data["test_image"])})
    accuracy = np.mean(logits.argmax(1) == data["test_label"])
    assert accuracy >= 0.97


@pytest.mark.usefixtures("standard_promotion")
def test_the_written_model_computes_what_flax_does(made_again):
    # One epoch moves every BatchNormalization off its identity. The tool checks the same after a whole training.
    image = train_digits.to_input(made_again["training_image"])[:200]
    label = made_again["training_label"][:200]
    model = train_digits.train(image.transpose(0, 2, 3, 1), label, epochs=1, seed=1)
    session = onnxruntime.InferenceSession(
        train_digits.to_onnx(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(["logits"], {"image": image})
    np.testing.assert_allclose(logits, model(image.transpose(0, 2, 3, 1)), atol=train_digits.LOGIT_TOLERANCE)
