"""The written file in ONNX Runtime, in the place of a model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from jaxq.accuracy.validation import Validation
from jaxq.engine.model import Model, check_feed
from jaxq.onnx_io.save import save


class File:
    """A written model in ONNX Runtime, to be called as a `Model` is."""

    def __init__(self, model: Model, path: Path):
        from jaxq.onnx_io.runtime import session

        self.inputs, self.outputs, self.graph = model.inputs, model.outputs, model.graph
        self._run = session(path, optimized=path.with_name("optimized.onnx"))

    def feed(self, inputs: Any) -> dict[str, Any]:
        return check_feed(self.inputs, inputs)

    def __call__(self, inputs: Any) -> dict[str, Any]:
        return self._run(self.feed(inputs))


def in_runtime(validation: Validation, model: Model) -> dict[str, float]:
    """The metrics of the model's file in ONNX Runtime, with all graph optimizations."""
    with tempfile.TemporaryDirectory(prefix="jaxq-accuracy-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        return {name: score.value for name, score in validation.evaluate(File(model, path)).items()}
