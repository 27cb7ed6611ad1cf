"""Decode attention through block tables: the reference against plain attention, the GPU kernel against the reference.

The kernel runs under Triton's interpreter, in a process of its own because Triton looks at the variable when it is
imported; where Triton isn't installed those tests are skipped.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qvl.engine.kv import KVStore, attend_one
from qvl.engine.paged_decode import has_kernel, paged_decode, paged_decode_reference

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu" / "paged_attention.py"
N, K, H, SIZE = 6, 2, 8, 4


def scene(tables: list[list[int]], lengths: list[int], dtype=torch.float32):
    """A store in which only the sequences' own slots were written, and what attends to them."""
    generator = torch.Generator().manual_seed(0)
    store = KVStore([0], 32, SIZE, K, H, dtype=dtype)
    for held in (store._keys[0], store._values[0]):
        held.fill_(0x7F if store.is_8bit else float("nan"))
    for table, length in zip(tables, lengths):
        k, v = torch.randn(2, length, K, H, generator=generator)
        store.write(0, store.slots(table, length), k, v)
    q = torch.randn(len(tables), N, H, generator=generator)
    wide = max(map(len, tables))
    padded = [table + [31] * (wide - len(table)) for table in tables]  # block 31 is never written
    return store, q, torch.tensor(padded, dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32)


def held(store: KVStore):
    return store._keys[0], store._values[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_reference_equals_plain_attention_of_each_sequence(dtype):
    tables, lengths = [[3], [9, 2, 30], [5, 6, 7, 8]], [1, 11, 16]
    store, q, blocks, ends = scene(tables, lengths, dtype)
    out = paged_decode_reference(q, *held(store), blocks, ends, SIZE)
    for row, (table, length) in enumerate(zip(tables, lengths)):
        k, v = store.read(0, store.slots(table, length), torch.float32)
        torch.testing.assert_close(
            out[row : row + 1], attend_one(q[row : row + 1], k, v), atol=1e-5, rtol=1e-5
        )


def test_what_lies_behind_a_sequences_end_is_never_read():
    store, q, blocks, ends = scene([[3, 4]], [5])  # slots 6 to 8 of its table hold NaN
    assert torch.isfinite(paged_decode_reference(q, *held(store), blocks, ends, SIZE)).all()


def test_each_group_of_queries_reads_its_own_key_head():
    store, q, blocks, ends = scene([[3, 4]], [6])
    before = paged_decode_reference(q, *held(store), blocks, ends, SIZE)
    store._values[0][:, 1] += 1.0
    after = paged_decode_reference(q, *held(store), blocks, ends, SIZE)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    torch.testing.assert_close(after[:, 3:], before[:, 3:] + 1.0)


def test_answers_keep_the_dtype_of_the_queries():
    store, q, blocks, ends = scene([[3, 4]], [6])
    assert paged_decode(q.bfloat16(), *held(store), blocks, ends, SIZE).dtype == torch.bfloat16


def test_a_cpu_has_no_kernel():
    assert not has_kernel(torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize(
    ("capability", "held_as", "expected"),
    [
        ((9, 0), torch.uint8, True),
        ((8, 0), torch.uint8, False),
        ((8, 0), torch.bfloat16, True),
        ((7, 5), torch.float16, False),
    ],
)
def test_8_bit_keys_need_a_device_that_knows_them(monkeypatch, capability, held_as, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("qvl.engine.paged_decode.find_spec", lambda name: object())
    assert has_kernel.__wrapped__(torch.device("cuda"), held_as) is expected


def test_without_triton_a_gpu_has_no_kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("qvl.engine.paged_decode.find_spec", lambda name: None)
    assert not has_kernel.__wrapped__(torch.device("cuda"), torch.bfloat16)


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton isn't installed")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[str, dict]:
    """The kernel's errors in every small case, by name."""
    out = tmp_path_factory.mktemp("interpreter")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--dry-run", "--out", str(out)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "paged_attention.json").read_text())
    assert result["form"] == "interpreter"
    return {cell["case"]: cell for cell in result["cells"]}


@needs_triton
@pytest.mark.parametrize(
    "case",
    [
        "one token",
        "no whole block",
        "split in three",
        "more splits than tokens",
        "seven queries a key",
        "head of 80",
        "fp16",
        "8-bit keys",
    ],
)
def test_kernel_equals_the_reference(interpreted, case):
    cell = interpreted[case]
    assert cell["error"] <= cell["tolerance"]


@needs_triton
def test_splits_fill_the_device_and_are_never_shorter_than_a_tile():
    from qvl.engine.triton_decode import MAX_SPLITS, TILE, split_count

    assert split_count(4, 32768, 132) == MAX_SPLITS  # one sequence of the 7B on an H200
    assert split_count(64 * 4, 4096, 132) == 2
    assert split_count(1024, 4096, 132) == 1
    assert split_count(4, 2 * TILE, 132) == 2
    assert split_count(4, 5, 132) == 1
