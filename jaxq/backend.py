"""The path by which scripts import ONNX's backend interface; it lives in `jaxq.onnx_io.backend`."""

from jaxq.onnx_io.backend import JaxqBackend as JaxqBackend
from jaxq.onnx_io.backend import is_compatible as is_compatible
from jaxq.onnx_io.backend import prepare as prepare
from jaxq.onnx_io.backend import run_model as run_model
from jaxq.onnx_io.backend import run_node as run_node
from jaxq.onnx_io.backend import supports_device as supports_device
