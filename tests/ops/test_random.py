"""Random numbers: of the right distribution, the same on each run, and others for each node."""

import numpy as np
import pytest
from models import written

import jaxq

SHAPE = (200, 100)
CASES = {
    "RandomNormal": ("RandomNormal <shape = [200, 100], mean = 2.0, scale = 3.0> ()", 2.0, 3.0),
    "RandomNormalLike": ("RandomNormalLike <mean = -1.0, scale = 0.5> (x)", -1.0, 0.5),
    "RandomUniform": ("RandomUniform <shape = [200, 100], low = -1.0, high = 3.0> ()", 1.0, 4 / 12**0.5),
    "RandomUniformLike": ("RandomUniformLike (x)", 0.5, 12**-0.5),
    "Bernoulli": ("Bernoulli (x)", 0.25, 0.1875**0.5),
}


def run(call: str, kind: str = "float"):
    model = jaxq.load(written(f"(float[200, 100] x) => ({kind}[200, 100] y) {{ y = {call} }}"))
    return np.asarray(model(np.full(SHAPE, 0.25, np.float32))["y"])


@pytest.mark.parametrize("call, mean, deviation", CASES.values(), ids=CASES)
def test_mean_and_deviation_are_right(call, mean, deviation):
    drawn = run(call)
    assert drawn.shape == SHAPE
    assert drawn.dtype == np.float32
    assert abs(drawn.mean() - mean) < 0.03 * deviation
    assert abs(drawn.std() / deviation - 1) < 0.02


def test_numbers_follow_from_the_seed():
    np.testing.assert_array_equal(run("RandomNormalLike <seed = 1.5> (x)"), run("RandomNormalLike <seed = 1.5> (x)"))
    assert (run("RandomNormalLike <seed = 1.5> (x)") != run("RandomNormalLike <seed = 2.5> (x)")).mean() > 0.99


def test_nodes_without_a_seed_draw_different_numbers():
    text = "(float[9] x) => (float[9] y, float[9] z) { [a] y = RandomNormalLike (x) [b] z = RandomNormalLike (x) }"
    found = jaxq.load(written(text))(np.zeros(9, np.float32))
    assert (np.asarray(found["y"]) != np.asarray(found["z"])).all()


def test_multinomial_draws_by_the_logarithms_of_the_probabilities():
    text = "(float[2, 3] x) => (int64[2, 4000] y) { y = Multinomial <dtype = 7, sample_size = 4000> (x) }"
    drawn = jaxq.load(written(text))(np.log(np.float32([[0.5, 0.25, 0.25], [1.0, 1e-9, 1e-9]])))["y"]
    assert drawn.dtype == np.int64
    np.testing.assert_allclose(np.bincount(drawn[0]) / 4000, [0.5, 0.25, 0.25], atol=0.03)
    assert (drawn[1] == 0).all()
