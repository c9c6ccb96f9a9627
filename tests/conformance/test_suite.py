"""The official ONNX backend suite, by ONNX's own runner, against the list of what passes.

The two lists are the truth about what jaxq supports. A listed case that fails is a loss, a skipped one that passes is
an unlisted gain: both fail here, and `python tools/conformance_list.py` brings the lists up to date.
"""

import itertools

import conformance_list
import jax
import pytest

PASSING, SKIPPED = conformance_list.read(conformance_list.PASS), conformance_list.read(conformance_list.SKIP)


@pytest.fixture(autouse=True, scope="module")
def scratch(tmp_path_factory):
    """The runner copies the data of larger models into $ONNX_HOME."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNX_HOME", str(tmp_path_factory.mktemp("onnx")))
        yield


@pytest.fixture(autouse=True)
def bounded_memory(_count=itertools.count(1)):  # noqa: B008
    """JAX would keep the programs of all cases."""
    yield
    if next(_count) % 200 == 0:
        jax.clear_caches()


def test_every_case_is_listed_once():
    unlisted = set(conformance_list.cases()) - set(PASSING) - set(SKIPPED)
    assert not unlisted, "run tools/conformance_list.py"
    assert not set(PASSING) & set(SKIPPED)


@pytest.mark.parametrize("name", PASSING)
def test_listed_case_passes(name):
    conformance_list.cases()[name]()


@pytest.mark.parametrize("name", SKIPPED)
def test_skipped_case_fails(name):
    with pytest.raises(Exception, match=r".*"):
        conformance_list.cases()[name]()


def test_all_of_inference_passes():
    passing, total = conformance_list.counts()["inference on arrays"]
    assert passing == total
