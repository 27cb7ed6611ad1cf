"""AITZ (Android in the Zoo) and Android Control: the next action on a phone's screen, by type and exactly."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvl.catalog.generations.qwen3_vl import QWEN3_VL
from qvl.evaluate.benchmarks import readers
from qvl.evaluate.benchmarks.record import GREEDY, QWEN3_SAMPLED, Benchmark, Files, Rows, mean
from qvl.evaluate.benchmarks.screens import screen_system
from qvl.evaluate.samples import Sample, SampleError
from qvl.evaluate.scorers import places
from qvl.evaluate.scorers.base import Grade, Reply, Scorer
from qvl.geometry import Size
from qvl.outputs.actions import (
    Click,
    LongPress,
    Swipe,
    SystemButton,
    Terminate,
    TypeText,
    Wait,
    parse_actions,
)
from qvl.outputs.boxes import Box
from qvl.outputs.mapping import PictureMap, iou

ENLARGED = 1.2  # the boxes of the screen's elements
SWIPED = 0.04  # of the screen: what moves less is a tap
NEAR = 0.14  # of the screen: a tap so near is right
NEAR_CONTROL = 0.04  # likewise in Android Control
NEAREST = 5  # elements that count there
BUTTONS = {5: "back", 6: "home", 7: "enter"}

Rect = tuple[float, float, float, float]  # x1, y1, x2, y2 in parts of the screen


@dataclass(frozen=True)
class Step:
    """An action by kind: click, long press, scroll, type, press or stop. x and y in parts of the screen."""

    kind: str
    x: float = 0.0
    y: float = 0.0
    detail: str = ""  # direction, text or button


def direction(x1: float, y1: float, x2: float, y2: float) -> str:
    """Of the finger; the longer of both ways, and the vertical one when they are equal."""
    dx, dy = x2 - x1, y2 - y1
    if dx == dy == 0:
        return ""
    if abs(dy) >= abs(dx):
        return "up" if dy < 0 else "down"
    return "left" if dx < 0 else "right"


def gold_step(row: dict[str, Any]) -> Step:
    """The step that was taken. Raises: ValueError for an unknown kind."""
    kind = int(row["result_action_type"])
    (y, x), (to_y, to_x) = _pair(row["result_touch_yx"]), _pair(row["result_lift_yx"])
    if kind == 0:
        return Step("long press", x, y)
    if kind == 4:
        if math.hypot(x - to_x, y - to_y) <= SWIPED:
            return Step("click", x, y)
        return Step("scroll", x, y, direction(x, y, to_x, to_y))
    if kind == 3:
        return Step("type", detail=str(row["result_action_text"]))
    if kind in BUTTONS:
        return Step("press", detail=BUTTONS[kind])
    if kind in (1, 10, 11):
        return Step("stop")
    raise ValueError(f"result_action_type {kind} is unknown")


def _pair(value: Any) -> tuple[float, float]:
    a, b = json.loads(value) if isinstance(value, str) else value
    return float(a), float(b)


def said_step(reply: Reply) -> Step | None:
    """The first action of the reply; None when there is none that these sets know."""
    if not reply.family or not reply.sizes:
        return None
    size = reply.sizes[0][0]
    height, width = size
    found = parse_actions(reply.text, reply.family, PictureMap(*reply.sizes[0])).items
    action = found[0] if found else None
    if isinstance(action, Click):
        return Step("click", action.x / width, action.y / height)
    if isinstance(action, LongPress):
        return Step("long press", action.x / width, action.y / height)
    if isinstance(action, Swipe):
        return Step("scroll", detail=direction(action.x, action.y, action.to_x, action.to_y))
    if isinstance(action, TypeText):
        return Step("type", detail=action.text)
    if isinstance(action, SystemButton):
        return Step("press", detail=action.button.lower())
    return Step("stop") if isinstance(action, Terminate | Wait) else None


def enlarged(box: Sequence[float]) -> Rect:
    """[y, x, height, width] of an element, 1.2 times as large, cut at the screen's upper left."""
    y, x, h, w = box
    x1, y1 = max(0.0, x - (ENLARGED - 1) * w / 2), max(0.0, y - (ENLARGED - 1) * h / 2)
    return x1, y1, x1 + min(1.0, w * ENLARGED), y1 + min(1.0, h * ENLARGED)


def within(x: float, y: float, box: Rect) -> bool:
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def hits(said: Step, gold: Step, elements: Sequence[Sequence[float]], *, control: bool = False) -> bool:
    """Whether a tap counts: in an enlarged element that holds the gold point, or near that point.

    In Android Control: in one of the five elements whose centres are nearest, or nearer than there.
    Source: OpenBMB/AgentCPM-GUI @acbaf50 eval/utils/evaluator.py, after Qwen's (Qwen3-VL issue 904).
    """
    boxes = [enlarged(e) for e in elements]
    if control:
        boxes.sort(key=lambda b: math.hypot((b[0] + b[2]) / 2 - gold.x, (b[1] + b[3]) / 2 - gold.y))
        boxes = boxes[:NEAREST]
    else:
        boxes = [b for b in boxes if within(gold.x, gold.y, b)]
    if any(within(said.x, said.y, b) for b in boxes):
        return True
    return math.hypot(said.x - gold.x, said.y - gold.y) <= (NEAR_CONTROL if control else NEAR)


def matches(
    said: Step | None, gold: Step, elements: Sequence[Sequence[float]], control: bool = False
) -> tuple[bool, bool]:
    """(same kind, exactly right)."""
    if said is None or said.kind != gold.kind:
        return False, False
    if gold.kind in ("click", "long press"):
        return True, hits(said, gold, elements, control=control)
    if gold.kind == "type":
        a, b = said.detail.lower().strip(), gold.detail.lower().strip()
        return True, a in b or b in a
    return True, said.detail == gold.detail


def rule(reply: Reply, truth: Step, sample: Sample, *, official: bool = False) -> Grade:
    """Exact match: the same kind of action, and a tap within an element (enlarged 1.2 times) that holds the gold point
    or within 0.14 of the screen of it, the same direction, button, or text contained either way. The kind alone is
    in `type_match`.

    official: CoAT's released script, which compares every tap with the corner (0, 0).
    """
    control = bool(sample.meta.get("control"))
    if official and not control:
        return _official(reply, truth, sample)
    said = said_step(reply)
    elements = _elements(sample, reply.sizes[0][0] if reply.sizes else Size(1, 1))
    same, exact = matches(said, truth, elements, control)
    return Grade(
        float(exact), None if said is None else {"type_match": same, "kind": said.kind, "gold": truth.kind}
    )


def _elements(sample: Sample, size: Size) -> list[list[float]]:
    """In parts of the screen; AITZ has pixels, which its readers divide."""
    boxes: list[list[float]] = sample.meta["elements"]
    if any(v > 1 for b in boxes for v in b):
        height, width = size
        return [[b[0] / height, b[1] / width, b[2] / height, b[3] / width] for b in boxes]
    return boxes


def coat_click(box: Sequence[float], gold: tuple[float, float], elements: Sequence[Sequence[float]]) -> bool:
    """CoAT's test of a tap: the gold point in the said box enlarged 1.2 times, or both in elements that overlap by more
    than half. Pixels; elements are [y, x, height, width].

    Source: IMNearth/CoAT @9ab1a9f coat/evaluate.py. Its caller fills `gold` for swipes alone: for taps it is (0, 0).
    """

    def grown(x1: float, y1: float, x2: float, y2: float) -> tuple[float, ...]:
        cx, cy, w, h = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) * ENLARGED, (y2 - y1) * ENLARGED
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2

    said = grown(*map(float, box))
    if said[0] <= gold[0] <= said[2] and said[1] <= gold[1] <= said[3]:
        return True
    around = [grown(x, y, x + w, y + h) for y, x, h, w in elements]
    return any(e[0] <= gold[0] <= e[2] and e[1] <= gold[1] <= e[3] and iou(said, e) > 0.5 for e in around)


def _official(reply: Reply, truth: Step, sample: Sample) -> Grade:
    said = said_step(reply)
    box: Sequence[float] | None = None
    if said is None:
        found = [p for p in places.places(reply) if isinstance(p, Box)] if reply.sizes else []
        box = tuple(found[0].rect) if found else None
        said = Step("click") if found else None
    elif said.kind == "click":
        height, width = reply.sizes[0][0]
        box = (said.x * width, said.y * height) * 2
    if said is None or said.kind != truth.kind:
        return Grade(
            0.0, None if said is None else {"type_match": False, "kind": said.kind, "gold": truth.kind}
        )
    if truth.kind == "click":
        assert box is not None
        exact = coat_click(box, (0.0, 0.0), sample.meta["elements"])
    elif truth.kind == "type":
        a, b = said.detail, truth.detail
        exact = a in b or b in a or ratio(a, b) > 0.8
    else:
        exact = said.detail == truth.detail
    return Grade(float(exact), {"type_match": True, "kind": said.kind, "gold": truth.kind})


def ratio(a: str, b: str) -> float:
    """Levenshtein.ratio: 2 · longest common subsequence / both lengths."""
    total = len(a) + len(b)
    return 2 * common(a, b) / total if total else 1.0


def common(a: str, b: str) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for c in a:
        before = 0
        for j, d in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if c == d else max(row[j], row[j - 1])
    return row[-1]


def step_truth(answer: Any, sample: Sample) -> Step:
    boxes = sample.meta["elements"]
    if not isinstance(boxes, list) or not all(_is_box(b) for b in boxes):
        raise ValueError("ui_positions holds what is no [y, x, height, width]")
    return gold_step(answer)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(v, int | float) for v in value)


GOLD = ("result_action_type", "result_action_text", "result_touch_yx", "result_lift_yx")


def read(path: Path, split: str) -> list[Sample]:
    """One JSON an episode, a list of steps, in folders as the archive has them; screenshots beside each."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*.json"))
    return [s for file in files for s in _episode(file, path if path.is_dir() else file.parent)]


def _episode(file: Path, root: Path, control: bool = False) -> Iterator[Sample]:
    history: list[str] = []
    for i, row in enumerate(readers.read_json(file)):
        where = f"{file}[{i}]"
        step = int(readers.field(row, "step_id", where))
        episode = str(readers.field(row, "episode_id", where))
        boxes = readers.field(row, "ui_positions", where)
        low = row.get("low_instruction", "")
        yield Sample(
            id=f"{episode}-{step}",
            media=(_screenshot(readers.field(row, "image_path", where), file, root, where),),
            question=readers.field(row, "instruction", where),
            answer={name: readers.field(row, name, where) for name in GOLD},
            stratum=str(row.get("subset") or str(row["image_path"]).split("/")[0]),
            cluster=episode,
            meta={
                "elements": json.loads(boxes) if isinstance(boxes, str) else boxes, "history": tuple(history),
                "episode": episode, "step": step, "control": control, "low": low,
            },
            where=where,
        )  # fmt: skip
        history.append(str(row.get("coat_action_desc") or _told(row)))


def _told(row: dict[str, Any]) -> str:
    step = gold_step(row)
    return " ".join(t for t in (step.kind, step.detail) if t)


def _screenshot(name: str, file: Path, root: Path, where: str) -> str:
    places_ = (root / name, root.parent / name, file.parent / Path(name).name)
    found = next((p for p in places_ if p.is_file()), None)
    if found is None:
        raise SampleError(f"{where}: there is no screenshot {places_[0]}")
    return str(found)


def prompt(sample: Sample, generation: str) -> str:
    """The query and the earlier actions in words, no earlier screenshots.

    Source: OpenBMB/AgentCPM-GUI @acbaf50 eval/run_predict_qwen2_5VL.py.
    """
    told = "".join(f"Step {i}: {h.strip()}; " for i, h in enumerate(sample.meta["history"], 1))
    low = f"\nCurrent step query: {sample.meta['low']}" if sample.meta["low"] else ""
    done = f"Task progress (You have done the following operation on the current device): {told}"
    return f"The user query:  {sample.question} {low}\n{done}"


def figures(rows: Rows) -> dict[str, float]:
    """Exact and type match of all steps and by kind of the gold action; episodes done; how far they went."""
    out = {
        "exact match": mean(g.score for _, g in rows),
        "type match": mean(float(bool(g.parsed and g.parsed["type_match"])) for _, g in rows),
        "without an action": mean(float(g.parsed is None) for _, g in rows),
    }
    kinds: dict[str, list[float]] = defaultdict(list)
    episodes: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for sample, grade in rows:
        kinds[gold_step(sample.answer).kind].append(grade.score)
        episodes[sample.meta["episode"]].append((sample.meta["step"], grade.score))
    out |= {f"exact match of {kind}": mean(scores) for kind, scores in kinds.items()}
    done = [[score for _, score in sorted(steps)] for steps in episodes.values()]
    out["success rate"] = mean(float(all(steps)) for steps in done)
    out["goal progress"] = mean(
        (steps.index(0.0) if 0.0 in steps else len(steps)) / len(steps) for steps in done
    )
    return out


SETTINGS = {QWEN3_VL.name: replace(QWEN3_SAMPLED, max_tokens=512), "*": replace(GREEDY, max_tokens=512)}

AITZ = Benchmark(
    name="aitz",
    title="AITZ: the next action on an Android screen",
    files=Files(
        where="github.com/IMNearth/CoAT (links to the archive, about 2.6 GB)",
        licence="Apache-2.0 (code); data as Android in the Wild: CC BY 4.0",
        layout="one JSON an episode: [{episode_id, step_id, instruction, image_path, result_action_type, "
        "result_touch_yx and result_lift_yx (text of [y, x], 0 to 1), result_action_text, ui_positions (text of "
        "[y, x, height, width] in pixels), coat_action_desc, ...}]; screenshots by image_path",
        seen="IMNearth/CoAT @9ab1a9f0e76581c50c84f8ebc6ada1a2084a0c71: data-example/GOOGLE_APPS-523638528775825151",
        items={"test": 4724},
    ),
    read=read,
    prompt=prompt,
    system=screen_system("mobile_use"),
    scorer=Scorer(name="aitz", rule=rule, truth=step_truth, needs_family=True),
    settings=SETTINGS,
    figures=figures,
    faults=(
        "the gold point is filled in the swipe branch alone, so that every tap is compared with (0, 0): a perfect tap "
        "fails, a tap in the corner passes",
    ),
    pitfalls=(
        "Qwen's 81.9 for the 7B hasn't been repeated: 57.6 and 55.7 were measured by others. Its scorer needs a file "
        "of boxes that was never released; take this figure as qvl's own, by the rule above",
    ),
)  # fmt: skip


def read_control(path: Path, split: str) -> list[Sample]:
    """The JSON of episodes that AgentCPM-GUI's converter writes from the TFRecord shards, and its screenshots."""
    files = [path] if path.is_file() else sorted(path.rglob("*.json"))
    samples = [
        s for file in files for s in _episode(file, path if path.is_dir() else file.parent, control=True)
    ]
    return samples if split == "low" else [replace(s, meta={**s.meta, "low": ""}) for s in samples]


ANDROID_CONTROL = replace(
    AITZ,
    name="android_control",
    title="Android Control: the next action, from the goal alone (high) or with the step's instruction (low)",
    files=Files(
        where="the TFRecord shards of google-research/android_control (47 GB), converted by eval/eval_data/"
        "process_ac.py of OpenBMB/AgentCPM-GUI, which needs TensorFlow",
        licence="Apache-2.0",
        layout="one JSON an episode: fields as AITZ, with ui_positions in parts of the screen, image_width, "
        "image_height, low_instruction",
        seen="OpenBMB/AgentCPM-GUI @acbaf509b8afb3f58b782486f4e8c0e33d8a486b: eval/eval_data/process_ac.py",
    ),
    read=read_control,
    splits=("high", "low"),
    scorer=Scorer(name="android_control", rule=rule, truth=step_truth, needs_family=True),
    faults=(),
    pitfalls=(
        "papers score different parts of the test set, often 500 episodes",
        "the README's 66.4/84.4 for Qwen2-VL-72B are another model's; its paper says 59.1/59.2",
        "a tap counts within 0.04 of the screen, or in one of the five nearest elements",
    ),
)  # fmt: skip
