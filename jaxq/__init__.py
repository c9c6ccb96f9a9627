"""Post-training quantization of ONNX models, on whatever JAX runs on.

    import jaxq

    model = jaxq.load("model.onnx")
    quantized = jaxq.quantize(model, batches)
    jaxq.save(quantized, "model.int8.onnx")

Names are loaded when they are first used, so that `import jaxq` is quick.
"""

import lazy_loader

from jaxq.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
