"""The target `openvino` places the quantizers that NNCF 3.4 places, and gives them the same scales.

Both with NNCF's range estimators (min-max of weights and of channels, mean of the samples' extremes otherwise), and without
any step that changes weights or biases. What differs on purpose is listed in docs/targets.md, with the reason.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from jaxq.engine.model import Model
from jaxq.graph.fusion import fuse
from jaxq.numerics.estimators import RangeEstimatorParametersSet
from jaxq.numerics.quantizer import PerAxis, QuantParams, Scheme
from jaxq.numerics.ranges import Range, activation_params
from jaxq.numerics.weights import weight_params
from jaxq.onnx_io.load import load
from jaxq.pipeline import planned
from jaxq.placement.place import QUANTIZED_SUFFIX, Plan, place_quantizers
from jaxq.placement.schemes import QuantizationParameters
from jaxq.placement.targets import OPENVINO

REFERENCE = Path(__file__).resolve().parent / "reference" / "nncf.json"  # its "origin" says how it was made
TASKS = (
    "cifar_resnet8",
    "cifar_resnet20",
    "kws_dscnn",
    "vit_cifar_a",
    "minilm_stsb",
    "squeezenet1.1",
    "mobilenetv1_x0.25",
    "mobilenetv2_1.0",
    "fastestdet",
)

# Tensors on which the scales differ on purpose -> the one whose scale they have here. NNCF puts a quantizer into one group only,
# the first that it finds; here all tensors that meet in a Concat, directly or behind others, have one scale, so that nothing is
# rounded twice.
DIFFERENCES = {
    "fastestdet": dict.fromkeys([f"onnx::Concat_{number}" for number in (637, 645, 663, 681)], "onnx::Concat_699")
}


def plan_for(model: Model, feed: Mapping[str, Any], *, symmetric: bool, **options: Any) -> Plan:
    dtypes = {name: shape.dtype.name for name, shape in model.traced(feed).tensors.items()}
    return place_quantizers(model.graph, model.params, dtypes, OPENVINO, symmetric=symmetric, **options)


def extremes(x: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value behind each scale; of symmetric schemes, the largest absolute value."""
    axes = tuple(
        a for a in range(x.ndim) if not isinstance(scheme.granularity, PerAxis) or a != scheme.granularity.axis
    )
    return x.min(axes), (np.abs(x) if scheme.symmetric else x).max(axes)


def activation_params_of(model: Model, plan: Plan, feeds: Iterable[Mapping[str, Any]]) -> dict[str, QuantParams]:
    """Group -> quantizer, from NNCF's statistics in plain numpy."""
    watched = tuple(name for name in plan.activations if name not in plan.moved)
    tapped = model.replace(graph=replace(plan.graph, outputs=watched))
    seen: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in watched}
    for feed in feeds:
        for name, value in tapped(feed).items():
            seen[name].append(extremes(np.asarray(value), plan.schemes[plan.activations[name]]))
    ranges: dict[str, Range] = {}
    for name in watched:
        group = plan.activations[name]
        scheme = plan.schemes[group]
        low, high = (np.stack(each) for each in zip(*seen[name], strict=True))
        channels = isinstance(scheme.granularity, PerAxis)
        low, high = (low.min(0), high.max(0)) if channels else (low.mean(0), high.mean(0))
        if scheme.symmetric:
            low = -high if low.min() < 0 else np.zeros_like(low)  # one sign for all channels
        before = ranges.get(group, Range(low, high))
        ranges[group] = Range(np.minimum(before.low, low), np.maximum(before.high, high))
    return {group: activation_params(found, plan.schemes[group]) for group, found in ranges.items()}


def golden(reference: Path, task: str, preset: str) -> dict[str, Any]:
    return json.loads((reference / f"{task}.{preset}.json").read_text(encoding="utf-8"))


def fused(model: Model) -> Model:
    graph, params = fuse(model.graph, model.params)
    return model.replace(graph=graph, params=params)


@pytest.fixture(scope="module")
def nncf_golden(shared_data) -> Path:
    folder = shared_data.parent / "reference" / "nncf_golden"
    if not folder.is_dir():
        pytest.skip("needs ../shared/reference/nncf_golden")
    return folder


def check(model: Model, plan: Plan, feeds: Iterable[Mapping[str, Any]], wanted: Mapping[str, Any]) -> None:
    """The plan has the quantizers of a golden file and no others, with the same scales."""
    params = activation_params_of(planned(fused(model), plan), plan, feeds)
    groups = {name.removesuffix(QUANTIZED_SUFFIX): group for name, group in plan.activations.items()}
    found = {each["tensor"]: each for each in wanted["activations"]}
    assert found.keys() <= groups.keys()
    assert {groups[name] for name in found} == set(plan.schemes), "quantizers that NNCF does not have"
    found |= {name: found[other] for name, other in DIFFERENCES.get(wanted["task"], {}).items()}
    for name, each in found.items():
        scale = np.asarray(params[groups[name]].scale).reshape(-1)
        np.testing.assert_allclose(scale, np.reshape(each["scale"], -1), rtol=1e-4, err_msg=name)
        ours, theirs = params[groups[name]], np.reshape(each["zero_point"], -1)
        lowest = {"uint8": 0, "int8": -128}[each["type"]]
        if (
            theirs == lowest
        ).all():  # nothing below zero, or too little for a step: unsigned here, and in most files of NNCF
            lowest, theirs = 0, np.array([0])
        assert int(ours.qmin) == lowest, name
        assert set(np.unique(ours.zero_point)) == set(theirs), name  # the files list which there are
    # NNCF leaves BatchNormalization to the runtime: its scales are those of the weights before folding.
    nodes = {node.name: node for _, node in model.graph.walk()}
    schemes = {weight.name: weight.scheme for weight in plan.weights}
    for each in wanted["weights"]:
        op, _, place = each["feeds"][0].partition(":")
        name, _, index = place.rpartition(":")
        weight = nodes[name].inputs[int(index)]
        scheme = schemes.pop(weight)
        value = np.asarray(model.params[weight])
        scale = np.asarray(weight_params(name, value, scheme, RangeEstimatorParametersSet.MINMAX).scale)
        assert nodes[name].op == op
        assert scale.size == each["scale_count"], name
        np.testing.assert_allclose(scale.reshape(-1)[: len(each["scales"])], each["scales"], rtol=1e-4, err_msg=name)
    assert not schemes, "weights that NNCF does not quantize"


@pytest.mark.parametrize("preset", ["performance", "mixed"])
@pytest.mark.parametrize("name", ["residual_network", "shuffle_network", "transformer_block"])
def test_nncf_s_quantizers_and_scales_on_networks_made_here(name, preset):
    model = load(getattr(models, name)())
    ((tensor, declared),) = model.inputs.items()
    shape = [size if isinstance(size, int) else 1 for size in declared.shape]
    random = np.random.default_rng(0)
    feeds = [{tensor: random.normal(size=shape).astype(np.float32)} for _ in range(16)]
    wanted = json.loads(REFERENCE.read_text(encoding="utf-8"))[f"{name}.{preset}"]
    check(model, plan_for(fused(model), feeds[0], symmetric=preset == "performance"), feeds, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["performance", "mixed"])
@pytest.mark.parametrize("task", TASKS)
def test_nncf_s_quantizers_and_scales(task, preset, nncf_golden, evaluate):
    model = load(evaluate.TASKS[task].model)
    feeds = evaluate.TASKS[task].calib(64)
    wanted = golden(nncf_golden, task, preset)
    options = {}
    if model.graph.opsets[""] < 13:  # NNCF keeps the file's opset, which has no scales per channel
        options = dict.fromkeys(("activations", "weights"), QuantizationParameters(per_channel=False))
    check(model, plan_for(fused(model), feeds[0], symmetric=preset == "performance", **options), feeds, wanted)
