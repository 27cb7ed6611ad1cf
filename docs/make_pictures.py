"""Draws docs/images and writes docs/outputs.md's account of them: python docs/make_pictures.py [--model mini]

The verbs are run as a person would run them, on files of examples/, and what they say is set beside the truth that
synth knows, right or wrong. The other images are drawn from known places, with no model.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from qvl.cli.main import main as qvl
from qvl.geometry import Size
from qvl.outputs.actions import parse_actions
from qvl.outputs.boxes import Box
from qvl.outputs.draw import Drawing, DryRun, draw_places
from qvl.outputs.mapping import Rect, iou, picture_map
from qvl.synth import TEST_SEEDS, Sample, make

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- pictures -->", "<!-- /pictures -->"
LANDS = 0.5  # intersection over union from which detection tests count a box as found
SCALE = 3  # synth's images are small; labels are drawn on enlarged ones, to be read here


@dataclass(frozen=True)
class Picture:
    """One entry: the command or the maker, the files it shows (inside docs/), and what is to be said of them."""

    title: str
    files: tuple[str, ...]
    words: str

    def __str__(self) -> str:
        shown = " ".join(f"![{Path(f).stem}]({f})" for f in self.files)
        return f"{self.title}\n\n{shown}\n\n{self.words}\n" if shown else f"{self.title}\n\n{self.words}\n"


def example(name: str) -> Sample:
    """The sample behind a file of examples/, with its truth."""
    spec = importlib.util.spec_from_file_location("make_examples", ROOT / "examples" / "make_examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kind, offset, difficulty = module.EXAMPLES[name]
    return make(kind, TEST_SEEDS[offset], difficulty)


# ------------------------------------------------------------------------------------------------- by a model


def ask(words: Sequence[str], model: str) -> dict[str, Any]:
    """The verb's JSON, or {} when it says nothing on stdout."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        qvl([*words, "--model", model, "--json"])
    text = out.getvalue().strip()
    return dict(json.loads(text)) if text else {}


def command(words: Sequence[str]) -> str:
    return "`qvl " + " ".join(w if w == shlex.quote(w) else f'"{w}"' for w in words) + "`"


def boxes(folder: Path, model: str) -> Picture:
    name = "boxes.png"
    words = ["ask", "--boxes", "--draw", name, "examples/shapes.png", "Locate the red circle"]
    items = ask([*words[:3], str(folder / name), *words[4:]], model).get("found", {}).get("items", [])
    truth = next(b for b in example("shapes.png").boxes if b.label == "red circle")
    said = [[i["x1"], i["y1"], i["x2"], i["y2"]] for i in items if "x2" in i]
    best = max((iou(s, corners(truth)) for s in said), default=0.0)
    told = "; ".join(" ".join(f"{v:.0f}" for v in s) for s in said) or "no box"
    return Picture(
        command(words),
        (f"{folder.name}/{name}",) * bool(items),
        f"It said {told}. The red circle is at {' '.join(map(str, corners(truth)))}: IoU {best:.2f}, "
        f"{'right' if best >= LANDS else 'wrong'}.",
    )


def document(folder: Path, model: str) -> Picture:
    name = "document.png"
    words = ["ask", "--document", "--draw", name, "examples/page.png"]
    found = ask([*words[:3], str(folder / name), *words[4:]], model).get("found", {})
    blocks = [b for b in found.get("blocks", []) if b.get("bbox")]
    truth = example("page.png").boxes
    landed = sum(any(iou(b["bbox"], corners(t)) >= LANDS for b in blocks) for t in truth)
    return Picture(
        command(words),
        (f"{folder.name}/{name}",) * bool(blocks),
        f"It wrote {len(blocks)} blocks with a place. The page has {len(truth)}; {landed} of them have one on them "
        f"(IoU of {LANDS:g} or more).",
    )


def actions(folder: Path, model: str) -> Picture:
    name = "action.png"
    question = "Click the Send news checkbox."
    words = ["ask", "--actions", "--draw", name, "examples/screen.png", question]
    items = ask([*words[:3], str(folder / name), *words[4:]], model).get("found", {}).get("items", [])
    truth = example("screen.png").boxes[0]
    points = [(i["x"], i["y"]) for i in items if "x" in i]
    hit = any(truth.x1 <= x < truth.x2 and truth.y1 <= y < truth.y2 for x, y in points)
    told = "; ".join(f"({x:.0f}, {y:.0f})" for x, y in points) or "no action"
    return Picture(
        command(words),
        (f"{folder.name}/{name}",) * bool(items),
        f"It said {told}. The box to tick is at {' '.join(map(str, corners(truth)))}: "
        f"{'right' if hit else 'wrong'}.",
    )


def moment(folder: Path, model: str) -> Picture:
    words = [
        "find-moment",
        "examples/clip.mp4",
        "the green circle appears",
        "--frames",
        ".",
    ]
    for old in folder.glob("clip-*.png"):
        old.unlink()
    said = ask([*words[:-1], str(folder)], model)
    times = "; ".join(f"{e['start']:.1f} to {e['end']:.1f} s" for e in said.get("items", [])) or "no moment"
    files = tuple(f"{folder.name}/{Path(p).name}" for p in said.get("frames", []))
    truth = example("clip.mp4").answer
    return Picture(
        command(words), files, f"It said {times}; these are the frames there. The truth is: {truth}"
    )


# ------------------------------------------------------------------------------------------------- without a model


def corners(box: Any) -> tuple[int, int, int, int]:
    return box.x1, box.y1, box.x2, box.y2


def enlarged(sample: Sample) -> Image.Image:
    image: Image.Image = sample.media[0]
    return image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.LANCZOS)


def places(sample: Sample, labels: Sequence[str] | None = None) -> list[Box]:
    """The sample's own boxes on the enlarged image."""
    names = labels or [b.label for b in sample.boxes]
    found = []
    for box, name in zip(sample.boxes, names, strict=True):
        at = Rect(*(SCALE * v for v in corners(box)))
        found.append(Box(**at._asdict(), label=name, seen=at, written=tuple(at)))
    return found


def korean_and_chinese() -> Drawing:
    """examples/shapes.png, two labels in Korean and two in Chinese: red, yellow, orange, black circle."""
    sample = example("shapes.png")
    return draw_places(enlarged(sample), places(sample, ["빨간 원", "노란 원", "橙色圆形", "黑色圆形"]))


def on_dark() -> Drawing:
    sample = make("count", TEST_SEEDS[46], 2)
    return draw_places(enlarged(sample), places(sample))


def dry_run() -> Drawing:
    """A reply in Qwen3-VL's form, its places worked out from the screen's own, carried out by the dry-run executor."""
    sample = example("screen.png")
    at = {b.label: corners(b) for b in sample.extra["element_boxes"]}
    image = enlarged(sample)
    side = sample.media[0].size

    def click(label: str) -> dict[str, Any]:
        x1, y1, x2, y2 = at[label]
        return {
            "action": "left_click",
            "coordinate": [round(500 * (x1 + x2) / side[0]), round(500 * (y1 + y2) / side[1])],
        }

    steps = [
        click("Title field"),
        {"action": "type", "text": "Trip"},
        click("Send news checkbox"),
        click("Send button"),
    ]
    calls = [{"name": "computer_use", "arguments": step} for step in steps]
    reply = "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)
    plan = parse_actions(reply, "qwen3_vl", picture_map(Size(image.height, image.width), "qwen3_vl"))
    assert plan.refused is None, plan.refused
    executor = DryRun(image)
    for action in plan.items:
        executor.execute(action)
    return executor.drawing()


KNOWN = {
    "labels.png": (
        korean_and_chinese,
        "Labels in Korean and Chinese, drawn by `draw_places` from the true boxes",
    ),
    "dark.png": (on_dark, "A dark image, drawn by `draw_places` from the true boxes"),
    "dry_run.png": (
        dry_run,
        "Four actions of a reply, shown by the dry-run executor `DryRun`; nothing was done",
    ),
}


def known(folder: Path) -> list[Picture]:
    """Drawn without a model. Where a font is missing the older image stays, and the words say so."""
    found = []
    for name, (draw, title) in KNOWN.items():
        drawing = draw()
        if not drawing.notes or not (folder / name).exists():
            drawing.image.save(folder / name)
        words = "; ".join(drawing.notes) or "No label was left out."
        found.append(Picture(f"{title}.", (f"{folder.name}/{name}",), words))
    return found


# ------------------------------------------------------------------------------------------------- the page


def fingerprint(model: str) -> str:
    """Which weights: the first figures of their SHA-256, for the embedded model and for folders."""
    folder = ROOT / "src" / "qvl" / "mini" if model == "mini" else Path(model)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return model
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in weights)).hexdigest()[:12]
    return f"{model} (weights sha256 {digest})"


def account(folder: Path, model: str) -> str:
    """The part of the page between the marks. Images on which nothing was found are not kept."""
    asked = [make_one(folder, model) for make_one in (boxes, document, actions, moment)]
    shown = {file for picture in asked for file in picture.files}
    for name in ("boxes.png", "document.png", "action.png"):
        if f"{folder.name}/{name}" not in shown:
            (folder / name).unlink(missing_ok=True)
    return "\n".join(
        [
            f"By {fingerprint(model)}, a command each, run with `--json` added so that the script can compare; "
            "nothing is picked.\n",
            *map(str, asked),
            "Without a model:\n",
            *map(str, known(folder)),
        ]
    )


def rewritten(page: str, text: str) -> str:
    """The page with `text` between its marks. Raises: ValueError when a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    model = parser.parse_args().model
    os.chdir(ROOT)
    folder = ROOT / "docs" / "images"
    folder.mkdir(exist_ok=True)
    page = ROOT / "docs" / "outputs.md"
    text = account(folder, model)
    page.write_text(rewritten(page.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
