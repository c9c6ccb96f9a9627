"""Fine-tunes an imported network with flax and optax, its quantizers switched on, and writes it back to ONNX.

    python examples/finetune_with_flax.py

The loss is the mean squared difference of the quantized network's outputs from the float one's; no labels are needed.
Gradients pass the rounding straight through.
"""

import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxq
from jaxq import demo


def main(steps: int = 20) -> None:
    folder = Path(demo.__file__).parent
    with np.load(folder / "digits.npz") as file:
        images = file["calibration_image"].astype(np.float32) / 16
    model = jaxq.load(folder / "digits.onnx")
    options = jaxq.AdvancedQuantizationParameters(disable_bias_correction=True)  # fine-tuning will do that
    quantized = jaxq.quantize(model, jaxq.Dataset(images, lambda image: image[None]), advanced_parameters=options)
    wanted = model(images)["logits"]

    module = jaxq.to_flax(quantized)
    optimizer = nnx.Optimizer(module, optax.adam(1e-4), wrt=nnx.Param)

    @nnx.jit
    def step(module: nnx.Module, optimizer: nnx.Optimizer) -> jnp.ndarray:
        def loss(module: nnx.Module) -> jnp.ndarray:
            return jnp.mean((module(images)["logits"] - wanted) ** 2)

        value, gradients = nnx.value_and_grad(loss)(module)
        optimizer.update(module, gradients)
        return value

    losses = [float(step(module, optimizer)) for _ in range(steps)]
    print(f"mean squared difference of the logits: {losses[0]:.4f} before, {losses[-1]:.4f} after {steps} steps")
    with tempfile.TemporaryDirectory() as out:
        jaxq.save(jaxq.from_flax(module), Path(out) / "digits.tuned.onnx")


if __name__ == "__main__":
    main()
