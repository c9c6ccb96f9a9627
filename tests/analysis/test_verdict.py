"""The verdict on a runtime, in words and figures."""

import json
import math
from dataclasses import replace

import pytest

from jaxq.analysis.outputs import OutputComparison, OutputCost
from jaxq.analysis.verdict import LayerComparison, VerifyReport


def entry(**changes) -> OutputComparison:
    return replace(OutputComparison("y", "plain", 0.0, 0.0, 0.0, None), **changes)


def layer(**changes) -> LayerComparison:
    return replace(LayerComparison("c", "Conv", "plain", "t", ("c", "r"), 0.0, 0.0, 1000), **changes)


def report(*layers: LayerComparison, **changes) -> VerifyReport:
    return replace(VerifyReport(1, (entry(),), {}, {}, "", layers=layers), **changes)


@pytest.mark.parametrize(
    "changes, agrees",
    [
        ({"steps": 1.0, "typical_steps": 0.09}, True),
        ({"steps": 1.0, "typical_steps": 0.11}, False),
        ({"steps": 1.1, "typical_steps": 0.01}, False),
        ({"op": "Sigmoid", "steps": 1.0, "typical_steps": 0.29}, True),  # one of its codes, in many places
        ({"op": "Sigmoid", "steps": 1.0, "typical_steps": 0.31}, False),
        ({"op": "Sigmoid", "steps": 1.0, "typical_steps": 0.29, "count": 0}, False),
        ({"steps": math.inf, "typical_steps": 0.0}, False),
        ({"steps": 1.0, "typical_steps": 0.86, "count": 4}, True),  # three of four values
        ({"steps": 1.0, "typical_steps": 1.0, "count": 4}, False),
        ({"steps": 1.0, "typical_steps": 0.2, "count": 0}, False),  # floats, of which all may be that far
        ({"steps": 9.0, "typical_steps": 0.9, "roundings": 2}, True),
        ({"steps": 9.0, "typical_steps": 1.1, "roundings": 2}, False),
        ({"steps": 9.0, "typical_steps": math.nan, "roundings": 2}, False),
        ({"steps": 33.0, "typical_steps": 0.1, "roundings": 2}, False),  # one value far off, that no step explains
        ({"steps": math.inf, "typical_steps": 0.0, "roundings": 2}, False),
        ({"steps": math.nan, "typical_steps": 0.0, "roundings": 2}, False),
        ({"same_rows": 0.95}, True),
        ({"same_rows": 0.85}, False),
    ],
)
def test_a_layer_agrees_where_rounding_explains_the_difference(changes, agrees):
    assert layer(**changes).agrees is agrees
    assert report(layer(), layer(**changes)).agrees is agrees
    assert report(layer(), layer(runtime="optimized", **changes)).ok is agrees


@pytest.mark.parametrize(
    "output, ok",
    [
        (entry(agreement=0.5, typical_steps=0.9, steps=30.0), True),
        (entry(agreement=1.0, typical_steps=1.1), False),
        (entry(typical_steps=math.nan), False),
        (entry(typical_steps=0.9, steps=33.0), False),
        (entry(runtime="optimized", typical_steps=1.1), True),
        (entry(same_rows=0.95, typical_steps=7.0), True),
        (entry(same_rows=0.85), False),
    ],
)
def test_outputs_decide_where_layers_could_not_be_compared(output, ok):
    assert report(outputs=(output,)).agrees  # single steps that the layers carry on
    assert report(outputs=(output,), unseen={"plain": "a reason"}).agrees is ok


@pytest.mark.parametrize("runtime", ["plain", "optimized"])
def test_an_output_that_is_no_number_from_end_to_end_is_a_fault_whatever_the_layers_say(runtime):
    found = report(layer(), layer(runtime="optimized"), outputs=(entry(), entry(name="z", runtime=runtime, lost=True)))
    assert not found.agrees
    words = found.verdict.splitlines()
    assert words[0].startswith("does not agree")
    assert words[1] == f"  output 'z', {runtime}: NaN, infinity or another shape where the simulation gives numbers"


def test_the_verdict_is_in_words_with_its_criterion_and_what_was_not_looked_at():
    words = report(
        layer(), refused="it is float8", saturation="it can", unseen={"optimized": "none"}
    ).verdict.splitlines()
    assert words[0] == "agrees: the runtime computes what the file says (1 layers plain)"
    assert words[1].startswith("criterion: each layer, fed with what the runtime fed it, comes within 1 step")
    assert words[2:5] == [
        "note: optimized, layer by layer: not compared, the outputs from end to end decide: none",
        "note: with graph optimizations on: it is float8 (not compared)",
        "note: it can",
    ]
    assert words[5].startswith("what quantization costs was not measured")
    assert words[5].endswith("--float MODEL")


def test_faults_are_named_the_first_of_them():
    faults = [layer(name=f"c{index}", steps=48.9, typical_steps=3.0) for index in range(7)]
    words = report(layer(), *faults).verdict.splitlines()
    assert words[0] == "does not agree: of 8 layers plain, 7 differ by more than rounding explains"
    assert (
        words[1] == "  Conv 'c0' -> 't', plain (in one layer with 'c', 'r'): 48.9 steps apart at the most, typically 3"
    )
    assert words[6] == "  and 2 more"


@pytest.mark.parametrize(
    "snr, ok", [(31.0, True), (0.1, True), (0.0, False), (-89.3, False), (None, False), (math.nan, False)]
)
def test_an_output_that_is_lost_in_noise_is_no_success(snr, ok):
    found = report(costs=(OutputCost("y", snr, None),))
    assert (found.agrees, found.ok) == (True, ok)
    assert ("USELESS: output 'y'" in found.verdict) is not ok


def test_costs_are_said_in_decibels_and_classes():
    costs = (OutputCost("y", 31.25, 0.975), OutputCost("boxes", None, None))
    words = report(costs=costs).verdict
    assert (
        "quantization costs at 'y': signal to noise 31.2 dB against the float model, the same class for 97.50%" in words
    )
    assert "quantization costs at 'boxes': signal to noise another shape against the float model" in words
    assert "not measured" not in words


def test_same_class_is_no_column_where_nothing_is_class_scores():
    assert "same class" not in report().table()
    assert "same class" in report(outputs=(entry(agreement=0.5), entry(name="z"))).table()


def test_numbers_that_json_does_not_have_are_words():
    found = json.loads(json.dumps(report(layer(steps=math.inf), costs=(OutputCost("y", -math.inf, None),)).to_dict()))
    assert found["layers"][0]["steps"] == "inf"
    assert found["costs"][0]["snr"] == "-inf"
    assert found["agrees"] is False
    assert found["verdict"].startswith("does not agree")
    assert [each["name"] for each in found["faults"]] == ["c"]
