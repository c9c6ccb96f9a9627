"""Functions that users name in text, as `package.module:function`."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Callable
from typing import Any

from jaxq.errors import ConfigError, did_you_mean

FORM = re.compile(r"[^/\\:]+:\w+")


def names_function(text: str) -> bool:
    """Whether a text has the form `package.module:function`."""
    return FORM.fullmatch(text) is not None


def named_function(text: str, folder: str | os.PathLike[str] = ".") -> Callable[..., Any]:
    """The function of that name; its module is imported from `sys.path`, or else from a folder.

    Raises:
      ConfigError: the module cannot be imported, or has no such function; the message gives the nearest name.
    """
    module_name, _, name = text.partition(":")
    if module_name.endswith(".py"):
        raise ConfigError(f"{text!r}: give the module without .py: {module_name.removesuffix('.py')}:{name}")
    try:
        _import_from(folder, module_name.partition(".")[0])
        found = pkgutil.resolve_name(text)
    except Exception as error:
        if not isinstance(error, AttributeError) or module_name not in sys.modules:
            words = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{text!r}: module {module_name!r} cannot be imported: {words}") from error
        found = None
    if callable(found):
        return found
    known = [key for key, value in vars(sys.modules[module_name]).items() if callable(value)]
    raise ConfigError(f"{text!r}: module {module_name!r} has no function {name!r}{did_you_mean(name, known)}")


def _import_from(folder: str | os.PathLike[str], name: str) -> None:
    """Imports a module from a folder unless it is found without: `sys.path`, which all code shares, stays as it is."""
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    spec = importlib.machinery.PathFinder.find_spec(name, [os.path.abspath(folder)])  # noqa: PTH100
    if spec is None or spec.loader is None:
        return
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
