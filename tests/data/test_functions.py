"""Functions by name: where their modules are looked for, and what is said when there is none."""

import sys

import pytest

from jaxq.data.functions import named_function, names_function
from jaxq.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    """A folder that is not in `sys.path`, with a module and a package in it, which are forgotten afterwards."""
    before = set(sys.modules)
    (tmp_path / "own_module.py").write_text("number = 3\ndef give(): return 1\n")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "inner.py").write_text(
        "from own_package import other\ndef give(): return other.NUMBER\n"
    )
    (tmp_path / "own_package" / "other.py").write_text("NUMBER = 2\n")
    (tmp_path / "broken_module.py").write_text("raise OSError('no such disk')\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("text, expected", [("own_module:give", 1), ("own_package.inner:give", 2)])
def test_a_module_may_lie_in_a_folder_and_the_search_path_stays_as_it_is(folder, monkeypatch, text, expected):
    path = list(sys.path)
    assert named_function(text, folder)() == expected
    assert sys.path == path
    sys.modules.pop(text.partition(":")[0])
    monkeypatch.chdir(folder)
    assert named_function(text)() == expected


def test_a_module_of_the_search_path_comes_before_one_of_the_folder(folder):
    (folder / "json.py").write_text("def loads(): return 'mine'\n")
    assert named_function("json:loads", folder)("1") == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("own_module:giv", r"'own_module:giv': module 'own_module' has no function 'giv'; did you mean 'give'\?"),
        ("own_module:number", "module 'own_module' has no function 'number'"),
        ("own_module.py:give", "give the module without .py: own_module:give"),
        ("nowhere_to_be_found:give", "cannot be imported: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("own_package.nowhere:give", "cannot be imported: ModuleNotFoundError"),
        ("broken_module:give", "module 'broken_module' cannot be imported: OSError: no such disk"),
    ],
)
def test_what_is_no_function_is_refused_with_the_reason(folder, text, message):
    for _ in range(2):
        with pytest.raises(ConfigError, match=message):
            named_function(text, folder)


@pytest.mark.parametrize("text, expected", [("a.b:c", True), ("a/b:c", False), (r"C:\data", False), ("a:b c", False)])
def test_the_form_of_a_name_is_no_path(text, expected):
    assert names_function(text) is expected
