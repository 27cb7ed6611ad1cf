"""ScreenSpot, v2 and Pro: an instruction and a screenshot; the answer's point must lie in the element's box."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from qvl.catalog.generations.qwen3_vl import QWEN3_VL
from qvl.catalog.generations.qwen_vl import QWEN_VL
from qvl.evaluate.benchmarks import readers
from qvl.evaluate.benchmarks.record import (
    GREEDY,
    QWEN3_SAMPLED,
    Benchmark,
    Files,
    Rows,
    Settings,
    by_stratum,
    macro_means,
    mean,
)
from qvl.evaluate.benchmarks.screens import knows_tools, screen_system
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers import places
from qvl.evaluate.scorers.base import Grade, Reply, Scorer
from qvl.outputs.actions import Click, parse_actions
from qvl.outputs.boxes import Box, Point, Quad
from qvl.outputs.mapping import PictureMap

Rect = tuple[float, float, float, float]


def inside(x: float, y: float, box: Rect) -> bool:
    """Edges included, as in likaixin2000/ScreenSpot-Pro-GUI-Grounding @bd8bbbb eval_screenspot_pro.py."""
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def said_point(reply: Reply) -> tuple[float, float] | None:
    """The first click of a tool call, point, or centre of a box, in pixels of the original image."""
    if reply.family and reply.sizes and "<tool_call>" in reply.text:
        screen = PictureMap(*reply.sizes[0])
        for action in parse_actions(reply.text, reply.family, screen).items:
            if isinstance(action, Click):
                return action.x, action.y
    for place in places.places(reply):
        if isinstance(place, Point):
            return place.x, place.y
        if isinstance(place, Box | Quad):
            x1, y1, x2, y2 = place.rect
            return (x1 + x2) / 2, (y1 + y2) / 2
    return None


def seeclick_point(text: str, width: float, height: float) -> tuple[float, float] | None:
    """Tags of the first generation by parts of 1000; else two or four numbers, taken as parts of one.

    Source: njucckevin/SeeClick @0ef37ac pretrain/process_utils.py and screenspot_test.py.
    """
    if "box" in text:
        corners = re.findall(r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>", text)
        if not corners:
            return None
        x1, y1, x2, y2 = (float(v) / 1000 for v in corners[0])
    else:
        numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", text)]
        if len(numbers) not in (2, 4):
            return None
        x1, y1, x2, y2 = numbers if len(numbers) == 4 else numbers * 2
    return (x1 + x2) / 2 * width, (y1 + y2) / 2 * height


def rule(reply: Reply, truth: Rect, sample: Sample, *, official: bool = False) -> Grade:
    """Right when the first click, point or box's centre lies in the element's box, edges included; what the numbers
    mean is the generation's, never guessed. An answer without a place is wrong, and counted.

    official: SeeClick's reading, in which numbers outside tags are parts of one.
    """
    if official:
        height, width = reply.sizes[0][0]
        found = seeclick_point(reply.text, width, height)
    else:
        found = said_point(reply)
    return Grade(0.0) if found is None else Grade(float(inside(*found, truth)), [*found])


def xywh(answer: Any, sample: Sample) -> Rect:
    x, y, w, h = map(float, answer)
    return checked((x, y, x + w, y + h))


def xyxy(answer: Any, sample: Sample) -> Rect:
    x1, y1, x2, y2 = map(float, answer)
    return checked((x1, y1, x2, y2))


def checked(box: Rect) -> Rect:
    if not (box[0] <= box[2] and box[1] <= box[3]):
        raise ValueError(f"{list(box)} is no box: an edge lies before its opposite")
    return box


def prompt(sample: Sample, generation: str) -> str:
    """The instruction alone where the system prompt holds the computer_use tool, as in Qwen's cookbooks and in
    ScreenSpot-Pro's models/qwen2_5vl.py; that file also starts the answer with a click, which a served model can't.
    """
    if generation == QWEN_VL.name:  # SeeClick's words for Qwen-VL
        return f"Generate the bounding box of {sample.question}"
    if knows_tools(generation):
        return sample.question
    return (
        f"In this screenshot, point to the element that this instruction is about: {sample.question}\n"
        "Report its point coordinates in JSON format."
    )


def read(path: Path, split: str) -> list[Sample]:
    """screenspot_{mobile,desktop,web}.json (v2: *_v2.json) beside a folder of screenshots."""
    files = sorted(path.glob("screenspot_*.json")) if path.is_dir() else [path]
    folders = ("screenspot_imgs", "screenspotv2_image", "images", ".")
    return [s for file in files for s in _rows(file, file.parent, folders)]


def read_pro(path: Path, split: str) -> list[Sample]:
    """annotations/*.json beside images/."""
    folder = path / "annotations" if (path / "annotations").is_dir() else path
    files = sorted(folder.glob("*.json")) if folder.is_dir() else [path]
    return [s for file in files for s in _rows(file, file.parent.parent, ("images", "."))]


def _rows(file: Path, base: Path, folders: tuple[str, ...]) -> Iterator[Sample]:
    images = next(base / f for f in folders if (base / f).is_dir())
    platform = file.stem.removeprefix("screenspot_").removesuffix("_v2")
    for i, row in enumerate(readers.read_json(file)):
        where = f"{file}[{i}]"
        image = readers.field(row, "img_filename", where)
        kind = str(row.get("data_type") or readers.field(row, "ui_type", where))
        yield Sample(
            id=str(row.get("id") or f"{file.stem}-{i}"),
            media=(readers.image_file(images, image, where),),
            question=readers.field(row, "instruction", where),
            answer=readers.field(row, "bbox", where),
            stratum=f"{row.get('group') or platform} {kind}",
            cluster=image,
            meta={
                "kind": kind,
                "application": row.get("application", ""),
                "platform": row.get("platform", platform),
            },
            where=where,
        )


def figures(rows: Rows) -> dict[str, float]:
    """Accuracy over all, of text and icons, of each cell, and the share without a place."""
    kinds = {f"{k}": mean(g.score for s, g in rows if s.meta["kind"] == k) for k in ("text", "icon")}
    unread = mean(float(g.parsed is None) for _, g in rows)
    return {
        "accuracy": mean(g.score for _, g in rows),
        **kinds,
        "without a place": unread,
        **by_stratum(rows),
    }


SETTINGS = {QWEN3_VL.name: replace(QWEN3_SAMPLED, max_tokens=256), "*": replace(GREEDY, max_tokens=256)}
_TRAPS = (
    "VLMEvalKit turns an unread answer into (0, 0), divides any number over 1 by the image's size, and takes x + w - 1",
    "lmms-eval guesses xywh or xyxy by whether w > x and h > y, and asks for parts of one, which no generation writes",
    "the prompts behind Qwen's own figures aren't published; ScreenSpot-Pro's script reproduces the 8B and 32B",
)

SCREENSPOT = Benchmark(
    name="screenspot",
    title="ScreenSpot: one element of a screenshot",
    files=Files(
        where="github.com/njucckevin/SeeClick (link to the annotations and screenshots)",
        licence="Apache-2.0; screenshots of third-party software",
        layout="screenspot_{mobile,desktop,web}.json: [{img_filename, instruction, bbox [x, y, w, h], data_type, "
        "data_source}], screenshots in screenspot_imgs/",
        seen="njucckevin/SeeClick @0ef37ac4d7aaf37ba7b990e3e3c3ca77e1fb8f93: pretrain/screenspot_test.py",
        items={"test": 1272},
    ),
    read=read,
    prompt=prompt,
    system=screen_system("computer_use"),
    scorer=Scorer(name="screenspot", rule=rule, truth=xywh, needs_family=True),
    settings=SETTINGS,
    figures=lambda rows: macro_means(rows) | figures(rows),
    faults=("numbers outside tags are read as parts of one, so pixels and parts of 1000 are always wrong there",),
    pitfalls=("the paper averages six cells, others all items: both are printed", *_TRAPS),
)  # fmt: skip

SCREENSPOT_V2 = replace(
    SCREENSPOT,
    name="screenspot_v2",
    title="ScreenSpot-v2: the same with mended labels",
    files=replace(
        SCREENSPOT.files,
        where="hub data set OS-Copilot/ScreenSpot-v2",
        layout="screenspot_{mobile,desktop,web}_v2.json: fields as in v1, screenshots in screenspotv2_image/",
        seen="",
    ),
)  # fmt: skip

SCREENSPOT_PRO = replace(
    SCREENSPOT,
    name="screenspot_pro",
    title="ScreenSpot-Pro: small elements of large professional screens",
    files=Files(
        where="hub data set likaixin/ScreenSpot-Pro",
        licence="MIT; screenshots of third-party software",
        layout="annotations/*.json: [{img_filename, bbox [x1, y1, x2, y2], instruction, id, application, platform, "
        "img_size, ui_type, group}], images/",
        seen="likaixin2000/ScreenSpot-Pro-GUI-Grounding @bd8bbbb470fbc4fda2a4fa9ec90bd2572507794e: "
        "eval_screenspot_pro.py",
        items={"test": 1581},
    ),
    read=read_pro,
    scorer=Scorer(name="screenspot_pro", rule=rule, truth=xyxy, needs_family=True),
    settings={
        QWEN3_VL.name: replace(QWEN3_SAMPLED, max_tokens=256),
        "*": Settings(
            temperature=0.0, max_pixels=99_999_999, max_tokens=256,
            source="ScreenSpot-Pro-GUI-Grounding models/qwen2_5vl.py: screens are not made smaller",
        ),
    },
    figures=figures,
    pitfalls=_TRAPS[2:],
)  # fmt: skip
