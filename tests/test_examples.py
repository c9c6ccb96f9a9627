"""The examples run, and show what they say."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quantize_model_verifies_the_written_file(capsys):
    example("quantize_model").main()
    shown = capsys.readouterr().out
    assert "100.00%" in shown
    assert "QLinearConv" in shown


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_finetune_with_flax_brings_the_outputs_closer(capsys):
    example("finetune_with_flax").main(steps=10)
    before, after = map(float, re.findall(r"(\d+\.\d+) (?:before|after)", capsys.readouterr().out))
    assert after < before
