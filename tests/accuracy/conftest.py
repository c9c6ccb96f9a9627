import pytest
from accuracy_models import BAD, ruined

from jaxq.accuracy import space
from jaxq.accuracy.space import quantized


@pytest.fixture
def spoilt(monkeypatch):
    """Spoils what the quantized model is made of, by a function of the base."""

    def by(change):
        monkeypatch.setattr(space, "quantized", lambda *given: change(quantized(*given)))

    return by


@pytest.fixture
def planted(spoilt):
    """One layer of the quantized model has absurd ranges."""
    spoilt(lambda base: ruined(base, BAD))
