"""`qvl_parse`: a reply carries what it says as typed results, in pixels of the picture that the client sent."""

import json
from pathlib import Path

import pytest

import qvl
from qvl.engine.engine import Event, Usage
from serve_live import asking, data_url, live, picture, png

BOX = 'Here: [{"bbox_2d": [28, 28, 56, 84], "label": "cat"}]'


@pytest.fixture(scope="module")
def server(tiny_checkpoint):
    with live(qvl.load(tiny_checkpoint, max_num_seqs=2)) as running:
        yield running


@pytest.fixture
def says(server, monkeypatch):
    """The server answers with a given text, in two pieces, in place of the random network's."""

    def use(text):
        half = len(text) // 2
        step = server.service.model.engine.step

        def scripted():
            events = []
            for event in step():
                if event.finish_reason is not None:
                    usage = Usage(9, 4, 2, 0, 0, 0.0, 0.0, 0.0, 0.0)
                    events.append(Event(event.request_id, text=text[:half]))
                    events.append(
                        Event(event.request_id, text=text[half:], finish_reason="stop", usage=usage)
                    )
                elif event == Event(event.request_id):
                    events.append(event)
            return events

        monkeypatch.setattr(server.service.model.engine, "step", scripted)

    return use


def ask(server, *items, **body):
    items = items or (picture(data_url(png(280, 560))),)
    return server.chat(messages=asking("Where is the cat?", *items), max_tokens=1, ignore_eos=True, **body)


def test_boxes_are_mapped_to_the_picture_that_was_sent(server, says):
    says(BOX)
    shrunk = picture(data_url(png(280, 560)), max_pixels=140 * 280)
    choice = ask(server, shrunk, qvl_parse="boxes").json()["choices"][0]
    assert choice["message"]["content"] == BOX
    [box] = choice["qvl_parsed"]["items"]
    assert box["label"] == "cat"
    assert [round(box[key]) for key in ("x1", "y1", "x2", "y2")] == [56, 56, 112, 168]


def test_the_last_chunk_of_a_stream_carries_them(server, says):
    says(BOX)
    body = ask(server, qvl_parse="boxes", stream=True).text
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    parsed = [
        choice["qvl_parsed"] for event in events for choice in event["choices"] if "qvl_parsed" in choice
    ]
    assert [[item["label"] for item in found["items"]] for found in parsed] == [["cat"]]
    assert "qvl_parsed" in events[-1]["choices"][0]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_nothing_is_added_unless_asked(server, says):
    says(BOX)
    assert "qvl_parsed" not in ask(server).json()["choices"][0]


def test_text_without_a_box_gives_none_and_the_reason(server, says):
    says("I see no cat.")
    parsed = ask(server, qvl_parse="boxes").json()["choices"][0]["qvl_parsed"]
    assert parsed["items"] == []
    assert parsed["reason"]


def test_a_page_comes_as_its_blocks(server, says):
    says('<h1 data-bbox="0 0 280 28">Title</h1>')
    parsed = ask(server, qvl_parse="document").json()["choices"][0]["qvl_parsed"]
    assert parsed["task"] == "document"
    assert "Title" in json.dumps(parsed)


def test_actions_are_parsed_though_tools_take_them_out_of_the_text(server, says):
    says(
        '<tool_call>{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [28, 56]}}</tool_call>'
    )
    tool = {"type": "function", "function": {"name": "computer_use"}}
    choice = ask(server, qvl_parse="actions", tools=[tool]).json()["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "computer_use"
    [action] = choice["qvl_parsed"]["items"]
    assert (action["kind"], action["x"], action["y"]) == ("click", 28.0, 56.0)


@pytest.mark.parametrize("count", [0, 2])
def test_without_exactly_one_picture_the_request_is_refused(server, count):
    items = [picture() for _ in range(count)]
    messages = asking("Where?", *items)
    reply = server.chat(messages=messages, qvl_parse="boxes")
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "qvl_parse"
    server.wait_until_idle()


def test_times_are_checked_against_the_clips_length(server, says):
    says("From 0.5 to 900 seconds.")
    clip = (Path(__file__).parent.parent / "examples" / "clip.mp4").read_bytes()
    item = {"type": "video_url", "video_url": {"url": data_url(clip, "video/mp4")}}
    parsed = ask(server, item, qvl_parse="events").json()["choices"][0]["qvl_parsed"]
    [event] = parsed["items"]
    assert (event["start"], event["end"], event["clamped"]) == (0.5, 6.0, True)  # seconds of the clip
    assert "clamped to the video's end" in parsed["warnings"][0]


def test_the_embedded_models_place_on_a_screen_is_read_as_a_click(server, says, monkeypatch):
    """As `qvl ask --actions` does: it answers with a place, and knows no tool calls."""
    says('{"point_2d": [28, 56], "label": "OK"}')
    assert ask(server, qvl_parse="actions").json()["choices"][0]["qvl_parsed"]["items"] == []
    monkeypatch.setattr(server.service.model, "name", "mini")
    parsed = ask(server, qvl_parse="actions").json()["choices"][0]["qvl_parsed"]
    assert [(a["kind"], a["x"], a["y"]) for a in parsed["items"]] == [("click", 28.0, 56.0)]
    assert "read as a click" in parsed["warnings"][0]


def test_times_need_a_clip(server):
    assert ask(server, qvl_parse="events").status_code == 400


def test_an_unknown_way_is_refused(server):
    assert ask(server, qvl_parse="poems").status_code == 400


def test_the_python_client_sends_the_field_and_reads_the_reply(server, says):
    says(BOX)
    done = server.openai().chat.completions.create(
        model="tiny",
        messages=asking("Where?", picture(data_url(png(280, 560)))),
        max_tokens=1,
        extra_body={"qvl_parse": "boxes", "ignore_eos": True},
    )
    assert done.choices[0].qvl_parsed["items"][0]["label"] == "cat"
