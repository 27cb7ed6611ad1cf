"""Chat completions as the openai package sees them: whole, streamed, with pictures, and every field doing its work."""

import asyncio
import json

import httpx
import openai
import pytest

import qvl
from serve_live import asking, data_url, live, picture, png


@pytest.fixture(scope="module")
def server(tiny_checkpoint):
    with live(qvl.load(tiny_checkpoint, max_num_seqs=4)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server.openai()


def create(client, words="What?", *items, **settings):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": asking(words, *items), "max_tokens": 8} | settings
    )


def test_the_answer_equals_the_engines_own(server, client):
    answer = create(client, "What is it?", picture(), max_tokens=16)
    own = server.service.model.processor
    assert own.tokenizer is not None
    alone = qvl.load(server.service.model.name).ask([png()], "What is it?", max_new_tokens=16)
    (choice,) = answer.choices
    assert choice.message.content == alone.text
    assert choice.finish_reason == alone.finish_reason
    assert answer.usage.prompt_tokens == alone.prompt_tokens
    assert answer.usage.completion_tokens == alone.completion_tokens
    assert answer.usage.prompt_tokens_details.image_tokens == 12
    assert answer.model == "tiny"
    assert answer.id.startswith("chatcmpl-")


def test_a_stream_gives_the_whole_answer_in_pieces_and_its_usage_last(client):
    whole = create(client, "What?", picture(), max_tokens=16)
    chunks = list(
        create(client, "What?", picture(), max_tokens=16, stream=True, stream_options={"include_usage": True})
    )
    *said, last = chunks
    assert said[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in said) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in said if c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert all(c.usage is None for c in said)
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1


def test_a_stream_without_the_option_has_no_usage(client):
    chunks = list(create(client, stream=True))
    assert all(c.choices and c.usage is None for c in chunks)


def test_a_stream_is_server_sent_events_that_end_with_done(server):
    answer = server.chat(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])


def test_the_async_client_works_alike(server):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            whole = await client.chat.completions.create(
                model="tiny", messages=asking("What?", picture()), max_tokens=8
            )
            stream = await client.chat.completions.create(
                model="tiny", messages=asking("What?", picture()), max_tokens=8, stream=True
            )
            return whole.choices[0].message.content, "".join(
                [c.choices[0].delta.content or "" async for c in stream]
            )

    whole, streamed = asyncio.run(run())
    assert whole == streamed
    assert whole


def test_n_answers_are_n_different_draws_and_the_prompt_counts_once(client):
    one = create(client, temperature=1.5, seed=5)
    three = create(client, temperature=1.5, seed=5, n=3)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert texts[0] == one.choices[0].message.content
    assert len(set(texts)) == 3
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens > one.usage.completion_tokens


def test_n_streams_are_told_apart_by_their_index(client):
    chunks = list(create(client, temperature=1.5, seed=5, n=2, stream=True))
    whole = create(client, temperature=1.5, seed=5, n=2)
    for choice in whole.choices:
        pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == choice.index]
        assert "".join(pieces) == choice.message.content


def test_a_seed_repeats_the_answer_and_another_changes_it(client):
    def text(seed):
        return create(client, temperature=1.5, seed=seed, max_tokens=16).choices[0].message.content

    assert text(7) == text(7)
    assert text(7) != text(8)


def test_logprobs_cover_the_answers_bytes_and_are_sorted(client):
    (choice,) = create(client, logprobs=True, top_logprobs=3, extra_body={"ignore_eos": True}).choices
    entries = choice.logprobs.content
    raw = b"".join(bytes(entry.bytes) for entry in entries)
    assert raw.decode("utf-8", "replace") == choice.message.content
    for entry in entries:
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert entry.logprob <= 0


def test_logprobs_of_a_stream_are_those_of_the_whole(client):
    whole = create(client, logprobs=True)
    chunks = list(create(client, logprobs=True, stream=True))
    streamed = [e.token for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content or []]
    assert streamed == [e.token for e in whole.choices[0].logprobs.content]


def test_a_stop_string_ends_the_answer_before_it(client):
    whole = create(client, max_tokens=24, extra_body={"ignore_eos": True}).choices[0].message.content
    stop = whole[5:7]
    cut = create(client, max_tokens=24, stop=[stop], extra_body={"ignore_eos": True}).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 3},
        {"max_tokens": None, "max_completion_tokens": 3},
        {"temperature": 1.9, "seed": 1},
        {"temperature": 1.9, "seed": 1, "top_p": 0.2},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"extra_body": {"repetition_penalty": 3.0}},
        {"extra_body": {"top_k": 2}, "temperature": 1.9, "seed": 1},
        {"extra_body": {"min_p": 0.9}, "temperature": 1.9, "seed": 1},
        {"extra_body": {"ignore_eos": True, "stop_token_ids": list(range(32, 96))}},
    ],
    ids=lambda s: " ".join(s),
)
def test_every_sampling_field_changes_the_answer(client, settings):
    base = {"max_tokens": 32, "extra_body": {"ignore_eos": True}}
    drawn = base | {"temperature": 1.9, "seed": 1} if len(settings) > 2 else base
    plain = create(client, "Say it", **drawn).choices[0].message.content
    body = {"ignore_eos": True} | settings.get("extra_body", {})
    other = create(client, "Say it", **base | settings | {"extra_body": body}).choices[0].message.content
    assert other != plain


def test_limits_of_the_picture_change_its_tokens(client):
    def tokens(item, **body):
        answer = create(client, "What?", item, max_tokens=1, extra_body=body)
        return answer.usage.prompt_tokens_details.image_tokens

    big = data_url(png(1120, 1120))
    assert tokens(picture(big)) == 1600
    assert tokens(picture(big, max_pixels=56 * 56)) == 4
    assert tokens(picture(big), mm_processor_kwargs={"max_pixels": 56 * 56}) == 4
    low = {"type": "image_url", "image_url": {"url": big, "detail": "low"}}
    assert 256 < tokens(low) <= 512 * 512 // 28**2


def test_a_video_is_seen(client):
    import io

    from PIL import Image

    out = io.BytesIO()
    frames = [Image.new("RGB", (56, 56), (i * 40, 0, 0)) for i in range(4)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=500)
    video = {"type": "video_url", "video_url": {"url": data_url(out.getvalue(), "image/gif")}}
    answer = create(client, "What happens?", video)
    assert answer.usage.prompt_tokens_details.image_tokens > 0
    fewer = create(client, "What happens?", {**video, "max_pixels": 128 * 28 * 28, "num_frames": 4})
    assert fewer.usage.prompt_tokens_details.image_tokens <= answer.usage.prompt_tokens_details.image_tokens


def test_a_conversation_may_be_sent_back_as_it_came(client):
    first = create(client, "One", picture())
    messages = [
        {"role": "developer", "content": "Be brief."},
        *asking("One", picture()),
        first.choices[0].message.model_dump(),
        {"role": "user", "content": "Two"},
    ]
    second = create(client, messages=messages)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_a_picture_asked_about_twice_is_encoded_once(server, client):
    url = data_url(png(seed=77))
    before = server.metric("qvl:encoded_visuals_total")
    create(client, "First?", picture(url))
    create(client, "Another question about it?", picture(url))
    assert server.metric("qvl:encoded_visuals_total") == before + 1


def test_models_are_listed_and_described(client):
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert client.models.retrieve("tiny").max_model_len == 32768
    with pytest.raises(openai.NotFoundError, match="this server has tiny"):
        client.models.retrieve("gpt/4o")


def test_tokenize_counts_what_the_engine_counts(server, client):
    counted = server.post("/tokenize", messages=asking("What?", picture()), return_token_strs=True).json()
    assert counted["count"] == len(counted["tokens"]) == len(counted["token_strs"])
    assert counted["count"] == create(client, "What?", picture()).usage.prompt_tokens
    plain = server.post("/tokenize", model="tiny", prompt="<|im_end|>").json()
    assert plain["count"] > 1  # words, never the special token


def test_harmless_fields_and_nulls_are_taken(server):
    answer = server.chat(
        user="me", store=False, service_tier="auto", logit_bias={}, parallel_tool_calls=True, functions=None,
        reasoning_effort=None, tools=None, stop=None, response_format={"type": "text"},
    )  # fmt: skip
    assert answer.status_code == 200


def test_metrics_count_what_happened(server, client):
    before = {name: server.metric(name) for name in _COUNTED}
    create(client, max_tokens=4, extra_body={"ignore_eos": True})
    after = {name: server.metric(name) - before[name] for name in _COUNTED}
    assert after["vllm:generation_tokens_total"] == 4
    assert after["vllm:request_success_total"] == 1
    assert after["vllm:time_to_first_token_seconds_count"] == 1
    assert after["vllm:inter_token_latency_seconds_count"] == 3
    assert after["vllm:prompt_tokens_total"] > 10
    assert after["vllm:request_prefill_time_seconds_count"] == 1
    parts = [f"vllm:request_{part}_time_seconds_sum" for part in ("queue", "prefill", "decode")]
    assert 0 < sum(after[part] for part in parts) <= after["vllm:e2e_request_latency_seconds_sum"]


_COUNTED = (
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_count",
    "vllm:prompt_tokens_total",
    "vllm:request_prefill_time_seconds_count",
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_decode_time_seconds_sum",
    "vllm:e2e_request_latency_seconds_sum",
)

# The names that vLLM 0.32 gives these, https://docs.vllm.ai/en/v0.32.0/usage/metrics/
VLLM_NAMES = frozenset(
    """num_requests_running num_requests_waiting kv_cache_usage_perc prompt_tokens_total generation_tokens_total
    prefix_cache_queries_total prefix_cache_hits_total num_preemptions_total request_success_total
    time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds request_queue_time_seconds
    request_prefill_time_seconds request_decode_time_seconds""".split()
)


def test_every_metric_under_vllms_prefix_is_one_of_vllms(server):
    typed = {
        line.split()[2] for line in server.get("/metrics").text.splitlines() if line.startswith("# TYPE")
    }
    assert {name.removeprefix("vllm:") for name in typed if name.startswith("vllm:")} == VLLM_NAMES
    assert all(name.startswith(("vllm:", "qvl:")) for name in typed)


def test_every_metric_has_help_and_type_and_parses(server):
    lines = server.get("/metrics").text.splitlines()
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    helped = {line.split()[2] for line in lines if line.startswith("# HELP")}
    assert typed == helped
    for line in lines:
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            float(value)
            base = name.partition("{")[0]
            assert {base, base.rsplit("_", 1)[0]} & typed, line


def test_health_and_ready_answer(server):
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ready").json() == {"status": "ready"}


def test_openapi_describes_the_routes(server):
    paths = server.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/models", "/health", "/ready", "/metrics", "/tokenize"} <= set(paths)


def test_the_body_may_come_without_a_length(server):
    body = json.dumps({"model": "tiny", "messages": asking(), "max_tokens": 2}).encode()
    answer = httpx.post(
        server.url + "/v1/chat/completions",
        content=iter([body[:10], body[10:]]),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 200
