"""A megabyte of garbage through everything that reads a model's text: a result, and work that grows with the length."""

import random
import sys

import pytest

from qvl.geometry import Size
from qvl.outputs.actions import parse_actions
from qvl.outputs.boxes import parse_boxes
from qvl.outputs.documents import parse_document
from qvl.outputs.events import Clip, parse_events
from qvl.outputs.export import to_csvs, to_html, to_json, to_layout, to_markdown
from qvl.outputs.mapping import picture_map
from qvl.outputs.repetition import RepetitionGuard

MAP = picture_map(Size(600, 800), "qwen2_5_vl")


def document(text):
    page = parse_document(text, "qwen2_5_vl", MAP)
    for export in (to_markdown, to_html, to_csvs, to_json):
        export([page])
    to_layout(page)


def guard(text):
    watched = RepetitionGuard(MAP.seen)
    watched.feed(text)
    watched.finish()


READERS = {
    "boxes": lambda text: parse_boxes(text, "qwen2_5_vl", MAP),
    "tags": lambda text: parse_boxes(text, "qwen_vl", MAP),
    "document": document,
    "events": lambda text: parse_events(text, Clip(duration=9.0, fps=2.0)),
    "actions": lambda text: parse_actions(text, "qwen2_5_vl", MAP),
    "guard": guard,
}
GARBAGE = [
    *("[", '["', '{"a":', '{"bbox_2d": [1, 2, 3, 4]}, ', "[1,],", '{"a": ""b"", ', "```json\n", "(1,2),", "<box>(1,2"),
    *("<ul><li>", "<table><tr><td rowspan=9>", "| a |\n", "<b><i>", "&", "\\begin{tabular}{c}", "<!-- Table ("),
    *("1:00 - ", "frame 1 to ", "<tool_call>{", "<function=a><parameter=b>", "<think>", "symbols"),
]  # fmt: skip


def garbage(piece, length):
    if piece == "symbols":
        draw = random.Random(0)
        return "".join(draw.choices('[]{}",:\\<>/=-|()0123456789 \nab', k=length))
    return (piece * (length // len(piece) + 1))[:length]


def calls(read, text):
    """Functions entered, Python's and C's: what the time is made of, on any machine."""
    count = 0

    def entered(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(entered)
    try:
        read(text)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("piece", GARBAGE)
def test_work_grows_with_the_length_and_not_its_square(reader, piece):
    few, many = (calls(READERS[reader], garbage(piece, n)) for n in (2_000, 16_000))
    # 8 times the text; a square would be 64 times the work
    assert many <= 12 * few + 5_000


@pytest.mark.parametrize("piece", ["[", "<ul><li>", "symbols"])
def test_a_megabyte_is_read(piece):
    text = garbage(piece, 1 << 20)
    for read in READERS.values():
        read(text)
