"""Images that synth doesn't draw: text and shapes by other code, images with nothing to read, clips of many events.

A model that has only ever seen synth's own images reads letters into noise, and stumbles over clean text that
another program drew. Pillow draws these with whatever fonts it finds, as a user's script would.
"""

from __future__ import annotations

import contextlib
import math
import random
import string
from dataclasses import dataclass
from functools import cache
from importlib import import_module, resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from qvl.synth import Clip, chart, clip, field, page, read, scenes, screen, words
from qvl.synth.canvas import COLOURS, SHAPES, Canvas
from qvl.synth.rng import Rng
from qvl.synth.sample import Glyph, ShapeMark

UNREADABLE = "unreadable"
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Asked:
    """A question about an image, its answer, and what an answer's tokens should have looked up.

    `box`: the thing asked for, in pixels. `what`: classes of the kind and the colour asked for, 0 = any.
    `label`: the printed word that leads to the answer. `seconds`: when the thing asked for comes and goes.
    `written`: the coordinates that the answer spells out.
    """

    question: str
    answer: str
    box: tuple[int, int, int, int] | None = None
    what: tuple[int, int] | None = None
    label: str = ""
    seconds: tuple[float, float] | None = None
    written: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """An image or a clip with all questions about it, the sample's own first."""

    kind: str
    media: tuple[Image.Image | Clip, ...]
    asked: tuple[Asked, ...]
    glyphs: tuple[Glyph, ...] = ()
    shapes: tuple[ShapeMark, ...] = ()

    @property
    def question(self) -> str:
        return self.asked[0].question

    @property
    def answer(self) -> str:
        return self.asked[0].answer


# ------------------------------------------------------------------------------------------ text by other code

LATIN_FONTS = ("DejaVu", "Liberation", "FreeSans", "FreeSerif", "FreeMono", "STIXGeneral", "cmr10", "cmss10", "cmtt10",
               "cmb10", "Ubuntu", "NotoSans-", "NotoSerif-", "Roboto")  # fmt: skip


@cache
def font_files() -> tuple[str, ...]:
    """Latin fonts of this machine and of Matplotlib, always with synth's own. Pillow's default is left for tests."""
    folders = [Path(str(resources.files("qvl.synth"))) / "fonts", Path("/usr/share/fonts")]
    with contextlib.suppress(ImportError):
        folders.append(Path(import_module("matplotlib").get_data_path()) / "fonts" / "ttf")
    found = {p.name: str(p) for folder in folders for p in sorted(folder.rglob("*.ttf"))}
    return tuple(
        path
        for name, path in sorted(found.items())
        if name.startswith(LATIN_FONTS) and not name.endswith(("Display.ttf", "Gyre.ttf"))
    )


@cache
def font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


PURE = ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255), (0, 128, 0), (128, 0, 128), (0, 0, 128), (255, 255, 0),
        (128, 128, 128), (211, 211, 211), (255, 165, 0), (0, 128, 128))  # fmt: skip


def _brightness(colour: Colour) -> float:
    return 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2]


def ink_and_ground(rng: random.Random) -> tuple[Colour, Colour]:
    """Two plain colours far enough apart to be read; half the time black on white."""
    if rng.random() < 0.5:
        return (0, 0, 0), (255, 255, 255)
    while True:
        pair = [
            rng.choice(PURE) if rng.random() < 0.6 else tuple(rng.randint(0, 255) for _ in range(3))
            for _ in range(2)
        ]
        if abs(_brightness(pair[0]) - _brightness(pair[1])) > 90:
            return tuple(pair)  # type: ignore[return-value]


def plain_word(rng: random.Random) -> str:
    style = rng.random()
    if style < 0.3:
        return "".join(rng.choice(read.CAPITALS) for _ in range(rng.randint(1, 7)))
    if style < 0.4:
        return "".join(rng.choice(string.digits) for _ in range(rng.randint(1, 7)))
    pool = rng.choice((words.COMMON, words.COMMON, words.ITEMS, words.CITIES, words.NAMES, screen.BUTTONS))
    word = rng.choice(pool)
    if style < 0.7:
        return word.upper()
    return word.capitalize() if style < 0.85 else word.lower()


def plain_text(rng: random.Random) -> Drawing:
    """One word or two on plain ground, set by Pillow with kerning, at a size that the processor then rounds."""
    text = plain_word(rng)
    if rng.random() < 0.2 and len(text) < 6:
        text += " " + plain_word(rng)[:5]
    path = rng.choice(font_files())
    size = rng.randint(16, 34)
    while size > 12 and font(path, size).getlength(text) > 210:
        size -= 1
    f = font(path, size)
    x1, y1, x2, y2 = (int(v) for v in f.getbbox(text))
    margins = [rng.randint(3, 40) for _ in range(4)]
    width, height = max(x2 - x1 + margins[0] + margins[1], 56), max(y2 - y1 + margins[2] + margins[3], 56)
    ink, ground = ink_and_ground(rng)
    image = Image.new("RGB", (width, height), ground)
    at = (margins[0] - x1, margins[2] - y1)
    ImageDraw.Draw(image).text(at, text, font=f, fill=ink)
    w, h = (max(2, round(side / 28)) * 28 for side in image.size)
    image = image.resize((w, h), Image.Resampling.BICUBIC)
    right, down = w / width, h / height
    glyphs = []
    for i, char in enumerate(text):
        if char != " ":
            a, b = (at[0] + f.getlength(text[:k]) for k in (i, i + 1))
            _, top, _, bottom = f.getbbox(char)
            ink_box = (a * right, (at[1] + top) * down, max(b, a + 1) * right, (at[1] + bottom) * down)
            glyphs.append(Glyph(char, *(round(v) for v in ink_box), 0, i))
    return Drawing("plain", (image,), (Asked(rng.choice(read.QUESTIONS), text),), tuple(glyphs))


CSS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
       "orange": (255, 165, 0), "purple": (128, 0, 128), "pink": (255, 192, 203), "black": (0, 0, 0)}  # fmt: skip


def plain_shapes(rng: random.Random) -> Drawing:
    """A few shapes in the names' plain colours with hard edges, sometimes outlined, on white or grey."""
    w, h = 28 * rng.randint(4, 8), 28 * rng.randint(4, 8)
    grey = rng.choice((255, 255, 255, 240, 220))
    image = Image.new("RGB", (w, h), (grey,) * 3)
    pen = ImageDraw.Draw(image)
    marks: list[ShapeMark] = []
    for _ in range(rng.randint(1, 6)):
        size = rng.randint(22, min(w, h, 140) // 2)
        x, y = rng.randint(2, w - size - 3), rng.randint(2, h - size - 3)
        box = (x, y, x + size + 1, y + size + 1)
        if any(
            x < b[2] + 3 and b[0] < box[2] + 3 and y < b[3] + 3 and b[1] < box[3] + 3
            for b in (m.box for m in marks)
        ):
            continue
        kind, colour = rng.choice(tuple(SHAPES)), rng.choice(tuple(COLOURS))
        fill = CSS[colour] if rng.random() < 0.7 else COLOURS[colour]
        outline = (0, 0, 0) if rng.random() < 0.15 and colour != "black" else None
        if kind == "circle":
            pen.ellipse((x, y, x + size, y + size), fill=fill, outline=outline)
        else:
            points = [(x + px * size, y + py * size) for px, py in SHAPES[kind]]
            pen.polygon(points, fill=fill, outline=outline)
            xs, ys = zip(*points)
            box = (math.floor(min(xs)), math.floor(min(ys)), math.ceil(max(xs)) + 1, math.ceil(max(ys)) + 1)
        marks.append(ShapeMark(kind, colour, box))
    return Drawing("shapes", (image,), (), shapes=tuple(marks))


# --------------------------------------------------------------------------------- images with nothing to read


def spectral(rng: np.random.Generator, w: int, h: int, slope: float) -> np.ndarray:
    """Noise whose amplitude falls with frequency as f^-slope: 0 is white, 1 is as photographs have it, 2 is clouds."""
    y, x = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None]
    f = np.maximum(np.hypot(x, y), 1 / max(w, h)) ** -slope
    shared = rng.normal(size=(h, w))
    tint = rng.uniform(0, 1)
    planes = [
        np.fft.irfft2(np.fft.rfft2(shared * (1 - tint) + rng.normal(size=(h, w)) * tint) * f, s=(h, w))
        for _ in range(3)
    ]
    a = np.stack(planes, -1)
    a = (a - a.mean((0, 1))) / (a.std() + 1e-6)
    return 128 + rng.uniform(-60, 60) + rng.uniform(20, 80) * a + rng.uniform(-40, 40, 3)


def leaves(rng: random.Random, w: int, h: int) -> Image.Image:
    """Dead leaves: shapes of all sizes over each other, which have the edges and the spectrum of photographs."""
    image = Image.new("RGB", (w, h), tuple(rng.randint(0, 255) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    base = [rng.randint(30, 220) for _ in range(3)]
    spread = rng.randint(15, 160)
    for _ in range(rng.randint(40, 160)):
        r = min(90.0, 4 / (rng.random() + 0.02) ** 0.8)
        cx, cy = rng.uniform(0, w), rng.uniform(0, h)
        light = rng.randint(-spread, spread)
        fill = tuple(min(255, max(0, b + light + rng.randint(-spread // 3, spread // 3))) for b in base)
        corners = [
            (cx + r * rng.uniform(0.4, 1.2) * math.cos(k), cy + r * rng.uniform(0.4, 1.2) * math.sin(k))
            for k in np.linspace(0, 2 * math.pi, rng.randint(4, 9))[:-1]
        ]
        if rng.random() < 0.4:
            pen.ellipse(
                (cx - r, cy - r * rng.uniform(0.3, 1), cx + r, cy + r * rng.uniform(0.3, 1)), fill=fill
            )
        else:
            pen.polygon(corners, fill=fill)
    return image


def gratings(rng: random.Random, w: int, h: int) -> np.ndarray:
    """Stripes, checks and rings of one to three waves."""
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    a = np.zeros((h, w, 3), np.float32)
    for _ in range(rng.randint(1, 3)):
        angle, period = rng.uniform(0, math.pi), math.exp(rng.uniform(math.log(3), math.log(60)))
        along = x * math.cos(angle) + y * math.sin(angle)
        if rng.random() < 0.25:
            along = np.hypot(x - rng.uniform(0, w), y - rng.uniform(0, h))
        wave = np.sin(along * (2 * math.pi / period) + rng.uniform(0, 6))
        if rng.random() < 0.4:
            wave = np.sign(wave)
        a += wave[..., None] * np.array([rng.uniform(-70, 70) for _ in range(3)], np.float32)
    return a + np.array([rng.uniform(60, 200) for _ in range(3)], np.float32)


def smooth(rng: random.Random, w: int, h: int) -> Image.Image:
    """A gradient or a few soft blobs: a small random grid made large."""
    small = np.random.default_rng(rng.getrandbits(32)).integers(
        0, 256, (rng.randint(2, 5), rng.randint(2, 5), 3)
    )
    return Image.fromarray(small.astype(np.uint8)).resize((w, h), Image.Resampling.BICUBIC)


def patches(rng: random.Random, w: int, h: int) -> Image.Image:
    """Rectangles of random colours over everything."""
    cell = rng.choice((4, 7, 14, 28, 40))
    small = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (-(-h // cell), -(-w // cell), 3))
    if rng.random() < 0.3:
        small[:] = small[..., :1]
    image = Image.fromarray(small.astype(np.uint8)).resize(
        (small.shape[1] * cell, small.shape[0] * cell), Image.Resampling.NEAREST
    )
    return image.crop((0, 0, w, h))


def blurred_text(rng: random.Random, w: int, h: int) -> Image.Image:
    """Text out of focus beyond reading: the blur is wider than the strokes are apart."""
    ink, ground = ink_and_ground(rng)
    image = Image.new("RGB", (w, h), ground)
    pen, y = ImageDraw.Draw(image), rng.randint(0, 12)
    path, size = rng.choice(font_files()), rng.randint(14, 30)
    while y < h - size // 2:
        pen.text(
            (rng.randint(2, 30), y),
            " ".join(plain_word(rng) for _ in range(3)),
            font=font(path, size),
            fill=ink,
        )
        y += round(size * rng.uniform(1.1, 2.5))
    return image.filter(ImageFilter.GaussianBlur(size * rng.uniform(0.3, 0.6)))


def wordless_scene(rng: random.Random, w: int, h: int) -> tuple[Image.Image, tuple[ShapeMark, ...]]:
    """Shapes as synth draws them: there is something to find, but nothing to read."""
    draws = Rng("wordless", rng.getrandbits(48))
    canvas = Canvas(w, h, (rng.randint(215, 255),) * 3)
    things = [
        scenes.Thing(rng.choice(tuple(SHAPES)), rng.choice(tuple(COLOURS))) for _ in range(rng.randint(0, 5))
    ]
    scenes.scatter(canvas, draws, things, (20, 50))
    return canvas.image, tuple(canvas.shapes)


def _reading_questions(rng: random.Random) -> list[str]:
    topics = [q.format(rng.choice(("invoice", "order", "receipt"))) for k in ("total", "date", "number", "name")
              for q in field.QUESTIONS[k]]  # fmt: skip
    return [
        rng.choice(read.QUESTIONS),
        rng.choice(read.QUESTIONS),
        rng.choice(topics),
        rng.choice(chart.VALUE_QUESTIONS).format(rng.choice((*chart.MONTHS, "A", "B", "C"))),
        rng.choice(page.QUESTIONS),
        rng.choice(screen.QUESTIONS["button"]).format(rng.choice(screen.BUTTONS)),
    ]


def _looking_questions(rng: random.Random) -> list[str]:
    kind, colour = rng.choice(tuple(SHAPES)), rng.choice(tuple(COLOURS))
    nouns = ("shapes", scenes.plural(kind), f"{colour} shapes", f"{colour} {scenes.plural(kind)}")
    return [
        rng.choice(scenes.FIND_QUESTIONS).format(f"{colour} {kind}"),
        rng.choice(scenes.COUNT_QUESTIONS).format(rng.choice(nouns)),
    ]


def unreadable(rng: random.Random) -> Drawing:
    """An image about which nothing can be told; every question has the one honest answer."""
    w, h = 28 * rng.randint(3, 9), 28 * rng.randint(3, 9)
    style = rng.choice(("spectral", "spectral", "leaves", "leaves", "gratings", "smooth", "patches", "blur", "scene",
                        "plain"))  # fmt: skip
    numbers = np.random.default_rng(rng.getrandbits(32))
    shapes: tuple[ShapeMark, ...] = ()
    if style == "scene":
        image, shapes = wordless_scene(rng, w, h)
    elif style == "plain":
        image = Image.new("RGB", (w, h), tuple(rng.randint(0, 255) for _ in range(3)))
    elif style in ("spectral", "gratings"):
        a = spectral(numbers, w, h, rng.uniform(0, 2.2)) if style == "spectral" else gratings(rng, w, h)
        image = Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))
    else:
        draw = {"leaves": leaves, "smooth": smooth, "patches": patches, "blur": blurred_text}[style]
        image = draw(rng, w, h)
    if style in ("leaves", "patches", "gratings", "smooth") and rng.random() < 0.5:
        a = np.asarray(image) + numbers.normal(0, rng.uniform(2, 30), (h, w, 1 if rng.random() < 0.5 else 3))
        image = Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))
    if style not in ("scene", "plain") and rng.random() < 0.2:
        image = image.convert("L").convert("RGB")
    # of a scene or an empty sheet one can tell that there are no circles; only reading is refused
    questions = _reading_questions(rng)
    if style not in ("scene", "plain", "smooth"):
        questions += _looking_questions(rng)
    rng.shuffle(questions)
    asked = tuple(Asked(q, UNREADABLE) for q in dict.fromkeys(questions))
    return Drawing("unreadable", (image,), asked, shapes=shapes)


# ---------------------------------------------------------------------------------------- clips of many events


def events(rng: random.Random) -> Drawing:
    """A clip as synth's difficulty 1, but each of its one to three shapes comes and goes, and each is asked for."""
    seconds, side, fps = rng.randint(4, 6), 112, 2
    num_frames = seconds * fps
    draws = Rng("events", rng.getrandbits(48))
    grey = rng.randint(222, 250)
    stage = Canvas(side, side, (grey, grey, grey))
    things = list(
        dict.fromkeys(
            scenes.Thing(rng.choice(tuple(SHAPES)), rng.choice(tuple(COLOURS)))
            for _ in range(rng.randint(1, 3))
        )
    )
    spots = scenes.plan(stage, draws, things, (24, 44), margin=8)
    spans, marks, asked = [], [], []
    for _ in things:
        first = rng.randint(0, num_frames - fps - 1)
        spans.append((first, rng.randint(first + fps, num_frames)))
    frames = np.empty((num_frames, side, side, 3), np.uint8)
    boxes = {}
    fills = [tuple(min(255, max(0, c + rng.randint(-12, 12))) for c in COLOURS[t.colour]) for t in things]
    for t in range(num_frames):
        canvas = Canvas(side, side, stage.paper, picture=t)
        for thing, spot, fill, (first, last) in zip(things, spots, fills, spans):
            if first <= t < last:
                boxes[thing] = canvas.shape(spot.x, spot.y, thing.kind, thing.colour, spot.size, fill)
        marks += canvas.shapes
        frames[t] = np.asarray(canvas.image)
    for thing, (first, last) in zip(things, spans):
        start, end = first / fps, last / fps
        question = rng.choice(clip.QUESTIONS).format(thing.name)
        asked.append(Asked(question, clip.seconds_text(start, end), box=boxes[thing], seconds=(start, end)))
    rng.shuffle(asked)
    return Drawing("events", (Clip(frames, float(fps)),), tuple(asked), shapes=tuple(marks))
