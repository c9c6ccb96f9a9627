"""Trains the demo's model and writes it, with its data, into `jaxq/demo/`.

    python tools/train_digits.py                    writes digits.onnx and digits.npz (about a minute on two cores)
    python tools/train_digits.py --out DIRECTORY    writes them elsewhere

The model is a depthwise-separable CNN with BatchNormalization, trained with flax and optax on scikit-learn's
handwritten digits (UCI "Optical Recognition of Handwritten Digits": 1797 grey images of 8 x 8 pixels, values 0 to 16).
It is written as a user's trainer would write it: NCHW, a free batch dimension, BatchNormalization not folded. The seed
decides everything: the split, the first weights, the order of the batches and their shifts.

`digits.npz` holds three splits which share no image with each other or with the 1000 training images:
`calibration_image` uint8 [100, 1, 8, 8], `validation_image` [297, ...] and `test_image` [400, ...], with
`validation_label` and `test_label` int64. Pixels are stored as 0..16; **the model's input is pixel / 16**, from 0 to 1.

Needs the `dev` extra (scikit-learn, onnxruntime). This file only makes the demo's model; jaxq itself never trains.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
PIXEL_MAXIMUM = 16  # of the stored pixels; the model sees pixel / PIXEL_MAXIMUM
EPSILON = 1e-5  # of every BatchNormalization
CLIP_HIGH = 6.0  # upper end of the Clip after each depthwise convolution, as in MobileNet
SPLIT_SIZES = {"calibration": 100, "validation": 297, "test": 400}  # the other 1000 images train
BATCH_SIZE = 100
LEARNING_RATE = 0.01  # the peak, after a warm-up of a tenth of the steps
LOGIT_TOLERANCE = 1e-4  # largest difference allowed between flax and ONNX Runtime; both compute in float32
ACCURACY_FLOOR = 0.975  # on the test split
BYTES_LIMIT = 300_000

# ---------------------------------------------------------------------------------------------------------- the data


def load_splits(seed: int) -> dict[str, np.ndarray]:
    """The digits, shuffled and split: `NAME_image` uint8 [count, 1, 8, 8] and `NAME_label` int64 [count].

    Images that occur more than once are dropped first, so that no picture is in two splits.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    image = digits.images.astype(np.uint8)[:, None]
    _, first = np.unique(image.reshape(len(image), -1), axis=0, return_index=True)
    order = np.random.default_rng(seed).permutation(np.sort(first))
    splits, start = {}, 0
    for name, size in (SPLIT_SIZES | {"training": len(order) - sum(SPLIT_SIZES.values())}).items():
        rows = order[start : start + size]
        splits[f"{name}_image"], splits[f"{name}_label"] = image[rows], digits.target[rows].astype(np.int64)
        start += size
    return splits


def to_input(image: np.ndarray) -> np.ndarray:
    """Stored pixels, uint8 [N, 1, 8, 8] of 0..16, as the model's input: float32 of 0..1."""
    return image.astype(np.float32) / PIXEL_MAXIMUM


# --------------------------------------------------------------------------------------------------------- the model


class ConvNorm(nnx.Module):
    """Convolution without bias, BatchNormalization, and an activation: "Relu", "Clip" (0 to 6) or none."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        size: int,
        stride: int = 1,
        groups: int = 1,
        activation: str | None,
        rngs: nnx.Rngs,
    ):
        self.size, self.stride, self.groups, self.activation = size, stride, groups, activation
        # ONNX pads both ends alike; flax's "SAME" would pad only the end when the stride is 2.
        self.padding = size // 2
        self.conv = nnx.Conv(
            inputs, outputs, (size, size), strides=stride, padding=[(self.padding, self.padding)] * 2,
            feature_group_count=groups, use_bias=False, rngs=rngs,
        )  # fmt: skip
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.conv(x))
        if self.activation == "Relu":
            return nnx.relu(x)
        return jnp.clip(x, 0.0, CLIP_HIGH) if self.activation == "Clip" else x


class Separable(nnx.Module):
    """A 3 x 3 convolution of each channel, then a 1 x 1 one across them; `residual` adds the input to the result."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, residual: bool = False, rngs: nnx.Rngs):
        self.residual = residual
        self.depthwise = ConvNorm(inputs, inputs, size=3, stride=stride, groups=inputs, activation="Clip", rngs=rngs)
        # As in MobileNetV2, what is added to the input is not cut by an activation.
        self.pointwise = ConvNorm(inputs, outputs, size=1, activation=None if residual else "Relu", rngs=rngs)

    def __call__(self, x):
        y = self.pointwise(self.depthwise(x))
        return x + y if self.residual else y


class DigitsNet(nnx.Module):
    """Images [N, 8, 8, 1] (flax's layout) to logits [N, 10]."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = ConvNorm(1, 24, size=3, activation="Relu", rngs=rngs)
        self.blocks = nnx.List(
            [
                Separable(24, 48, rngs=rngs),
                Separable(48, 48, residual=True, rngs=rngs),
                Separable(48, 96, stride=2, rngs=rngs),
                Separable(96, 96, residual=True, rngs=rngs),
            ]
        )
        self.classifier = nnx.Linear(96, 10, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((1, 2)))


# ------------------------------------------------------------------------------------------------------ the training


def shift(image, key):
    """Each image of [N, 8, 8, 1] moved by -1, 0 or 1 pixels up and sideways; what comes in is paper (0)."""
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corner = jax.random.randint(key, (len(image), 2), 0, 3)

    def cut(one, at):
        return jax.lax.dynamic_slice(one, (at[0], at[1], 0), image.shape[1:])

    return jax.vmap(cut)(padded, corner)


@nnx.jit
def train_step(model: DigitsNet, optimizer: nnx.Optimizer, image, label, key):
    """One step of AdamW on one batch; returns the mean cross-entropy before it."""

    def loss_of(model):
        logits = model(shift(image, key))
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    loss, gradient = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradient)
    return loss


def train(image: np.ndarray, label: np.ndarray, *, epochs: int, seed: int) -> DigitsNet:
    """A trained network in evaluation mode. `image` is float32 [N, 8, 8, 1] of 0..1, `label` int64 [N]."""
    model = DigitsNet(nnx.Rngs(seed))
    steps_per_epoch = len(image) // BATCH_SIZE
    steps = epochs * steps_per_epoch
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, steps // 10, steps)
    optimizer = nnx.Optimizer(model, optax.adamw(schedule, weight_decay=1e-3), wrt=nnx.Param)
    order, key = np.random.default_rng(seed), jax.random.key(seed)
    label = label.astype(np.int32)
    for epoch in range(epochs):
        for step, rows in enumerate(
            np.split(order.permutation(len(image))[: steps_per_epoch * BATCH_SIZE], steps_per_epoch)
        ):
            step_key = jax.random.fold_in(key, epoch * steps_per_epoch + step)
            loss = train_step(model, optimizer, image[rows], label[rows], step_key)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3d}  loss of its last batch {float(loss):.4f}")
    model.eval()
    return model


# ----------------------------------------------------------------------------------------------------------- to ONNX


class OnnxWriter:
    """Collects nodes and initializers; a method adds nodes named `place/...` and returns the name of their output."""

    def __init__(self):
        self.nodes, self.initializers = [], []

    def constant(self, name: str, value) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def node(self, op: str, inputs: list[str], place: str, output: str | None = None, **attributes) -> str:
        output = output or f"{place}/output"
        self.nodes.append(helper.make_node(op, inputs, [output], name=place, **attributes))
        return output

    def conv_norm(self, layer: ConvNorm, x: str, place: str) -> str:
        kernel = layer.conv.kernel[...].transpose(3, 2, 0, 1)  # flax HWIO -> ONNX OIHW
        x = self.node(
            "Conv", [x, self.constant(f"{place}/conv/weight", kernel)], f"{place}/conv", group=layer.groups,
            kernel_shape=[layer.size] * 2, strides=[layer.stride] * 2, pads=[layer.padding] * 4, dilations=[1, 1],
        )  # fmt: skip
        statistics = {
            "scale": layer.norm.scale, "bias": layer.norm.bias, "mean": layer.norm.mean, "variance": layer.norm.var,
        }  # fmt: skip
        parameters = [self.constant(f"{place}/norm/{name}", value[...]) for name, value in statistics.items()]
        x = self.node("BatchNormalization", [x, *parameters], f"{place}/norm", epsilon=EPSILON)
        if layer.activation == "Relu":
            return self.node("Relu", [x], f"{place}/relu")
        if layer.activation == "Clip":
            bounds = [self.constant(f"{place}/clip/low", 0.0), self.constant(f"{place}/clip/high", CLIP_HIGH)]
            return self.node("Clip", [x, *bounds], f"{place}/clip")
        return x

    def separable(self, block: Separable, x: str, place: str) -> str:
        y = self.conv_norm(block.depthwise, x, f"{place}/depthwise")
        y = self.conv_norm(block.pointwise, y, f"{place}/pointwise")
        return self.node("Add", [x, y], f"{place}/add") if block.residual else y


def to_onnx(model: DigitsNet) -> onnx.ModelProto:
    """The network as ONNX: `image` float32 [N, 1, 8, 8] to `logits` float32 [N, 10]."""
    writer = OnnxWriter()
    x = writer.conv_norm(model.stem, "image", "stem")
    for index, block in enumerate(model.blocks, start=1):
        x = writer.separable(block, x, f"block{index}")
    x = writer.node("GlobalAveragePool", [x], "pool")
    x = writer.node("Flatten", [x], "flatten")
    weight = writer.constant("classifier/weight", model.classifier.kernel[...].T)
    bias = writer.constant("classifier/bias", model.classifier.bias[...])
    writer.node("Gemm", [x, weight, bias], "classifier", output="logits", transB=1)
    graph = helper.make_graph(
        writer.nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        writer.initializers,
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tools/train_digits.py",
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


# --------------------------------------------------------------------------------------------------------- the check


def check(model: DigitsNet, proto: onnx.ModelProto, splits: dict[str, np.ndarray]) -> None:
    """Prints what the file reaches in ONNX Runtime; ends the program unless it is small, right and equal to flax."""
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    accuracy = {}
    for name in ("validation", "test"):
        image = to_input(splits[f"{name}_image"])
        (logits,) = session.run(["logits"], {"image": image})
        difference = float(np.abs(logits - np.asarray(model(image.transpose(0, 2, 3, 1)))).max())
        accuracy[name] = float((logits.argmax(1) == splits[f"{name}_label"]).mean())
        print(f"{name}: accuracy {accuracy[name]:.4f} of {len(image)}; logits differ from flax by {difference:.1e}")
        if difference > LOGIT_TOLERANCE:
            raise SystemExit(
                f"ONNX Runtime and flax differ by {difference:.1e} on {name}; at most {LOGIT_TOLERANCE} is allowed"
            )
    if accuracy["test"] < ACCURACY_FLOOR:
        raise SystemExit(f"test accuracy {accuracy['test']:.4f} is below {ACCURACY_FLOOR}")
    if proto.ByteSize() >= BYTES_LIMIT:
        raise SystemExit(f"the model has {proto.ByteSize()} bytes; it must stay below {BYTES_LIMIT}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the demo's model on scikit-learn's digits.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "jaxq" / "demo")
    arguments = parser.parse_args()

    start = time.perf_counter()
    splits = load_splits(arguments.seed)
    image = to_input(splits["training_image"]).transpose(0, 2, 3, 1)
    model = train(image, splits["training_label"], epochs=arguments.epochs, seed=arguments.seed)
    proto = to_onnx(model)
    check(model, proto, splits)

    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "digits.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    # The calibration images go without their labels: calibration has no use for them.
    kept = {name: splits[name] for name in splits if not name.startswith("training") and name != "calibration_label"}
    np.savez_compressed(arguments.out / "digits.npz", **kept)
    print(f"wrote {proto.ByteSize()} bytes of model in {time.perf_counter() - start:.0f} seconds to {arguments.out}")


if __name__ == "__main__":
    main()
