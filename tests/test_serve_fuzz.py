"""schemathesis against our own OpenAPI page: whatever it sends, no route answers 5xx. Skipped where it isn't installed.

pip install schemathesis && QVL_FUZZ_EXAMPLES=200 pytest tests/test_serve_fuzz.py
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings

import qvl
from serve_live import live

schemathesis = pytest.importorskip("schemathesis")
EXAMPLES = int(os.environ.get("QVL_FUZZ_EXAMPLES", "25"))


@pytest.fixture(scope="module")
def server(tiny_checkpoint):
    with live(qvl.load(tiny_checkpoint, max_model_len=512), max_body_bytes=1 << 20) as server:
        yield server


def send_all(operation, mode, sent: list[int]) -> None:
    """Sends the cases that schemathesis makes for a route; `sent` gets their statuses."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
        derandomize=True,
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case):
        if isinstance(case.body, dict):  # so that some reach the engine, and none for long
            if isinstance(case.body.get("model"), str):
                case.body["model"] = "tiny"
            if operation.label.startswith("POST /v1/"):
                case.body["max_output_tokens" if "responses" in operation.label else "max_tokens"] = 2
                case.body.pop("max_completion_tokens", None)
        response = case.call()
        sent.append(response.status_code)
        assert response.status_code < 500, (response.status_code, response.text, case.body)

    send()


@pytest.mark.slow
def test_no_request_that_the_openapi_page_allows_or_forbids_makes_a_route_fail(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    sent: dict[str, list[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        statuses = sent.setdefault(operation.label, [])
        send_all(operation, schemathesis.GenerationMode.POSITIVE, statuses)
        if operation.body:  # nothing wrong can be sent to a route that takes nothing
            send_all(operation, schemathesis.GenerationMode.NEGATIVE, statuses)
    for label, statuses in sent.items():
        print(f"{label}: {len(statuses)} requests, {statuses.count(200)} answered with 200")
    assert 200 in sent["POST /v1/chat/completions"]
    assert 400 in sent["POST /v1/chat/completions"]
    server.wait_until_idle()
