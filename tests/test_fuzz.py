"""A fixed number of mutated files and replies of each kind: a result or a QvlError, never anything else.

`make fuzz MINUTES=60` goes on with other seeds; a crash is written to tests/fuzz/found/ and played here ever after.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

import contextlib

import mutate

FOUND = Path(__file__).parent / "fuzz" / "found"
pytestmark = pytest.mark.filterwarnings("ignore")  # PIL warns of every second file
CASES = {
    "image": 1500,
    "pdf": 1000,
    "checkpoint": 400,
    "reply": 3000,
    "stream": 3000,
    "text": 2000,
    "template": 300,
}


@pytest.mark.parametrize("kind", CASES)
def test_a_mutated_file_is_a_result_or_an_error_of_ours(kind, tmp_path, tiny_checkpoint):
    case = mutate.kinds(tiny_checkpoint, tmp_path)[kind]
    for data in case.seeds:
        case.read(data)  # what is mutated is sound
    for seed in range(CASES[kind]):
        data = mutate.mutated(case.seeds, seed)
        try:
            case.read(data)
        except mutate.EXPECTED:
            pass
        except BaseException as e:
            pytest.fail(f"{kind} seed {seed}: {type(e).__name__}: {e}; data {data[:200]!r}")


@pytest.mark.parametrize("path", sorted(FOUND.glob("*.*")) or [None], ids=str)
def test_what_crashed_once_does_not_any_more(path, tmp_path, tiny_checkpoint):
    if path is None:
        pytest.skip("no crash was kept")
    case = mutate.kinds(tiny_checkpoint, tmp_path)[path.name.partition("-")[0]]
    with contextlib.suppress(mutate.EXPECTED):
        case.read(path.read_bytes())
