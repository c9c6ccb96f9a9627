"""That several devices share the samples of each batch, and find what one finds."""

import os
import subprocess
import sys
from pathlib import Path

TWO = """
import jax
import numpy as np
from models import residual_network, smooth

from jaxq.engine import devices
from jaxq.engine.collect import collect
from jaxq.engine.batching import batches
from jaxq.engine.runner import outputs, per_sample, run
from jaxq.engine.execute import traced_param
from jaxq.numerics.observers import both, extremes, histogram
from jaxq.onnx_io.load import load

uploads = []
devices.traced_param = lambda name, value: uploads.append(name) or traced_param(name, value)
model, two = load(residual_network()), jax.devices()
assert len(two) == 2
feeds = [{"image": row[None]} for row in smooth(7, 3, 8, 8)]
needs = dict.fromkeys(["stem", "depthwise.relu", *model.graph.outputs], both(extremes(7), histogram()))
alone = collect(model, [needs], feeds, batch_size=3)[0]
with devices.over(two):
    uploads.clear()
    together = collect(model, [needs], feeds, batch_size=3)[0]
    again = collect(model.replace(encodings={}), [needs], feeds, batch_size=3)[0]
    assert sorted(uploads) == sorted(model.params)  # once for both models and all batches
    for signature, batch in batches(model, feeds, 3):
        assert len(batch.real) == 4
        graph, params, _ = model.program
        found = run(outputs, per_sample, (graph,), signature.static, batch, (params, {}))
    for value in found.values():
        assert {shard.device: len(shard.data) for shard in value.addressable_shards} == dict.fromkeys(two, 2)
for name, state in alone.items():
    for other in (together, again):
        jax.tree.map(np.testing.assert_array_equal, state, other[name])
"""


def test_two_devices_find_what_one_finds():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    there = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TWO], env=there, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
