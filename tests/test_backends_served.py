"""Our own engine behind our own server, asked over HTTP: the same answers as asked directly."""

import numpy as np
import pytest
from PIL import Image

import qvl
from qvl.backends.http import connect
from qvl.errors import BackendError
from qvl.tasks.run import run_task
from serve_live import live


@pytest.fixture(scope="module")
def native(tiny_checkpoint):
    return qvl.load(tiny_checkpoint, max_num_seqs=4)


@pytest.fixture(scope="module")
def served(tiny_checkpoint):
    # a model of its own: the server's thread is its engine's only driver
    with (
        live(qvl.load(tiny_checkpoint, max_num_seqs=4)) as server,
        connect(server.url, "tiny", family="qwen2_5_vl") as model,
    ):
        yield model


def picture(height=84, width=112, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


SAME = ("text", "finish_reason", "prompt_tokens", "visual_tokens", "completion_tokens", "media")


def same(ours, theirs) -> bool:
    return all(getattr(ours, name) == getattr(theirs, name) for name in SAME)


def test_whole_and_streamed_answers_equal_the_engines_own(native, served):
    images = [picture(90, 131), picture(seed=1)]
    settings = {"max_new_tokens": 12, "temperature": 0}
    own = native.ask(images, "What is it?", system="Be brief.", **settings)
    assert same(served.ask(images, "What is it?", system="Be brief.", **settings), own)
    stream = served.stream(images, "What is it?", system="Be brief.", **settings)
    assert stream.media == own.media
    assert "".join(stream) == own.text
    assert same(stream.answer, own)
    assert stream.answer.notes == ()


def test_pixel_limits_sampling_and_stops_mean_the_same(native, served):
    for settings in (
        {"max_pixels": 84 * 84},
        {"min_pixels": 280 * 280},
        {"temperature": 1.5, "seed": 7, "top_k": 20, "min_p": 0.01},
        {"repetition_penalty": 1.3, "temperature": 0},
        {"ignore_eos": True, "temperature": 0},
    ):
        own = native.ask([picture()], "What?", max_new_tokens=10, **settings)
        other = served.ask([picture()], "What?", max_new_tokens=10, **settings)
        assert same(other, own), settings
        assert other.notes == ()
    text = native.ask([picture()], "What?", max_new_tokens=10, temperature=0).text
    stop = text[len(text) // 2]
    assert same(
        served.ask([picture()], "What?", max_new_tokens=10, temperature=0, stop=(stop,)),
        native.ask([picture()], "What?", max_new_tokens=10, temperature=0, stop=(stop,)),
    )


def test_a_limit_below_the_servers_own_is_not_claimed_to_be_kept(served):
    answer = served.ask([picture()], "What?", max_new_tokens=2, max_pixels=40 * 40)
    assert answer.media[0].seen.height * answer.media[0].seen.width >= 3136
    assert tuple(answer.media[0].original) == (84, 112)
    assert answer.notes == ()  # the server's count agrees


def test_a_clip_is_seen_at_the_size_that_is_claimed(native, served):
    frames = np.random.default_rng(0).integers(0, 255, (6, 56, 84, 3), dtype=np.uint8)
    item = {"type": "video", "video": frames, "sample_fps": 2.0}
    own = native.ask([item], "When?", max_new_tokens=2)
    other = served.ask([item], "When?", max_new_tokens=2)
    assert other.media == own.media
    assert other.prompt_tokens == own.prompt_tokens


def test_tasks_run_over_http_as_they_do_here(native, served):
    own = run_task(native, "boxes", [picture(90, 131)], "Locate it.", max_new_tokens=8, temperature=0)
    other = run_task(served, "boxes", [picture(90, 131)], "Locate it.", max_new_tokens=8, temperature=0)
    assert (other.picture, other.result, other.answer.text) == (own.picture, own.result, own.answer.text)


def test_what_the_server_refuses_comes_back_in_its_words(served):
    with pytest.raises(BackendError, match=r"answered 400.*temperature") as caught:
        served.ask([picture()], "What?", temperature=-3)
    assert caught.value.status == 400
    with pytest.raises(BackendError, match=r"answered 400"):
        served.post({"messages": [{"role": "user", "content": "x"}], "use_beam_search": True})


def test_tasks_over_an_endpoint_are_greedy_unless_told_otherwise(served, monkeypatch):
    sent = []
    plain = served.stream_chat
    monkeypatch.setattr(
        served, "stream_chat", lambda m, **s: (sent.append(s.get("temperature")), plain(m, **s))[1]
    )
    run_task(served, "boxes", [picture(90, 131)], "Locate it.", max_new_tokens=4, retry="no")
    run_task(served, "boxes", [picture(90, 131)], "Locate it.", max_new_tokens=4, retry="no", temperature=0.7)
    assert sent == [0, 0.7]


def test_many_questions_over_http_equal_one_by_one(native, served):
    questions = [([picture(seed=i)], f"Question {i}?") for i in range(4)]
    together = served.ask_many(questions, max_new_tokens=6, temperature=0)
    for (media, question), answer in zip(questions, together, strict=True):
        assert same(answer, native.ask(media, question, max_new_tokens=6, temperature=0))
