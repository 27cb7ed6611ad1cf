"""Fonts that travel with the package, and glyph masks kept per (face, size, character).

Text is set one character at a time on whole pixels, without kerning, so that the box of every glyph is known exactly.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

FONT_FOLDER = Path(__file__).parent / "fonts"
FACES: tuple[str, ...] = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansCondensed",
)
BOLD = {
    "DejaVuSans": "DejaVuSans-Bold",
    "DejaVuSansMono": "DejaVuSansMono-Bold",
    "DejaVuSerif": "DejaVuSerif-Bold",
    "DejaVuSansCondensed": "DejaVuSans-Bold",
}

# Where Linux distributions, macOS and Windows keep fonts with these scripts.
SYSTEM_FONTS: dict[str, tuple[str, ...]] = {
    "ko": (
        "/usr/share/fonts/truetype/nanum/NanumGothic.ttf",
        "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
        "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
        "/usr/share/fonts/truetype/unfonts-core/UnDotum.ttf",
        "/System/Library/Fonts/AppleSDGothicNeo.ttc",
        "C:/Windows/Fonts/malgun.ttf",
    ),
    "zh": (
        "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
        "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
        "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
        "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
        "/usr/share/fonts/truetype/arphic/uming.ttc",
        "/System/Library/Fonts/PingFang.ttc",
        "C:/Windows/Fonts/msyh.ttc",
    ),
}


class GlyphMask(NamedTuple):
    """Ink of one character: coverage 0..255 cut to the ink, None for a space. dx, dy lead from the pen on
    the baseline to the mask's top left corner."""

    mask: Image.Image | None
    dx: int
    dy: int
    advance: int


class Placed(NamedTuple):
    char: str
    mask: Image.Image
    x: int
    y: int
    column: int


class Setting(NamedTuple):
    """A line of text set from pen (0, 0): its glyphs, pen width, and ink box (x1, y1, x2, y2) around the baseline."""

    glyphs: tuple[Placed, ...]
    width: int
    ink: tuple[int, int, int, int]


def system_font(script: str) -> str | None:
    """Path of a font of this machine that has the script, or None."""
    return next((path for path in SYSTEM_FONTS.get(script, ()) if Path(path).is_file()), None)


@lru_cache(maxsize=256)
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    path = str(FONT_FOLDER / f"{face}.ttf") if face in FACES else face
    # Basic layout: raqm is not on every machine and would place glyphs differently.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=32768)
def glyph_mask(face: str, size: int, char: str) -> GlyphMask:
    font = _font(face, size)
    advance = round(font.getlength(char))
    left, top, right, bottom = (int(v) for v in font.getbbox(char, anchor="ls"))
    if right <= left or bottom <= top:
        return GlyphMask(None, 0, 0, advance)
    # Two pixels of margin: the promised box is rounded and may cut the softest edge.
    image = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), char, fill=255, font=font, anchor="ls")
    ink = image.getbbox()
    if ink is None:
        return GlyphMask(None, 0, 0, advance)
    return GlyphMask(image.crop(ink), left - 2 + ink[0], top - 2 + ink[1], advance)


def lacks(face: str, char: str) -> bool:
    """Whether the face has no drawing of its own for a character (it would print nothing, or a box for all such)."""
    mask = glyph_mask(face, 32, char).mask
    absent = glyph_mask(face, 32, chr(0xFFFE)).mask  # a code point that is never a character
    return mask is None or (
        absent is not None and mask.size == absent.size and mask.tobytes() == absent.tobytes()
    )


def set_line(text: str, face: str, size: int, tracking: int = 0) -> Setting:
    """Places the characters side by side, `tracking` more pixels apart. The pen starts so that ink begins at x >= 0."""
    placed: list[Placed] = []
    pen = 0
    x1 = y1 = 1 << 20
    x2 = y2 = -(1 << 20)
    for index, char in enumerate(text):
        mask, dx, dy, advance = glyph_mask(face, size, char)
        if mask is not None:
            if not placed and pen + dx < 0:
                pen = -dx
            x, y = pen + dx, dy
            placed.append(Placed(char, mask, x, y, index))
            x1, y1 = min(x1, x), min(y1, y)
            x2, y2 = max(x2, x + mask.width), max(y2, y + mask.height)
        pen += advance + tracking
    if not placed:
        return Setting((), pen, (0, 0, 0, 0))
    return Setting(tuple(placed), max(pen - tracking, x2), (x1, y1, x2, y2))


def fit_size(text: str, face: str, size: int, max_width: int, tracking: int = 0, smallest: int = 8) -> int:
    """The largest size, at most `size`, at which the line is no wider than max_width (or `smallest`)."""
    while size > smallest and set_line(text, face, size, tracking).width > max_width:
        size -= 1
    return size
