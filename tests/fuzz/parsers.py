"""Coverage-guided fuzzing of all that reads a model's text: python tests/fuzz/parsers.py [-max_total_time=180]

Needs atheris, which isn't among the dependencies (pip install atheris). Any text must give a result: only an
OutputError may leave a parser, and none may take longer than 2 s (libFuzzer's -timeout). Arguments are libFuzzer's.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["qvl.outputs"]):
    from qvl.catalog import generations
    from qvl.geometry import Size
    from qvl.outputs.actions import parse_actions
    from qvl.outputs.boxes import parse_boxes
    from qvl.outputs.documents import parse_document
    from qvl.outputs.events import Clip, parse_events
    from qvl.outputs.export import to_html, to_markdown
    from qvl.outputs.mapping import picture_map
    from qvl.outputs.repair import find_json
    from qvl.outputs.repetition import RepetitionGuard
    from qvl.outputs.thinking import split_thinking

from qvl.errors import OutputError

FAMILIES = generations.names()
# what replies are made of; every other text is a row of these, which no fuzzer would spell out by itself
PIECES = (
    *("[", "]", "{", "}", ", ", ": ", '"', "\\", "```json\n", "```", '"bbox_2d": [', '"point_2d": [', '"label": "a"'),
    *("12", "1000", "-3", "0.5", "1e9", "true", "(1,2)", "<ref>", "</ref>", "<box>", "</box>", "<|box_start|>"),
    *("<quad>", "<p>", "</p>", '<h1 data-bbox="1 2 300 400">', "<table>", "</table>", "<tr>", "</tr>", "</td>"),
    *("<td colspan=2>", "<ul><li>", "<div class='formula'>", "$$", "| a |\n", "|---|\n", "\\begin{tabular}{c}"),
    *("\\end{tabular}", "&amp;", "<!-- Table (1,2,3,4) -->", "01:32.40", "00:01:02", " - ", "5 seconds", "frame 7"),
    *('"start_time": ', '"end_time": ', "<tool_call>", "</tool_call>", '{"name": "computer_use", "arguments": {'),
    *('"action": "left_click"', '"coordinate": [5, 6]', "<function=mobile_use>", "<parameter=action>"),
    *("</parameter>", "<think>", "</think>", "word ", "\n", "가", "<", "&"),
)  # fmt: skip
SIZE = Size(1532, 1014)
MAPS = {family: picture_map(SIZE, family) for family in FAMILIES}


def parse_all(data: bytes) -> None:
    """The first bytes choose the family and what the rest is: letters, or pieces."""
    choice = atheris.FuzzedDataProvider(data)
    family = FAMILIES[choice.ConsumeIntInRange(0, len(FAMILIES) - 1)]
    if choice.ConsumeBool():
        text = choice.ConsumeUnicode(4096)
    else:
        text = "".join(PIECES[byte % len(PIECES)] for byte in choice.ConsumeBytes(4096))
    try:
        parse_boxes(text, family, MAPS[family])
        page = parse_document(text, family, MAPS[family])
        to_html([page])
        to_markdown([page])
        parse_events(text, Clip(duration=94.0, fps=24.0))
        parse_actions(text, family, MAPS[family])
    except OutputError:
        pass
    list(find_json(text))
    split_thinking(text, opened=True)
    guard = RepetitionGuard(SIZE)
    guard.feed(text)
    guard.finish()


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], "-timeout=2", *sys.argv[1:]], parse_all)
    atheris.Fuzz()
