"""Versions, pings, labels, browsers and logs; and no path of the server leaves it."""

import logging
import time
from pathlib import Path

import pytest

import qvl
from serve_live import asking, live, picture


@pytest.fixture(scope="module")
def server(tiny_checkpoint):
    model = qvl.load(tiny_checkpoint, max_num_seqs=2, max_model_len=512)
    with live(model, cors_origins=("https://example.org",), api_key="key") as running:
        running.client.headers["Authorization"] = "Bearer key"
        yield running


def test_version_and_ping_are_answered(server):
    assert server.get("/version").json() == {"version": qvl.__version__}
    assert server.get("/ping").status_code == 200
    assert server.client.post(server.url + "/ping", json={}).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/ping", "/version"])
def test_head_is_get_without_a_body(server, path):
    answer = server.client.head(server.url + path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_head_of_what_has_no_get_is_refused(server):
    assert server.client.head(server.url + "/v1/chat/completions").status_code == 405


def test_detokenize_undoes_tokenize(server):
    text = "Größe <|im_end|> 3"
    tokens = server.post("/tokenize", prompt=text).json()["tokens"]
    assert server.post("/detokenize", tokens=tokens).json() == {"prompt": text}
    assert server.post("/detokenize", model="tiny", tokens=[]).json() == {"prompt": ""}
    answer = server.post("/detokenize", tokens=[10**6])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tokens")


def test_a_request_id_is_echoed_or_made(server):
    made = [server.get("/health").headers["x-request-id"] for _ in range(2)]
    assert len(made[0]) == 32
    assert made[0] != made[1]

    def echoed(path, sent):
        return server.client.get(server.url + path, headers={"X-Request-Id": sent}).headers["x-request-id"]

    assert echoed("/health", "abc-1") == "abc-1"
    assert echoed("/v1/nothing", "abc-2") == "abc-2"
    assert len(echoed("/health", "a b\tc")) == 32
    assert server.chat(temperature=9).headers["x-request-id"]
    assert server.chat(stream=True).headers["x-request-id"]
    refused = server.client.get(server.url + "/v1/models", headers={"Authorization": "no"})
    assert (refused.status_code, len(refused.headers["x-request-id"])) == (401, 32)


def test_the_access_log_has_a_line_for_each_request(server, caplog):
    caplog.set_level(logging.INFO, "qvl.serve.access")
    server.client.get(server.url + "/health", headers={"X-Request-Id": "r1"})
    server.client.get(server.url + "/v1/n%0Aothing", headers={"X-Request-Id": "r2"})
    server.client.post(server.url + "/v1/chat/completions", json={}, headers={"X-Request-Id": "r3"})

    def line(request_id):
        for _ in range(1000):  # a line comes after its answer
            for record in caplog.records:
                if record.name == "qvl.serve.access" and record.getMessage().endswith(f"s {request_id}"):
                    return record.getMessage()
            time.sleep(0.01)
        raise AssertionError(request_id)

    assert line("r1").startswith("127.0.0.1 GET /health 200 ")
    assert line("r2").startswith(r"127.0.0.1 GET /v1/n\nothing 404 ")
    assert line("r3").startswith("127.0.0.1 POST /v1/chat/completions 400 ")


def test_a_browser_may_ask_from_the_origins_that_are_named(server):
    asks = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "authorization,content-type"
    may = server.client.options(server.url + "/v1/chat/completions", headers=asks)
    assert (may.status_code, may.headers["access-control-allow-origin"]) == (200, "https://example.org")
    other = server.client.options(
        server.url + "/v1/chat/completions", headers=asks | {"Origin": "https://evil.org"}
    )
    assert other.status_code == 400
    answer = server.client.get(server.url + "/v1/models", headers={"Origin": "https://example.org"})
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    refused = server.client.get(
        server.url + "/v1/models", headers={"Origin": "https://example.org", "Authorization": "no"}
    )
    assert refused.headers["access-control-allow-origin"] == "https://example.org"


def test_no_path_of_the_server_leaves_it(server, tiny_checkpoint, monkeypatch):
    processor = server.service.processor
    folder = str(tiny_checkpoint)
    private = [folder, str(Path(qvl.__file__).parent), str(Path.home()) + "/"]
    answers = [
        server.chat(chat_template_kwargs={"enable_thinking": True}),
        server.chat(messages=asking("x", picture("data:image/png;base64,AAAA"))),
        server.chat(messages=asking("x", picture("file:///etc/hostname"))),
        server.chat(
            messages=[{"role": "tool", "tool_call_id": "1", "content": "x"}], add_generation_prompt=False
        ),
        server.get("/v1/models"),
        server.get("/openapi.json"),
    ]

    def refuse(*_, **__):
        raise qvl.errors.PromptError(f"{folder}/chat_template.json: fails; {qvl.__file__}; see {folder}")

    monkeypatch.setattr(type(processor.template), "render", refuse)
    failed = server.chat()
    assert failed.json()["error"]["message"] == "chat_template.json: fails; __init__.py; see "
    for answer in [*answers, failed]:
        assert not [path for path in private if path in answer.text], answer.text
