"""outputs.actions: tool calls of each generation → actions on the real screen; what is unsafe is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qvl.catalog.generations.generation import RELATIVE_999, RELATIVE_1000, SEEN_PIXELS
from qvl.errors import OutputError
from qvl.geometry import Size
from qvl.outputs.actions import (
    COMPUTER,
    MOBILE,
    Click,
    Drag,
    Keys,
    LongPress,
    Move,
    OpenApp,
    Reply,
    Scroll,
    Swipe,
    SystemButton,
    Terminate,
    TypeText,
    Wait,
    carry_out,
    describe,
    parse_actions,
    screen_convention,
)
from qvl.outputs.draw import DryRun
from qvl.outputs.mapping import picture_map

PHONE, DESK = Size(2400, 1080), Size(1080, 1920)


def call(tool, **arguments):
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"


def parse(text, family="qwen3_vl", size=DESK):
    return parse_actions(text, family, picture_map(size, family))


# ------------------------------------------------------------------------------------------------ each action


@pytest.mark.parametrize(
    ("arguments", "action"),
    [
        ({"action": "left_click", "coordinate": [500, 500]}, Click(960, 540)),
        ({"action": "right_click", "coordinate": [500, 500]}, Click(960, 540, "right")),
        ({"action": "middle_click", "coordinate": [500, 500]}, Click(960, 540, "middle")),
        ({"action": "double_click", "coordinate": [500, 500]}, Click(960, 540, "left", 2)),
        ({"action": "triple_click", "coordinate": [500, 500]}, Click(960, 540, "left", 3)),
        ({"action": "mouse_move", "coordinate": [0, 0]}, Move(0, 0)),
        ({"action": "left_click_drag", "coordinate": [250, 250]}, Drag(480, 270)),
        ({"action": "scroll", "pixels": -300}, Scroll(up=-300)),
        ({"action": "hscroll", "pixels": 40}, Scroll(right=40)),
        ({"action": "key", "keys": ["ctrl", "c"]}, Keys(("ctrl", "c"))),
        ({"action": "key", "keys": "ctrl+c"}, Keys(("ctrl", "c"))),
        ({"action": "key", "keys": ["+"]}, Keys(("+",))),
        ({"action": "type", "text": "hello"}, TypeText("hello")),
        ({"action": "wait", "time": 2}, Wait(2)),
        ({"action": "answer", "text": "42"}, Reply("42")),
        ({"action": "terminate", "status": "success"}, Terminate("success")),
    ],
)
def test_computer_action(arguments, action):
    assert parse(call("computer_use", **arguments)).items == (action,)


@pytest.mark.parametrize(
    ("arguments", "action"),
    [
        ({"action": "click", "coordinate": [999, 0]}, Click(1079, 0)),
        ({"action": "long_press", "coordinate": [333, 333], "time": 2}, LongPress(360, 800, 2)),
        ({"action": "long_press", "coordinate": [333, 333]}, LongPress(360, 800, 1)),
        ({"action": "swipe", "coordinate": [0, 333], "coordinate2": [333, 0]}, Swipe(0, 800, 360, 0)),
        ({"action": "type", "text": "안녕"}, TypeText("안녕")),
        ({"action": "system_button", "button": "back"}, SystemButton("Back")),
        ({"action": "open", "text": "Maps"}, OpenApp("Maps")),
        ({"action": "key", "text": "volume_up"}, Keys(("volume_up",))),
        ({"action": "answer", "text": "no"}, Reply("no")),
        ({"action": "terminate", "status": "failure"}, Terminate("failure")),
    ],
)
def test_mobile_action(arguments, action):
    assert parse(call("mobile_use", **arguments), size=PHONE).items == (action,)


def test_every_action_of_the_tools_is_tested_here():
    # the two tables above name each action of the schemas; "click" on a computer is a synonym
    assert set(COMPUTER) - {"click"} == {
        "left_click",
        "right_click",
        "middle_click",
        "double_click",
        "triple_click",
        "mouse_move",
        "left_click_drag",
        "scroll",
        "hscroll",
        "key",
        "type",
        "wait",
        "answer",
        "terminate",
    }
    assert set(MOBILE) == {
        "click",
        "long_press",
        "swipe",
        "type",
        "system_button",
        "open",
        "key",
        "answer",
        "terminate",
        "wait",
    }


# ------------------------------------------------------------------------------------------- each generation


def test_coordinates_of_each_generation():
    assert screen_convention("qwen2_5_vl", "mobile_use") == SEEN_PIXELS
    assert screen_convention("qwen3_vl", "mobile_use") == RELATIVE_999
    assert screen_convention("qwen3_vl_moe", "mobile_use") == RELATIVE_999
    assert screen_convention("qwen3_vl", "computer_use") == RELATIVE_1000
    assert screen_convention("qwen2_vl", "computer_use") == RELATIVE_1000


def test_qwen25_points_in_pixels_of_the_resized_screenshot():
    # the cookbook's phone: 1080 x 2400 is shown as 1092 x 2408
    result = parse(call("mobile_use", action="click", coordinate=[546, 1204]), "qwen2_5_vl", PHONE)
    assert result.items == (Click(540, 1200),)


def test_thought_and_action_lines_come_before_the_call():
    text = "Thought: I open the menu.\nIt is on top.\nAction: Tap the menu.\n" + call(
        "mobile_use", action="wait", time=1
    )
    result = parse(text, size=PHONE)
    assert result.thought == "I open the menu.\nIt is on top."
    assert result.items == (Wait(1),)


def test_old_function_marks():
    text = '✿FUNCTION✿: mobile_use\n✿ARGS✿: {"action": "click", "coordinate": [500, 500]}\n✿RESULT✿'
    assert parse(text, "qwen2_vl", PHONE).items == (Click(540, 1200),)


def test_newest_function_tags():
    text = (
        "<tool_call>\n<function=computer_use>\n<parameter=action>\nleft_click\n</parameter>\n"
        "<parameter=coordinate>\n[500, 500]\n</parameter>\n</function>\n</tool_call>"
    )
    assert parse(text, "qwen3_5").items == (Click(960, 540),)


@pytest.mark.parametrize("typed", ["123", "[1, 2]", "true", "a < b", " two  blanks ", "<b>x</b>"])
def test_newest_function_tags_type_their_text_as_it_stands(typed):
    text = (
        "<tool_call><function=computer_use><parameter=action>type</parameter>"
        f"<parameter=text>{typed}</parameter></function></tool_call>"
    )
    assert parse(text, "qwen3_5").items == (TypeText(typed),)


def test_newest_function_tags_give_numbers_as_text():
    text = (
        "<tool_call><function=computer_use><parameter=action>scroll</parameter>"
        "<parameter=pixels>-300</parameter></function></tool_call>"
    )
    assert parse(text, "qwen3_5").items == (Scroll(up=-300),)


def test_a_call_whose_tags_a_server_took_away():
    text = json.dumps({"name": "computer_use", "arguments": json.dumps({"action": "type", "text": "x"})})
    assert parse(text).items == (TypeText("x"),)


def test_coordinates_as_text():
    assert parse(call("computer_use", action="left_click", coordinate="[500, 500]")).items == (
        Click(960, 540),
    )
    assert parse(call("computer_use", action="left_click", coordinate=["500", "500"])).items == (
        Click(960, 540),
    )


def test_a_missing_brace_is_mended_and_said():
    text = '<tool_call>{"name": "computer_use", "arguments": {"action": "wait", "time": 1}</tool_call>'
    result = parse(text)
    assert result.items == (Wait(1),)
    assert result.repairs


def test_several_calls_come_in_order():
    result = parse(
        call("computer_use", action="wait", time=1) + call("computer_use", action="type", text="a")
    )
    assert result.items == (Wait(1), TypeText("a"))


# -------------------------------------------------------------------------------------------------- refusals

REFUSED = [
    (call("computer_use", action="left_click", coordinate=[1001, 5]), "outside the screen"),
    (call("computer_use", action="left_click", coordinate=[-1, 5]), "outside the screen"),
    (call("computer_use", action="left_click", coordinate=[5, 1001]), "outside the screen"),
    (call("computer_use", action="left_click", coordinate=[5, -1]), "outside the screen"),
    (call("computer_use", action="left_click", coordinate=[5]), "must be [x, y]"),
    (call("computer_use", action="left_click"), "missing"),
    (call("computer_use", action="left_click", coordinate=["a", 5]), "isn't a number"),
    (call("computer_use", action="left_click", coordinate=[True, 5]), "isn't a number"),
    (call("computer_use", action="explode"), "known: key, type"),
    (call("computer_use"), "no action missing"),
    (call("computer_use", action=["left_click"]), "known:"),
    (call("format_disk", action="left_click"), "no tool is named 'format_disk'"),
    (call("computer_use", action="type"), "must be a text"),
    (call("computer_use", action="type", text=5), "must be a text"),
    (call("computer_use", action="wait", time=1e9), "between 0 and 3600"),
    (call("computer_use", action="wait", time=-1), "between 0 and 3600"),
    (call("computer_use", action="key", keys=[]), "list of key names"),
    (call("computer_use", action="key", keys=[""]), "list of key names"),
    (call("computer_use", action="terminate", status="maybe"), "success, failure"),
    (call("mobile_use", action="system_button", button="Power"), "Back, Home, Menu, Enter"),
    (call("mobile_use", action="swipe", coordinate=[1, 2]), "coordinate2 is missing"),
    ('<tool_call>{"name": "computer_use", "arguments": {"action": "type", "text": "rm', "cut off"),
    ('<tool_call>{"name": "computer_use", "arguments": {"action": "type", "text": "rm"', "cut off"),
    (
        '<tool_call>{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [10, 2',
        "cut off",
    ),
    ("<tool_call>click there</tool_call>", "can't be read"),
    ('<tool_call>{"arguments": {}}</tool_call>', "without a name"),
    ('<tool_call>{"name": "computer_use"}</tool_call>', "no readable arguments"),
    ("<tool_call><function=computer_use><parameter=action>wait", "cut off"),
    ("✿FUNCTION✿: computer_use ✿ARGS✿: none", "no readable arguments"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=[r[0][:70] for r in REFUSED])
def test_refused(text, said):
    result = parse(text)
    assert result.items == ()
    assert said in result.refused
    assert result.reason == result.refused


def test_a_pixel_outside_the_resized_screenshot_is_refused_with_its_size():
    result = parse(call("mobile_use", action="click", coordinate=[1100, 5]), "qwen2_5_vl", PHONE)
    assert "1092x2408" in result.refused


def test_what_follows_a_refused_action_is_not_carried_out():
    text = (
        call("computer_use", action="wait", time=1)
        + call("computer_use", action="left_click", coordinate=[2000, 5])
        + call("computer_use", action="type", text="secret")
        + call("computer_use", action="key", keys=["enter"])
    )
    result = parse(text)
    assert result.items == (Wait(1),)
    assert "outside" in result.refused
    assert result.not_reached == 2
    assert result.reason is None


def test_what_follows_terminate_is_left_out_and_said():
    result = parse(
        call("computer_use", action="terminate", status="success")
        + call("computer_use", action="wait", time=1)
    )
    assert result.items == (Terminate("success"),)
    assert "after terminate" in result.warnings[0]


def test_the_far_edge_is_the_last_pixel_and_said():
    result = parse(call("computer_use", action="left_click", coordinate=[1000, 1000]))
    assert result.items == (Click(1919, 1079),)
    assert "last one" in result.warnings[0]


def test_unknown_arguments_are_said():
    result = parse(call("computer_use", action="wait", time=1, force=True))
    assert "force" in result.warnings[0]


def test_a_missing_screen_is_an_error():
    with pytest.raises(OutputError, match="screen's size"):
        parse_actions("", "qwen3_vl", None)


@pytest.mark.parametrize("text", ["", "I can't do that.", '{"name": "x"}'])
def test_no_call_gives_nothing_and_a_reason(text):
    result = parse(text)
    assert result.items == ()
    assert result.reason
    assert result.refused is None


def test_calls_of_the_thinking_are_not_carried_out():
    result = parse(
        call("computer_use", action="wait", time=1) + "</think>" + call("computer_use", action="wait", time=2)
    )
    assert result.items == (Wait(2),)


def test_the_result_turns_into_json():
    plain = json.loads(
        json.dumps(parse(call("computer_use", action="left_click", coordinate=[1, 2])).to_dict())
    )
    assert plain["items"][0]["kind"] == "click"


# ------------------------------------------------------------------------------------------------ carrying out


class _Recorder:
    def __init__(self):
        self.done = []

    def execute(self, action):
        self.done.append(action)


def test_carrying_out_stops_at_the_end():
    recorder = _Recorder()
    assert carry_out([Wait(1), Terminate("success"), TypeText("x")], recorder) == 2
    assert recorder.done == [Wait(1), Terminate("success")]


def test_a_dry_run_changes_only_its_drawing():
    screen = Image.new("RGB", (320, 200), "white")
    run = DryRun(screen)
    carry_out([Click(100, 100), TypeText("hi")], run)
    assert run.actions == [Click(100, 100), TypeText("hi")]
    drawn = run.drawing().image
    assert screen.getcolors() == [(320 * 200, (255, 255, 255))]
    times = drawn.width // 320  # small screens are drawn larger
    assert drawn.getpixel((100 * times, 100 * times)) != (255, 255, 255)


ACTIONS = [
    Click(1, 2),
    Click(1, 2, "right", 2),
    LongPress(1, 2, 3),
    Move(1, 2),
    Drag(1, 2),
    Swipe(1, 2, 3, 4),
    Scroll(up=5),
    Scroll(right=-5),
    Scroll(),
    Keys(("a",)),
    TypeText("t"),
    SystemButton("Home"),
    OpenApp("Maps"),
    Wait(1),
    Reply("r"),
    Terminate("failure"),
]


def test_each_action_is_described_in_its_own_words():
    said = [describe(a) for a in ACTIONS]
    assert len(set(said)) == len(said)
    assert said[0] == "click left (1, 2)"
    assert said[1] == "double click right (1, 2)"


PIECES = st.lists(
    st.sampled_from(
        [
            "<tool_call>",
            "</tool_call>",
            '{"name": "computer_use", "arguments": ',
            '{"action": "left_click", ',
            '"coordinate": [5, 6]',
            "}",
            "}}",
            "[",
            "]",
            "✿FUNCTION✿: a",
            "✿ARGS✿:",
            "<function=computer_use>",
            "<parameter=action>wait</parameter>",
            "</function>",
            "</think>",
            '"time": 1',
            ",",
            "\n",
            "Thought: x",
        ]
    ),
    max_size=25,
).map("".join)


@given(PIECES | st.text(max_size=100), st.sampled_from(["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]))
@settings(max_examples=300, deadline=None)
def test_no_text_raises_and_every_click_is_on_the_screen(text, family):
    result = parse(text, family)
    assert result.items or result.reason
    for action in result.items:
        if isinstance(action, Click):
            assert 0 <= action.x <= DESK.width - 1
            assert 0 <= action.y <= DESK.height - 1
