"""What a server refuses, in OpenAI's error shape, by the field's name, with the right status, and never with a 5xx."""

import json

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qvl
from qvl.serve.problems import validation_problem
from qvl.serve.schema import ChatRequest
from serve_live import asking, data_url, live, picture, png


@pytest.fixture(scope="module")
def server(tiny_checkpoint):
    model = qvl.load(tiny_checkpoint, max_num_seqs=2, max_model_len=512)
    with live(model, max_body_bytes=1 << 20) as running:
        yield running


def refused(
    answer: httpx.Response, status: int, param: str | None, words: str, code: str | None = None
) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert words in error["message"], error
    if code is not None:
        assert error["code"] == code


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("audio", {"voice": "a"}),
        ("modalities", ["audio"]),
        ("best_of", 3),
        ("bad_words", ["x"]),
        ("echo", True),
        ("chat_template", "{{ messages }}"),
        ("guided_json", {"type": "object"}),
        ("temprature", 0.5),
        ("beam_width", 4),
    ],
)
def test_a_field_without_support_is_refused_by_name(server, field, value):
    refused(server.chat(**{field: value}), 400, field, field)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"temperature": 9}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": -1}, "top_p", "greater than or equal to 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 1.5}, "n", "integer"),
        ({"n": True}, "n", "integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None, "max_tokens 3 and max_completion_tokens 4"),
        ({"top_logprobs": 3}, None, "needs logprobs true"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "20"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": ""}, "stop", "1 to 1024"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]", "robot"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        (
            {"messages": asking("x", {"type": "input_audio", "input_audio": {}})},
            "messages[0].content[0]",
            "input_audio",
        ),
        ({"messages": asking("x", {"type": "image_url"})}, "messages[0].content[0].image_url", "required"),
        (
            {"messages": asking("x", picture(detial="low"))},
            "messages[0].content[0].detial",
            "not supported",
        ),
        (
            {"messages": asking("x", {"type": "image_url", "image_url": {"url": "x", "detail": "most"}})},
            "messages[0].content[0].image_url.detail",
            "messages[0].content[0].image_url.detail: Input should be 'auto', 'low'",
        ),
        (
            {"messages": asking("x", {"type": "text"})},
            "messages[0].content[0].text",
            "messages[0].content[0]",
        ),
        ({"logit_bias": {"x": 1.0}}, "logit_bias", "'x' is not a token id"),
        ({"logit_bias": {"5": 101.0}}, "logit_bias", "from -100 to 100"),
        ({"structured_outputs": {}}, "structured_outputs", "give one of"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "can't be kept to"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs", "is not JSON"),
        ({"continue_final_message": True}, "messages", "only an assistant's can be continued"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema goes with"),
        ({"tool_choice": "required"}, None, "tool_choice needs tools"),
        ({"mm_processor_kwargs": {"crop": 1}}, "mm_processor_kwargs.crop", "not supported"),
    ],
    ids=lambda v: str(v)[:50],
)
def test_a_wrong_value_is_named_with_its_place(server, body, param, words):
    refused(server.chat(**body), 400, param, words)


def test_an_error_speaks_of_the_branch_that_was_meant(server):
    answer = server.chat(messages=asking("x", {"type": "input_audio", "input_audio": {}}))
    assert "content.str" not in answer.text
    assert "(text)" not in answer.text
    assert answer.json()["error"]["message"].startswith("messages[0].content[0]: 'input_audio'")


def test_the_openai_package_raises_its_own_errors(server):
    client = server.openai()
    with pytest.raises(openai.BadRequestError, match="use_beam_search: is not supported") as caught:
        client.chat.completions.create(model="tiny", messages=asking(), extra_body={"use_beam_search": True})
    assert caught.value.param == "use_beam_search"
    assert caught.value.code == "unsupported_parameter"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", messages=asking())
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        client.embeddings.create(model="tiny", input="x")


def test_an_unknown_model_and_route_are_404_and_a_wrong_method_is_405(server):
    refused(server.chat(model="gpt-4o"), 404, "model", "this server has tiny", "model_not_found")
    refused(server.get("/v1/nothing"), 404, None, "known: ")
    refused(server.get("/v1/chat/completions"), 405, None, "Method Not Allowed")


def test_a_prompt_that_cannot_fit_is_refused_with_the_numbers(server):
    refused(server.chat("x" * 2000), 400, "messages", "512 fit", "context_length_exceeded")
    refused(server.chat(max_tokens=5000), 400, "messages", "512 fit", "context_length_exceeded")
    # whatever it would be cut into, so that no time is spent on it
    refused(server.chat("x" * 500_000), 400, "messages", "at least", "context_length_exceeded")


def test_pictures_that_cannot_fit_are_refused_before_they_are_unpacked(server):
    from io import BytesIO

    from PIL import Image

    out = BytesIO()
    Image.new("L", (4000, 4000)).save(out, "PNG")
    url = data_url(out.getvalue())
    answer = server.chat(messages=asking("x", picture(url)))
    refused(answer, 400, "messages", "512 fit", "context_length_exceeded")
    assert "tokens" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64,AAAA", "is not an image"),
        ("data:image/png;base64,%%%", "base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png", "no comma"),
        (data_url(png()[:200]), "truncated or damaged"),
        ("picture.png", "data: URL"),
        ("/etc/hostname", "data: URL"),
        ("file:///etc/hostname", "--allow-media-path"),
        ("http://127.0.0.1:1/x.png", "--allow-media-host"),
        ("ftp://example.org/x.png", "data: URL"),
        ("javascript:alert(1)", "data: URL"),
    ],
)
def test_a_picture_that_cannot_be_read_is_told_why(server, url, words):
    answer = server.chat(messages=asking("x", picture(url)))
    refused(answer, 400, "messages", words, "invalid_media")


def test_too_many_media_are_refused_with_both_numbers(server):
    answer = server.chat(messages=asking("x", *[picture("data:,x")] * 65))
    refused(answer, 400, "messages", "65 images and videos")


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (b"{", {}, 400, "JSON"),
        (b"", {}, 400, "required"),
        (b"[1,2]", {}, 400, ""),
        (b'"x"', {}, 400, ""),
        (b"\xff\xfe", {}, 400, "JSON"),
        (b"[" * 100_000, {}, 400, ""),
        (b'{"n":' + b"9" * 5000 + b"}", {}, 400, ""),
        (b"{}", {"Content-Type": "text/plain"}, 415, "application/json"),
        (b"{}", {"Content-Type": "multipart/form-data"}, 415, "application/json"),
        (b"x" * (2 << 20), {}, 413, "1.0 MiB"),
    ],
    ids=lambda v: repr(v)[:24],
)
def test_a_body_that_is_no_request_is_refused(server, content, headers, status, words):
    answer = server.client.post(
        server.url + "/v1/chat/completions",
        content=content,
        headers={"Content-Type": "application/json"} | headers,
    )
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


def test_an_oversize_body_without_a_length_is_stopped_on_the_way(server):
    sent = 0

    def pieces():
        nonlocal sent
        for _ in range(4096):
            sent += 1
            yield b"x" * 65536

    try:
        answer = server.client.post(
            server.url + "/v1/chat/completions",
            content=pieces(),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 413
    except httpx.HTTPError:  # the connection was closed while we still wrote, which is as good
        pass
    assert sent < 1000


def test_half_a_surrogate_pair_anywhere_is_a_400_or_an_answer(server):
    for body in (
        '{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 2}',
        '{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}',
        '{"model": "tiny", "\\ud800": 1, "messages": [{"role": "user", "content": "x"}]}',
        '{"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url", '
        '"image_url": {"url": "\\udfff"}}]}]}',
    ):
        answer = server.client.post(
            server.url + "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (200, 400, 404), answer.text


def test_a_refused_request_leaves_nothing_behind(server):
    for _ in range(3):
        server.chat(max_tokens=5000)
        server.chat(messages=asking("x", picture("data:image/png;base64,AAAA")))
    server.wait_until_idle()


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = [field.alias or name for name, field in ChatRequest.model_fields.items() if name != "model"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(body=st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=4))
def test_no_json_makes_the_server_fail(server, body):
    whole = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1} | body
    answer = server.post(**json.loads(json.dumps(whole)))
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200 and "error" in answer.text[:10]:
        assert answer.json()["error"]["message"]


def test_many_faults_are_told_in_few_lines():
    errors = [{"loc": ("body", f"f{i}"), "type": "extra_forbidden", "msg": ""} for i in range(9)]
    problem = validation_problem(errors)
    assert str(problem).endswith("and 5 more")
    assert problem.param == "f0"
    assert problem.code == "unsupported_parameter"


# the key


@pytest.fixture(scope="module")
def locked(tiny_checkpoint):
    with live(qvl.load(tiny_checkpoint, max_num_seqs=2), api_key="s3cret") as running:
        yield running


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer", "Basic s3cret", "s3cret", "Bearer s3cretx", "Bearer ü"]
)
def test_without_the_key_nothing_is_answered(locked, header):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for path in ("/v1/models", "/openapi.json", "/tokenize"):
        answer = locked.client.get(locked.url + path, headers=headers)
        refused(answer, 401, None, "API key", "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_with_the_key_the_package_works_and_health_needs_none(locked):
    assert locked.openai(api_key="s3cret").models.list().data[0].id == "tiny"
    with pytest.raises(openai.AuthenticationError):
        locked.openai(api_key="other").models.list()
    for path in ("/health", "/ready", "/metrics"):
        assert locked.get(path).status_code == 200


def test_refusals_are_counted_by_status(locked):
    before = locked.metric("qvl:requests_refused_total")
    locked.get("/v1/models")
    assert locked.metric("qvl:requests_refused_total") == before + 1
