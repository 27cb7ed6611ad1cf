"""Coverage-guided fuzzing of all that reads a model's text: python tests/fuzz/parsers.py [-max_total_time=180]

Needs atheris, which isn't among the dependencies (pip install atheris). Any text must give a result: only an
OutputError may leave a parser, and none may take longer than 2 s (libFuzzer's -timeout). Arguments are libFuzzer's.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["qvl.outputs"]):
    from qvl.inputs.geometry import Size
    from qvl.outputs.actions import parse_actions
    from qvl.outputs.boxes import parse_boxes
    from qvl.outputs.documents import parse_document
    from qvl.outputs.events import Clip, parse_events
    from qvl.outputs.export import to_html, to_markdown
    from qvl.outputs.mapping import CONVENTIONS, picture_map
    from qvl.outputs.repair import find_json
    from qvl.outputs.repetition import RepetitionGuard
    from qvl.outputs.thinking import split_thinking

from qvl.errors import OutputError

FAMILIES = tuple(CONVENTIONS)
SIZE = Size(1532, 1014)
MAPS = {family: picture_map(SIZE, family) for family in FAMILIES}


def parse_all(data: bytes) -> None:
    """The first byte chooses the family; the rest is the reply."""
    choice = atheris.FuzzedDataProvider(data)
    family = FAMILIES[choice.ConsumeIntInRange(0, len(FAMILIES) - 1)]
    text = choice.ConsumeUnicode(4096)
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
    atheris.Setup([*sys.argv, "-timeout=2"], parse_all)
    atheris.Fuzz()
