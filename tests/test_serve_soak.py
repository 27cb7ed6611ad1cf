"""200 requests of every kind, 16 at once: one end each, no block lost. All 2,000: benchmarks/cpu/serve_soak.py."""

import asyncio
import collections
import importlib.util
from pathlib import Path

import pytest

import qvl
from serve_live import live

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "cpu" / "serve_soak.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("serve_soak", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["serve_soak"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_request_has_one_end_and_no_block_is_lost(tiny_checkpoint, soak):
    model = qvl.load(tiny_checkpoint, max_num_seqs=4, max_model_len=4096)
    with live(model, max_body_bytes=soak.MAX_BODY, max_queue=12, model_name="soak") as server:
        account = asyncio.run(soak.soak(server.url, 200, 16, seed=1))
        assert soak.losses(server.service, account, 200) == []
        kinds = collections.Counter(kind for kind, _ in account.ends)
        assert set(kinds) == set(soak.KINDS)
        ends = {end for _, end in account.ends}
        assert {"200", "400", "413", "left"} <= ends
        assert ends <= {"200", "400", "413", "429", "left", "answered"}


def test_the_account_sees_a_lost_request(tiny_checkpoint, soak):
    model = qvl.load(tiny_checkpoint)
    with live(model) as server:
        account = soak.Account(ends=[("whole", "200")])
        found = soak.losses(server.service, account, 2, seconds=0.1)
        assert found == ["1 ends for 2 requests"]
        server.service.in_flight = 1
        assert "1 answers in flight at the end" in soak.losses(server.service, account, 1, seconds=0.1)
        server.service.in_flight = 0
