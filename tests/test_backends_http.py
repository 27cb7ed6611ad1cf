"""Asking a served model, against a real server that answers rightly, wrongly, late or not at all."""

import base64
import threading
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from openai_server import delta, hangs_up, openai_server, refuses, reply, says, streams, usage
from qvl.backends.endpoint import base_url, find_family, is_model_studio, model_studio_limits
from qvl.backends.http import connect
from qvl.backends.wire import data_lines
from qvl.errors import BackendError, MediaError, PromptError

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def shared():
    with openai_server() as running:
        yield running


@pytest.fixture
def server(shared, monkeypatch):
    for name in ("OPENAI_API_KEY", "DASHSCOPE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    shared.seen.clear()
    shared.hung_up.clear()
    shared.most_at_once = 0
    shared.play(says("hello"))
    return shared


def open_model(server, name=MODEL, **options):
    """A model whose waits are noted, not waited for."""
    model = connect(server.url, name, **options)
    model.waits = []
    model.wire.sleep = model.waits.append
    model.wire.draw = lambda: 1.0
    return model


def picture(height=84, width=112, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def sent_picture(server, index=0) -> tuple[str, Image.Image]:
    url = server.seen[-1].body["messages"][-1]["content"][index]["image_url"]["url"]
    head, _, data = url.partition(",")
    return head, Image.open(BytesIO(base64.b64decode(data)))


# ------------------------------------------------------------------------------------------- one question


def test_an_answer_has_text_reason_counts_and_the_size_the_model_saw(server):
    server.play(says("a cat", "length", usage(40, 3, cached_tokens=16)))
    answer = open_model(server).ask([picture(100, 150)], "What is it?", max_new_tokens=3)
    assert (answer.text, answer.finish_reason) == ("a cat", "length")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (40, 3, 16)
    assert [tuple(size.seen) for size in answer.media] == [(112, 140)]
    assert answer.visual_tokens == 4 * 5
    assert tuple(answer.media[0].original) == (100, 150)
    assert answer.notes == ()
    assert answer.seconds["total"] > 0


def test_the_request_is_what_the_api_asks_for(server):
    open_model(server).ask(
        [picture()],
        "What?",
        system="Be brief.",
        max_new_tokens=7,
        temperature=0,
        stop=("x",),
        seed=3,
        top_k=1,
    )
    request = server.seen[0]
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    body = request.body
    assert body["model"] == MODEL
    assert {k: body[k] for k in ("max_tokens", "temperature", "stop", "seed", "top_k")} == {
        "max_tokens": 7,
        "temperature": 0,
        "stop": ["x"],
        "seed": 3,
        "top_k": 1,
    }
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in body["messages"][1]["content"]] == ["image_url", "text"]
    assert "stream" not in body
    assert "max_new_tokens" not in body


def test_a_conversation_keeps_its_roles_order_and_tool_calls(server):
    call = {"type": "function", "function": {"name": "zoom", "arguments": {"x": 1}}}
    open_model(server).chat(
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "first"}, {"type": "image", "image": picture()}],
            },
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "done"},
            {"role": "user", "content": "and now?"},
        ]
    )
    sent = server.seen[0].body["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "user"]
    assert [part["type"] for part in sent[0]["content"]] == ["text", "image_url"]
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == '{"x": 1}'  # the API wants text
    assert sent[2]["tool_call_id"] == sent[1]["tool_calls"][0]["id"]  # and ids, which ours may lack


def test_an_unknown_setting_is_named_and_nothing_is_sent(server):
    with pytest.raises(PromptError, match=r"temprature.*temperature"):
        open_model(server).ask([], "What?", temprature=1)
    with pytest.raises(PromptError, match="extra_body can't set messages"):
        open_model(server).ask([], "What?", extra_body={"messages": []})
    with pytest.raises(MediaError, match="no such file"):
        open_model(server).ask(["nowhere.png"], "What?")
    assert server.seen == []


def test_extra_body_reaches_the_server_as_it_is(server):
    open_model(server).ask([], "What?", extra_body={"mm_processor_kwargs": {"max_pixels": 3136}})
    assert server.seen[0].body["mm_processor_kwargs"] == {"max_pixels": 3136}


def test_tool_calls_that_the_server_took_out_are_put_back_into_the_text(server):
    call = {
        "function": {"name": "computer_use", "arguments": '{"action": "left_click", "coordinate": [3, 4]}'}
    }
    server.play(says(None, "tool_calls", tool_calls=[call]))
    text = open_model(server).ask([], "Click").text
    assert text.startswith("<tool_call>")
    assert '"coordinate": [3, 4]' in text


# ------------------------------------------------------------------------------------------------ pictures


def test_a_plain_file_is_sent_byte_for_byte(server, tmp_path):
    path = tmp_path / "a.jpg"
    picture().save(path, quality=80)
    open_model(server).ask([path], "What?")
    url = server.seen[0].body["messages"][0]["content"][0]["image_url"]["url"]
    assert url == "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()


def test_a_turned_or_transparent_file_is_sent_upright_on_white(server, tmp_path):
    turned, clear = tmp_path / "turned.jpg", tmp_path / "clear.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(60, 90).save(turned, exif=exif)
    Image.new("RGBA", (40, 30), (255, 0, 0, 0)).save(clear)
    model = open_model(server)
    answer = model.ask([turned, clear], "What?")
    head, first = sent_picture(server)
    assert (head, first.size, tuple(answer.media[0].original)) == (
        "data:image/png;base64",
        (60, 90),
        (90, 60),
    )
    assert sent_picture(server, 1)[1].convert("RGB").getpixel((5, 5)) == (255, 255, 255)


def test_max_pixels_scales_the_picture_before_it_is_sent(server):
    answer = open_model(server).ask([picture(280, 280)], "What?", max_pixels=112 * 112)
    assert tuple(answer.media[0].seen) == (112, 112)
    assert sent_picture(server)[1].size == (112, 112)
    assert "max_pixels" not in server.seen[0].body


def test_a_picture_item_may_carry_its_own_limits(server):
    item = {"type": "image", "image": picture(280, 280), "max_pixels": 56 * 56}
    answer = open_model(server).ask([item, picture(280, 280)], "What?")
    assert [tuple(size.seen) for size in answer.media] == [(56, 56), (280, 280)]


def test_a_server_that_shrinks_pictures_is_noticed(server):
    model = open_model(server)
    server.play(says("x", counts=usage(60)))
    assert "60 prompt tokens" in model.ask([picture(280, 280)], "What?").notes[0]
    server.play(says("x", counts=usage(200, image_tokens=64)))
    assert "64 visual tokens, 100 fit" in model.ask([picture(280, 280)], "What?").notes[0]
    for honest in (usage(200, image_tokens=100), usage(200, image_tokens=102), usage(120)):
        server.play(says("x", counts=honest))
        assert model.ask([picture(280, 280)], "What?").notes == ()
    server.play(says("x", counts={}))
    assert "returns no token counts" in model.ask([picture()], "What?").notes[0]


def test_without_a_family_pictures_are_sent_and_no_size_is_claimed(server):
    model = open_model(server, "some-finetune")
    assert model.family is None
    assert model.ask([picture()], "What?").media == ()
    with pytest.raises(PromptError, match="family isn't known"):
        model.ask([picture()], "What?", max_pixels=3136)
    assert open_model(server, "some-finetune", family="qwen3_vl").family == "qwen3_vl"


def test_frames_are_sent_as_a_clip_that_reads_back_at_their_rate(server):
    from qvl.geometry import default_video_limits
    from qvl.inputs.video import load_video

    frames = np.zeros((6, 56, 84, 3), np.uint8)
    frames[3:] = 200
    item = {"type": "video", "video": frames, "sample_fps": 2.0}
    answer = open_model(server).ask([item], "When?")
    url = server.seen[0].body["messages"][0]["content"][0]["video_url"]["url"]
    clip = load_video(url, default_video_limits())
    assert url.startswith("data:video/mp4;base64,")
    assert clip.seconds == pytest.approx(3.0, abs=0.01)
    assert [int(frame.mean() > 100) for frame in clip.frames] == [0, 0, 0, 1, 1, 1]
    assert answer.media[0].kind == "video"
    assert answer.media[0].visual_tokens == 3 * (clip.seen.height // 28) * (clip.seen.width // 28)
    with pytest.raises(PromptError, match="fps 4"):
        open_model(server).ask([item], "When?", fps=4)


# ------------------------------------------------------------------------------------------------- streams


def test_a_stream_gives_the_pieces_and_then_the_same_answer(server):
    end = {"choices": [], "usage": usage(30, 4)}
    server.play(streams(delta("", role="assistant"), delta("two "), delta("words"), delta(None, "stop"), end))
    stream = open_model(server).stream([picture()], "What?")
    assert tuple(stream.media[0].seen) == (84, 112)  # known before the first piece
    assert list(stream) == ["two ", "words"]
    answer = stream.answer
    assert (answer.text, answer.finish_reason, answer.prompt_tokens) == ("two words", "stop", 30)
    assert server.seen[0].body["stream"] is True
    assert server.seen[0].body["stream_options"] == {"include_usage": True}


def test_line_separators_inside_a_text_do_not_break_the_stream(server):
    text = "a\u2028b\x85c\x0bd 한글 中文"
    for newline in ("\n", "\r\n", "\r"):
        server.play(streams(delta(text), delta(None, "stop"), newline=newline))
        assert open_model(server).stream([], "?").finish().text == text


def test_events_are_the_same_however_the_network_cuts_them():
    data = 'data: {"a":\r\ndata: "한"}\r\n\r\ndata:b\r\n\r\ndata: c'.encode()
    for size in (1, 2, 3, 7, len(data)):
        chunks = [data[i : i + size] for i in range(0, len(data), size)]
        assert list(data_lines(chunks)) == ['{"a":\n"한"}', "b", "c"], size


def test_comments_between_events_are_passed_over(server):
    def turn(handler, seen):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b': keep-alive\n\nevent: x\ndata: {"choices": [{"delta": {"content": "a"}, ')
        handler.wfile.write(b'"finish_reason": "stop"}]}\n\n')

    server.play(turn)
    assert open_model(server).stream([], "?").finish().text == "a"


def test_a_stream_that_breaks_off_is_an_error_and_is_not_asked_again(server):
    model = open_model(server)
    for turn in (
        streams(delta("half an "), cut=True),
        streams(delta("half an "), done=False),
        streams(delta("half an ")),  # done, yet no reason
    ):
        server.seen.clear()
        server.play(turn)
        stream = model.stream([], "?")
        assert next(stream) == "half an "
        with pytest.raises(BackendError, match="broke off after 8 characters"):
            list(stream)
        assert len(server.seen) == 1
    assert model.waits == []


def test_an_error_event_inside_a_stream_is_raised_with_its_message(server):
    server.play(streams(delta("so "), {"error": {"message": "engine died", "code": 500}}))
    with pytest.raises(BackendError, match="engine died"):
        open_model(server).stream([], "?").finish()


def test_a_stream_is_tried_again_before_its_first_piece_only(server):
    server.play(refuses(503, "loading"), streams(delta("ok"), delta(None, "stop")))
    assert open_model(server).stream([], "?").finish().text == "ok"
    assert len(server.seen) == 2


def test_closing_a_stream_hangs_up_and_frees_its_slot(server):
    def endless(handler, seen):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(2000):
            handler.wfile.write(b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n')
            handler.wfile.flush()
            time.sleep(0.002)

    server.play(endless, says("after"))
    model = open_model(server, max_concurrency=1)
    stream = model.stream([], "?")
    next(stream)
    stream.close()
    assert server.hung_up.wait(5)
    assert list(stream) == []
    assert stream.answer is None
    with pytest.raises(PromptError, match="closed before its end"):
        stream.finish()
    assert model.ask([], "?").text == "after"


def test_a_server_that_cannot_stream_still_answers(server):
    server.play(says("whole"))
    assert open_model(server).stream([], "?").finish().text == "whole"


def test_streamed_tool_calls_are_put_together(server):
    def part(**function):
        return delta(tool_calls=[{"index": 0, "function": function}])

    server.play(
        streams(
            part(name="zoom", arguments=""),
            part(arguments='{"x"'),
            part(arguments=": 1}"),
            delta(None, "stop"),
        )
    )
    assert open_model(server).stream([], "?").finish().text == (
        '<tool_call>\n{"name": "zoom", "arguments": {"x": 1}}\n</tool_call>'
    )


# ------------------------------------------------------------------------------------------ faults and waits


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_passing_fault_is_tried_again_with_growing_waits(server, status):
    server.play(refuses(status, "busy"), refuses(status, "busy"), says("at last"))
    model = open_model(server)
    assert model.ask([], "?").text == "at last"
    assert model.waits == [0.5, 1.0]


def test_a_fault_of_the_servers_own_is_tried_once_more(server):
    server.play(refuses(500, "boom"))
    with pytest.raises(BackendError, match=r"answered 500: boom \(tried 2 times\)"):
        open_model(server).ask([], "?")
    assert len(server.seen) == 2
    server.play(refuses(500, "boom"), says("ok"))
    assert open_model(server).ask([], "?").text == "ok"


def test_waits_are_spread_by_chance(server):
    server.play(refuses(429, "busy"), says("ok"))
    model = open_model(server)
    model.wire.draw = lambda: 0.0
    model.ask([], "?")
    assert model.waits == [0.25]


def test_retry_after_is_kept_and_a_long_one_is_not_waited_for(server):
    server.play(refuses(429, "slow down", Retry_After="7"), says("ok"))
    model = open_model(server)
    assert model.ask([], "?").text == "ok"
    assert model.waits == [7.0]
    server.play(refuses(429, "slow down", Retry_After="3600"))
    with pytest.raises(BackendError, match=r"slow down.*wait 3600 s"):
        model.ask([], "?")
    assert model.waits == [7.0]


def test_tries_end_and_the_error_says_how_many(server):
    server.play(refuses(503, "still loading"))
    model = open_model(server, max_retries=2)
    with pytest.raises(BackendError, match=r"answered 503: still loading \(tried 3 times\)") as caught:
        model.ask([], "?")
    assert caught.value.status == 503
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (refuses(400, "max_tokens is too large: 99999"), "answered 400: max_tokens is too large"),
        (refuses(404, "model not found"), "check the model's name"),
        (refuses(413, "body too large"), "lower max_pixels"),
        (refuses(429, "quota is used up", "insufficient_quota"), "quota is used up"),
        (reply(422, {"detail": [{"msg": "field required"}]}), "field required"),
        (reply(400, {"message": "bad", "object": "error"}), "answered 400: bad"),
        (reply(400, b"<html>\x1b[31mBad Request</html>"), "<html> .31mBad Request"),
        (reply(307, b"", location="http://elsewhere/v1"), "go to http://elsewhere/v1"),
    ],
)
def test_a_lasting_fault_is_told_at_once_in_the_servers_words(server, turn, words):
    server.play(turn)
    model = open_model(server)
    with pytest.raises(BackendError, match=words) as caught:
        model.ask([], "?")
    assert "\x1b" not in str(caught.value)
    assert len(server.seen) == 1
    assert model.waits == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html>a proxy's page</html>", "isn't JSON.*proxy's page"),
        (b"", "an empty reply"),
        (b"[1]", "a list, not an object"),
        ({"choices": []}, "without a message"),
        ({"choices": [{"index": 0}]}, "without a message"),
        ({"error": {"message": "out of memory"}}, "out of memory"),
    ],
)
def test_a_reply_that_is_no_answer_is_an_error(server, data, words):
    server.play(reply(200, data))
    with pytest.raises(BackendError, match=words):
        open_model(server).ask([], "?")


def test_a_connection_that_breaks_is_tried_again(server):
    server.play(hangs_up, says("ok"))
    assert open_model(server).ask([], "?").text == "ok"
    assert len(server.seen) == 2


def test_a_late_answer_is_a_clear_error(server):
    server.play(lambda handler, seen: time.sleep(0.6))
    with pytest.raises(BackendError, match=r"no answer in time.*timeout_s"):
        open_model(server, timeout_s=0.2).ask([], "?")


def test_nobody_listening_is_a_clear_error():
    model = connect("http://127.0.0.1:9", MODEL, max_retries=1)
    model.wire.sleep = lambda s: None
    with pytest.raises(BackendError, match=r"127.0.0.1:9/v1: can't be reached.*tried 2 times"):
        model.ask([], "?")


# ---------------------------------------------------------------------------------------------------- keys


def test_the_key_comes_from_the_environment_and_shows_nowhere(server, monkeypatch, caplog):
    caplog.set_level(0)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.play(refuses(401, f"Incorrect API key provided: {KEY}."))
    model = open_model(server)
    with pytest.raises(BackendError, match="check the key") as caught:
        model.ask([], "?")
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
    server.play(reply(200, {"error": f"{KEY} has no access"}), streams({"error": f"{KEY} has no access"}))
    with pytest.raises(BackendError) as second:
        model.ask([], "?")
    with pytest.raises(BackendError) as third:
        model.stream([], "?").finish()
    shown = [
        str(caught.value),
        str(second.value),
        str(third.value),
        repr(model),
        repr(model.wire),
        caplog.text,
    ]
    assert [KEY in text for text in shown] == [False] * 6
    assert "<key>" in shown[1]
    assert "<key>" in shown[2]


def test_a_named_variable_must_be_set(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    open_model(server, api_key_env="MY_KEY").ask([], "?")
    assert server.seen[-1].headers["authorization"] == f"Bearer {KEY}"
    with pytest.raises(BackendError, match="OTHER_KEY"):
        open_model(server, api_key_env="OTHER_KEY")
    monkeypatch.setenv("MY_KEY", "sk line\nbreak")
    with pytest.raises(BackendError, match="MY_KEY has characters") as caught:
        open_model(server, api_key_env="MY_KEY")
    assert "sk line" not in str(caught.value)
    open_model(server).ask([], "?")
    assert "authorization" not in server.seen[-1].headers


def test_the_alibaba_key_goes_to_alibaba_alone(server, monkeypatch):
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    open_model(server).ask([], "?")
    assert "authorization" not in server.seen[-1].headers
    assert is_model_studio("https://dashscope-intl.aliyuncs.com/compatible-mode/v1")
    assert not is_model_studio("https://aliyuncs.com.example.org/v1")
    monkeypatch.delenv("DASHSCOPE_API_KEY")
    with pytest.raises(BackendError, match="DASHSCOPE_API_KEY"):
        connect("https://dashscope.aliyuncs.com/compatible-mode/v1", "qwen-vl-max")


# ------------------------------------------------------------------------------------- addresses and names


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost:8000", "http://localhost:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        ("http://host/v1/", "http://host/v1"),
        ("https://host/v1/chat/completions", "https://host/v1"),
        ("https://host/compatible-mode/v1", "https://host/compatible-mode/v1"),
    ],
)
def test_an_endpoint_may_be_written_in_many_ways(given, url):
    assert base_url(given) == url


@pytest.mark.parametrize(
    "given", ["ftp://host", "http://", "http://me:pass@host/v1", "http://h/v1?key=x", "http://h:x"]
)
def test_an_impossible_endpoint_is_refused_without_its_secrets(given):
    with pytest.raises(BackendError) as caught:
        base_url(given)
    assert "pass@" not in str(caught.value)
    assert "key=" not in str(caught.value)


def test_the_only_model_of_a_server_needs_no_name(server):
    server.play(reply(200, {"data": [{"id": "qwen2.5-vl-3b"}]}))
    assert (model := connect(server.url)).name == "qwen2.5-vl-3b"
    assert model.family == "qwen2_5_vl"
    assert server.seen[0].path == "/v1/models"
    server.play(reply(200, {"data": [{"id": "a"}, {"id": "b"}]}))
    with pytest.raises(BackendError, match="serves 2 models: a, b"):
        connect(server.url)


def test_an_alias_is_looked_up_in_the_servers_list(server):
    limits = {"min_pixels": 3136, "max_pixels": 50176, "patch_size": 14, "merge_size": 2}
    server.play(reply(200, {"data": [{"id": "prod", "root": "Qwen/Qwen3-VL-8B-Instruct"}, {"id": "other"}]}))
    assert open_model(server, "prod").family == "qwen3_vl"
    assert open_model(server, "other").family is None
    server.play(reply(200, {"data": [{"id": "prod", "family": "qwen2_5_vl", "pixel_limits": limits}]}))
    ours = open_model(server, "prod")
    assert (ours.family, ours.limits.max_pixels) == ("qwen2_5_vl", 50176)
    server.play(reply(200, {"data": [{"id": "prod", "family": "qwen2_5_vl", "pixel_limits": {"max": 1}}]}))
    assert open_model(server, "prod").limits.max_pixels == 16384 * 28 * 28
    server.play(refuses(404, "no such path"))
    assert open_model(server, "prod").family is None


def test_the_context_is_what_the_server_says_or_unknown(server):
    for entry, length in (({"max_model_len": 4096}, 4096), ({}, None), ({"max_model_len": "x"}, None)):
        server.play(reply(200, {"data": [{"id": MODEL, **entry}]}))
        assert open_model(server).max_model_len == length
    server.play(refuses(404, "no such path"))
    assert open_model(server).max_model_len is None


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct-AWQ", "qwen2_5_vl"),
        ("qwen2.5vl:7b", "qwen2_5_vl"),
        ("my-Qwen2_VL-finetune", "qwen2_vl"),
        ("unsloth/Qwen3-VL-8B-Instruct-GGUF", "qwen3_vl"),
        ("Qwen3-VL-30B-A3B-custom", "qwen3_vl_moe"),
        ("qwen-vl-max", "qwen2_5_vl"),
        ("qwen3-vl-plus", "qwen3_vl_moe"),
        ("llava-7b", None),
        ("qwen2.5-7b-instruct", None),
    ],
)
def test_the_family_is_read_from_the_name(name, family):
    assert str(find_family(name)) == str(family)


def test_model_studio_has_pixel_rules_of_its_own_and_a_switch(monkeypatch, server):
    bound = model_studio_limits("qwen3-vl-plus", "qwen3_vl_moe", False)
    assert (bound.factor, bound.max_tokens, bound.min_pixels) == (32, 2560, 4 * 32 * 32)
    assert model_studio_limits("qwen3-vl-plus", "qwen3_vl_moe", True).max_tokens == 16384
    assert model_studio_limits("qwen2.5-vl-72b-instruct", "qwen2_5_vl", False).max_tokens == 1280
    assert model_studio_limits("unheard-of", None, False) is None
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    hosted = connect(
        "https://dashscope.aliyuncs.com/compatible-mode/v1", "qwen3-vl-plus", high_resolution=True
    )
    assert hosted.limits.max_tokens == 16384
    assert hosted._prepare([{"role": "user", "content": "?"}], {}).body["vl_high_resolution_images"] is True
    with pytest.raises(BackendError, match="Model Studio"):
        open_model(server, high_resolution=True)


# ------------------------------------------------------------------------------------------- many at once


def test_many_questions_keep_their_order_and_the_limit_on_requests(server):
    def slow(handler, seen):
        time.sleep(0.03)
        says(seen.body["messages"][0]["content"][-1]["text"])(handler, seen)

    server.play(slow)
    answers = open_model(server, max_concurrency=3).ask_many(([], f"q{i}") for i in range(9))
    assert [a.text for a in answers] == [f"q{i}" for i in range(9)]
    assert 1 < server.most_at_once <= 3


def test_an_error_among_many_is_raised_and_the_rest_is_not_asked(server):
    server.play(refuses(400, "no"))
    with pytest.raises(BackendError, match="answered 400: no"):
        open_model(server, max_concurrency=2).ask_many(([], f"q{i}") for i in range(50))
    assert len(server.seen) < 50


def test_questions_are_taken_as_room_comes_free(server):
    taken = []

    def questions():
        for i in range(12):
            taken.append(i)
            yield [], f"q{i}"

    ahead = []

    def slow(handler, seen):
        ahead.append(len(taken) - len(server.seen))
        says("x")(handler, seen)

    server.play(slow)
    assert len(open_model(server, max_concurrency=2).ask_many(questions())) == 12
    assert max(ahead) <= 5  # 4 with a place, and the one that waits for it


def test_too_many_open_streams_end_in_an_error_and_not_in_a_standstill(server):
    server.play(streams(delta("x"), delta(None, "stop")))
    model = open_model(server, max_concurrency=1, timeout_s=0.3)
    first = model.stream([], "?")
    with pytest.raises(BackendError, match=r"1 requests are under way.*max_concurrency"):
        model.stream([], "?")
    assert first.finish().text == "x"
    assert model.stream([], "?").finish().text == "x"


@pytest.mark.parametrize("options", [{"max_retries": -1}, {"max_concurrency": 0}, {"timeout_s": 0}])
def test_impossible_options_are_refused_by_name(server, options):
    with pytest.raises(BackendError, match=next(iter(options))):
        connect(server.url, MODEL, **options)


def test_a_failed_request_gives_its_slot_back(server):
    model = open_model(server, max_concurrency=1, max_retries=0)
    server.play(refuses(400, "no"))
    for _ in range(3):
        with pytest.raises(BackendError):
            model.ask([], "?")
        with pytest.raises(BackendError):
            model.stream([], "?")
    server.play(says("fine"))
    done = threading.Event()
    threading.Thread(target=lambda: (model.ask([], "?"), done.set()), daemon=True).start()
    assert done.wait(5)
