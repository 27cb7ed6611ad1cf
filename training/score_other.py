"""Scores a model on images that synth didn't draw: clean text by Pillow, photographs, noise.

usage: python training/score_other.py [MODEL] [--photos FOLDER] [-n 100]

Words are right within one edit; lines are by case and face (Pillow's own default face is in no lesson). An image
with nothing to read is answered honestly by "unreadable"; everything else is text made up. Photographs are whole and
in pieces; without a folder of them only Matplotlib's sample is used, in pieces.
"""

from __future__ import annotations

import argparse
import random
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import qvl
from qvl.evaluate.score_synth import wilson
from qvl.synth.read import QUESTIONS

WORDS = (
    "BUS", "PARK", "EXIT", "HOTEL", "TAXI", "SALE", "2026", "4071", "CLOSED", "MENU", "ZONE 5", "FERRY", "Welcome",
    "Platform", "Monday", "Ticket", "Berlin", "Museum", "Airport", "Tuesday", "flour", "sugar", "window seat",
    "breakfast", "library", "thanks", "harvest", "pump", "quick", "jazz",
)  # fmt: skip
GROUNDS = (((0, 0, 0), (255, 255, 255)), ((255, 255, 255), (20, 60, 160)), ((180, 0, 0), (255, 250, 220)))


def edits(a: str, b: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def faces(size: int) -> dict[str, ImageFont.FreeTypeFont]:
    """Two that synth has, and one that no lesson has."""
    folder = Path(str(resources.files("qvl.synth"))) / "fonts"
    named = {name: ImageFont.truetype(folder / f"{name}.ttf", size) for name in ("DejaVuSans", "DejaVuSerif")}
    return {**named, "Pillow's default": ImageFont.load_default(size)}


def word_images(n: int) -> list[tuple[str, str, Image.Image]]:
    """(face, word, image): each word in each face on plain ground, until there are n of each face."""
    out = []
    for i in range(n):
        word, (ink, ground), size = WORDS[i % len(WORDS)], GROUNDS[i % 7 % 3], 18 + i % 5 * 3
        for face, font in faces(size).items():
            x1, y1, x2, y2 = font.getbbox(word)
            image = Image.new("RGB", (int(x2 - x1) + 36, int(y2 - y1) + 34), ground)
            ImageDraw.Draw(image).text((18 - x1, 17 - y1), word, font=font, fill=ink)
            out.append((face, word, image))
    return out


def noises(n: int) -> list[Image.Image]:
    """White, coarse and coloured noise, full and faint."""
    rng = np.random.default_rng(11)
    out = []
    for i in range(n):
        side, cell = 28 * int(rng.integers(4, 9)), (1, 1, 2, 5)[i % 4]
        a = rng.normal(128, rng.uniform(15, 90), (side // cell + 1, side // cell + 1, 3 if i % 2 else 1))
        image = Image.fromarray(np.clip(a, 0, 255).astype(np.uint8).repeat(3 // a.shape[2], 2))
        out.append(
            image.resize((side, side), Image.Resampling.BICUBIC if i % 3 else Image.Resampling.NEAREST)
        )
    return out


def photographs(folder: Path | None, n: int) -> list[Image.Image]:
    """Whole first, then pieces of random places and scales, no larger than what mini is made for."""
    if folder is None:
        import matplotlib

        files = [Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"]
    else:
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    whole = [Image.open(p).convert("RGB") for p in files]
    rng, out = random.Random(5), []
    for i in range(n):
        image = whole[i % len(whole)]
        if i >= len(whole):
            w, h = (int(side * rng.uniform(0.3, 0.9)) for side in image.size)
            x, y = rng.randint(0, image.width - w), rng.randint(0, image.height - h)
            image = image.crop((x, y, x + w, y + h))
        image = image.copy()
        image.thumbnail((252, 252))
        out.append(image)
    return out


def row(name: str, right: int, n: int) -> str:
    low, high = wilson(right, n)
    return f"{name:<34} {n:>5} {right / n:>7.1%}   {low:.1%} - {high:.1%}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?", default="mini")
    p.add_argument("--photos", type=Path)
    p.add_argument("-n", type=int, default=100, help="images of each group")
    p.add_argument("--show", type=int, default=0, help="print so many wrong answers of each group")
    a = p.parse_args()
    model = qvl.load(a.model)
    groups: dict[str, list[bool]] = {}

    def ask(image: Image.Image, i: int) -> str:
        return model.ask([image], QUESTIONS[i % len(QUESTIONS)], max_new_tokens=32).text.strip()

    def note(group: str, right: bool, text: str) -> None:
        wrong = groups.setdefault(group, [])
        if not right and wrong.count(False) < a.show:
            print(f"  {group}: {text}")
        wrong.append(right)

    for i, (face, word, image) in enumerate(word_images(a.n)):
        text = ask(image, i // 3)
        right = edits(text, word) <= 1
        case = "capitals, digits" if word.upper() == word else "lower case"
        for group in (f"words in {face}", f"words in {case}"):
            note(group, right, f"{word} → {text}")
    for group, images in (("photographs", photographs(a.photos, a.n)), ("noise", noises(a.n))):
        for i, image in enumerate(images):
            text = ask(image, i)
            note(f"{group}: unreadable", text.lower().rstrip(".") == "unreadable", text)
    print(f"{a.model}, greedy\n{'group':<34} {'n':>5} {'right':>7}   95% interval")
    for name, results in groups.items():
        print(row(name, sum(results), len(results)))


if __name__ == "__main__":
    main()
