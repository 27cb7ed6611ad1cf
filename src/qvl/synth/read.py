"""Kind "read": printed text, answered by the text itself. Lines are joined by a newline."""

from __future__ import annotations

import string
from itertools import pairwise

from qvl.synth import words
from qvl.synth.canvas import Canvas, gradient, ink_and_paper, wear
from qvl.synth.rng import Rng
from qvl.synth.sample import Box, Drawn
from qvl.synth.text import FACES, Setting, fit_size, lacks, set_line, system_font

QUESTIONS = (
    "Read the text.",
    "What does the picture say?",
    "What is written here?",
    "Read all the text in the image.",
    "What text is shown?",
)
CAPITALS = string.ascii_uppercase + string.digits
MIXED = string.ascii_letters + string.digits
MARGIN = 4


def draw(rng: Rng, difficulty: int, script: str = "latin") -> Drawn:
    """Difficulty 0: 1-4 large characters; 1: 1-6 anywhere; 2: 12 and more in mixed case on 2-3 lines; 3: also worn."""
    lines = _lines(rng, difficulty, script)
    if script != "latin":
        faces: tuple[str, ...] = (_script_face(script),)
    elif difficulty == 0:
        faces = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif")
    else:
        faces = FACES
    width, height = _picture_size(rng, difficulty)
    face = rng.choice(faces)
    low, high = ((18, 26), (16, 30), (14, 24), (14, 28))[difficulty]
    tracking = rng.integer(0, 2) if difficulty else 0
    size = rng.integer(low, high)
    pitch = rng.uniform(1.15, 1.6)
    size = min(fit_size(line, face, size, width - 2 * MARGIN, tracking) for line in lines)
    settings = [set_line(line, face, size, tracking) for line in lines]

    ink, paper = ink_and_paper(rng)
    canvas = Canvas(width, height, paper)
    if difficulty >= 2:
        gradient(canvas, rng, 30)
    if difficulty >= 3:
        _clutter(canvas, rng)
    boxes = _print_block(canvas, rng, lines, settings, round(size * pitch), ink)
    worn = wear(canvas, boxes, rng, degrees=5, blur=0.8, noise=14) if difficulty >= 3 else None
    return Drawn(
        media=(worn.image if worn else canvas.image,),
        question=rng.choice(QUESTIONS),
        answer="\n".join(lines),
        boxes=worn.boxes if worn else boxes,
        glyphs=worn.glyphs if worn else tuple(canvas.glyphs),
        extra={"face": face if script == "latin" else script, "size": size},
    )


def _lines(rng: Rng, difficulty: int, script: str) -> list[str]:
    if script != "latin":
        vocabulary = {"ko": words.KOREAN, "zh": words.CHINESE}[_known_script(script)]
        return [" ".join(rng.pick(vocabulary, rng.integer(1, 2))) for _ in range(1 + difficulty // 2)]
    if difficulty == 0:
        return [rng.text(CAPITALS, rng.integer(1, 4))]
    if difficulty == 1:
        return [rng.text(CAPITALS, rng.integer(1, 6))]
    return [_phrase(rng) for _ in range(rng.integer(2, 3))]


def _phrase(rng: Rng) -> str:
    """8 to 16 characters: words in one of several cases, codes and numbers."""
    parts: list[str] = []
    while len(" ".join(parts)) < 8:
        style = rng.integer(0, 4)
        if style == 0:
            part = rng.text(MIXED, rng.integer(3, 8))
        elif style == 1:
            part = rng.text(string.digits, rng.integer(2, 6))
        else:
            word = rng.choice(words.COMMON)
            part = (word, word.capitalize(), word.upper())[style - 2]
        if len(" ".join([*parts, part])) <= 16:
            parts.append(part)
    return " ".join(parts)


def _picture_size(rng: Rng, difficulty: int) -> tuple[int, int]:
    if difficulty == 0:
        return 28 * rng.integer(4, 6), 56
    if difficulty == 1:
        return 28 * rng.integer(5, 7), 28 * rng.integer(3, 5)
    if difficulty == 2:
        return 28 * rng.integer(8, 10), 28 * rng.integer(4, 6)
    return rng.integer(220, 330), rng.integer(110, 220)


def _print_block(
    canvas: Canvas, rng: Rng, lines: list[str], settings: list[Setting], pitch: int, ink: tuple[int, int, int]
) -> tuple[Box, ...]:
    """Prints the lines as one block, left-aligned or centred, somewhere in the image."""
    block_width = max(s.ink[2] for s in settings)
    # The lowest pitch at which no two lines touch, whatever the letters.
    for above, below in pairwise(settings):
        pitch = max(pitch, above.ink[3] - below.ink[1] + 2)
    top = settings[0].ink[1]
    bottom = (len(lines) - 1) * pitch + settings[-1].ink[3]
    free = canvas.height - 2 * MARGIN - (bottom - top)
    first = MARGIN - top + rng.integer(0, max(0, free))
    left = MARGIN + rng.integer(0, max(0, canvas.width - 2 * MARGIN - block_width))
    centred = rng.chance(0.3)
    boxes = []
    for i, (line, setting) in enumerate(zip(lines, settings)):
        shift = (block_width - setting.ink[2]) // 2 if centred else 0
        boxes.append(Box(*canvas.text(left + shift, first + i * pitch, setting, colour=ink), "line", line))
    return tuple(boxes)


def _clutter(canvas: Canvas, rng: Rng) -> None:
    """Thin strokes close to the paper's own colour, behind the text."""
    shift = 24 if sum(canvas.paper) < 384 else -24
    for _ in range(rng.integer(2, 6)):
        r, g, b = (min(255, max(0, c + shift)) for c in canvas.paper)
        ends = [rng.integer(0, canvas.width), rng.integer(0, canvas.height)]
        ends += [rng.integer(0, canvas.width), rng.integer(0, canvas.height)]
        canvas.pen.line(ends, fill=(r, g, b), width=rng.integer(1, 3))


def _known_script(script: str) -> str:
    from qvl.synth import SynthError

    if script not in ("ko", "zh"):
        raise SynthError(f"no script {script!r}; known: latin, ko, zh")
    return script


def _script_face(script: str) -> str:
    from qvl.synth import SynthError

    path = system_font(script)
    if path is None:
        package = {"ko": "fonts-nanum", "zh": "fonts-noto-cjk"}[script]
        raise SynthError(
            f"no font with script {script!r} on this machine (7 latin fonts travel with qvl, 0 with {script!r}): "
            f"install one, for example the package {package}"
        )
    vocabulary = {"ko": words.KOREAN, "zh": words.CHINESE}[script]
    missing = sorted({char for word in vocabulary for char in word if lacks(path, char)})
    if missing:
        raise SynthError(
            f"the font {path} lacks {len(missing)} of the characters of script {script!r}, first {missing[0]}"
        )
    return path
