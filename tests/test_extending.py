"""What docs/extending.md says that users may write runs as it stands there, and does what it says."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import jaxq
from jaxq.engine.collect import collect
from jaxq.placement.targets import TARGETS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def made():
    """The names that the blocks of the page have made, run one after the other."""
    names = {"__name__": "extending"}
    before = set(TARGETS)
    for block in BLOCKS:
        exec(compile(block, "docs/extending.md", "exec"), names)  # our own page
    yield names
    for name in set(TARGETS) - before:
        del TARGETS[name]


def test_every_part_is_there_and_short():
    wanted = ["observer", "algorithm", "range estimator", "target", "metric"]
    assert re.findall(r"(?m)^## An? (.*)$", PAGE) == wanted
    assert len(BLOCKS) == 1 + len(wanted)
    for block in BLOCKS:
        assert len([line for line in block.splitlines() if line.strip()]) <= 12, block
    for name in ("Blocks", "losses", "roundings"):
        assert name in PAGE[PAGE.index("## Later") :]


def test_the_observer_counts_zeros_whatever_the_batch(made):
    relu = next(node.outputs[0] for node in made["model"].graph.nodes if node.op == "Relu")
    found = [
        collect(
            made["model"],
            [{relu: made["zeros"]}],
            made["jaxq"].Dataset(made["images"]).feeds(made["model"]),
            batch_size=size,
        )
        for size in (None, 7)
    ]
    few, many = (np.asarray(each[0][relu]) for each in found)
    np.testing.assert_array_equal(few, many)
    assert many[1] % len(made["images"]) == 0
    assert 0 < many[0] < many[1]
    assert (relu in made["noted"].metadata["sparse"].split()) == bool(many[0] > 0.1 * many[1])


def test_the_estimator_sets_the_ranges(made):
    usual = jaxq.quantize(made["model"], made["images"])
    own = made["clipped"].encodings
    scales = [float(own[name].scale.max() / each.scale.max()) for name, each in usual.encodings.items() if name in own]
    assert min(scales) < 0.95
    chosen = json.loads(made["clipped"].metadata["jaxq.options"])["advanced_parameters"]
    assert chosen == {"activations_range_estimator_params": "extending:three_spreads"}


def test_an_estimator_may_be_named_as_text(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "extending", SimpleNamespace(**made))
    named = jaxq.AdvancedQuantizationParameters(activations_range_estimator_params="extending:three_spreads")
    assert named.activations_range_estimator_params.distribution is made["three_spreads"]
    with pytest.raises(
        jaxq.ConfigError, match="has no function 'three_spread'; did you mean 'three_spreads'"
    ) as raised:
        jaxq.AdvancedQuantizationParameters(activations_range_estimator_params="extending:three_spread")
    assert raised.value.path == ("activations_range_estimator_params",)


def test_the_target_has_the_types_and_operators_of_its_table(made):
    found = made["for_my_chip"]
    assert found.metadata["jaxq.target"] == "my-chip"
    assert {int(np.max(each.qmax)) for name, each in found.encodings.items() if name not in found.params} == {32767}


def test_the_metric_is_what_the_search_measured(made):
    (before, after), *others = json.loads(made["kept"].metadata["jaxq.accuracy"]).values()
    assert not others
    assert before == pytest.approx(made["margin"](made["model"], made["labelled"])[0])
    assert before - after <= 0.5
