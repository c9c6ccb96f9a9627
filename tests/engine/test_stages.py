"""That a graph in stages computes what it computes as a whole, and that what two models have in common runs once."""

import numpy as np
import pytest
from accuracy_models import base_of, chain, images
from compilations import compilations
from models import NETWORKS, samples

from jaxq.accuracy.ranking import Ranker
from jaxq.accuracy.space import Space
from jaxq.accuracy.treatments import FLOAT
from jaxq.engine import stages
from jaxq.engine.batching import batches
from jaxq.engine.stages import run_stages


@pytest.fixture
def staged(monkeypatch):
    """Small models have stages, too; the list gets the stage of each call."""
    calls = []
    run = stages.run_stage
    monkeypatch.setattr(stages, "LARGE", 0)
    monkeypatch.setattr(stages, "run_stage", lambda stage, *rest: calls.append(stage) or run(stage, *rest))
    return calls


@pytest.mark.parametrize(("name", "count"), [("residual", 2), ("shuffle", 2), ("transformer", 2), ("branching", 1)])
def test_stages_compute_what_the_whole_computes(name, count, staged, monkeypatch):
    space = Space(base_of(NETWORKS[name][0](), samples(name, 6)))
    for model in (space.float_model(), space.candidate({}), space.candidate({next(iter(space.layers)): FLOAT})):
        for signature, batch in batches(model, samples(name, 3, first=50), 2):
            monkeypatch.setattr(stages, "STAGES", 1)
            whole = run_stages(model, signature, batch)
            monkeypatch.setattr(stages, "STAGES", 2)
            parts = run_stages(model, signature, batch)
            assert parts.outputs.keys() == whole.outputs.keys()
            assert len(stages.stages(model, model.traced(signature))) == count
            for key, value in whole.outputs.items():
                np.testing.assert_allclose(np.asarray(parts.outputs[key]), np.asarray(value), rtol=2e-5, atol=2e-5)


def test_what_two_models_have_in_common_runs_once(staged):
    space = Space(base_of(chain(), images(12)))
    first, *_, last = space.layers
    model = space.candidate({}, corrected=False)
    ((signature, batch),) = batches(model, [{"image": each} for each in images(4, 50)], None)
    whole = run_stages(model, signature, batch)
    every = list(staged)
    assert len(every) == len(stages.stages(model, model.traced(signature))) > 2
    for changed, expected in ((last, every[-1:]), (first, every)):
        staged.clear()
        other = space.candidate({changed: FLOAT}, corrected=False)
        found = run_stages(other, signature, batch, whole)
        assert staged == expected
        alone = run_stages(other, signature, batch)
        for name, value in alone.outputs.items():
            np.testing.assert_array_equal(np.asarray(found.outputs[name]), np.asarray(value))
    staged.clear()
    assert run_stages(model, signature, batch, whole).outputs == whole.outputs
    assert not staged


@pytest.mark.parametrize("ranking", ["alone", "exactly"])
def test_a_ranking_in_stages_is_the_same_and_runs_less(ranking, staged, monkeypatch):
    space = Space(base_of(chain(), images(12)))
    feeds = [{"image": each} for each in images(4, 50)]
    parts = getattr(Ranker(space, feeds, FLOAT), ranking)({})
    count = len(space.layers)
    assert len(staged) < stages.STAGES * (count + 2)
    monkeypatch.setattr(stages, "STAGES", 1)
    whole = getattr(Ranker(space, feeds, FLOAT), ranking)({})
    assert [each.layer for each in parts] == [each.layer for each in whole]
    np.testing.assert_allclose([each.gain for each in parts], [each.gain for each in whole], rtol=1e-3, atol=1e-9)


def test_no_setting_compiles_a_stage_anew(staged):
    space = Space(base_of(chain(), images(12)))
    feeds = [{"image": each} for each in images(4, 50)]
    ranker = Ranker(space, feeds, FLOAT)
    ranker.divergence({})
    with compilations() as compiled:
        ranker.exactly({})
    assert compiled == []
