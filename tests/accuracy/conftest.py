import pytest
from accuracy_models import BAD, control_base, ruined

from jaxq.accuracy import control


@pytest.fixture
def planted(monkeypatch):
    """One layer of the quantized model has absurd ranges."""
    monkeypatch.setattr(control, "open_base", lambda given, *rest: ruined(control_base(given, *rest), BAD))
