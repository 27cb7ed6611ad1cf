"""Every module path and public name of 0.1 still works; what moved says so."""

import importlib
import json
import warnings
from pathlib import Path

import pytest

from qvl import moved

# module → its public names, read from the source of the last commit before the rooms were redrawn (5a3d073)
IMPORTABLE = json.loads((Path(__file__).parent / "golden" / "importable_0_1.json").read_text())
NEEDS_TRITON = {"qvl.engine.triton_decode"}


@pytest.mark.parametrize("module", IMPORTABLE)
def test_a_module_of_0_1_still_gives_its_names(module):
    if module in NEEDS_TRITON:
        pytest.importorskip("triton")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old = importlib.import_module(module)
        missing = [name for name in IMPORTABLE[module] if not hasattr(old, name)]
    assert missing == []


@pytest.mark.parametrize("module", moved.MODULES)
def test_a_moved_module_warns_and_names_the_new_place(module, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{module} is now {moved.MODULES[module][0]}"):
        importlib.import_module(module)


@pytest.mark.parametrize("name", moved.NAMES)
def test_a_moved_name_is_at_its_new_place(name):
    module, _, last = moved.NAMES[name].partition(":")
    assert hasattr(importlib.import_module(module), last)


def test_an_invented_name_is_still_refused():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("qvl.backends.invented")
