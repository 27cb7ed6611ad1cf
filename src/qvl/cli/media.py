"""Reads media, a question and output files from the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qvl.backends.answer import media_item
from qvl.errors import PromptError
from qvl.inputs.image import DEFAULT_LIMITS, load_image, read_source
from qvl.outputs.draw import ENDINGS


def split_words(words: list[str], question_needed: bool = True) -> tuple[list[str], str]:
    """(media, question): the last word is the question. Raises: PromptError when it is missing or a file."""
    usage = 'qvl ask MEDIA... "QUESTION", the question last and in quotes'
    if not words or not words[-1].strip():
        raise PromptError(f"no question; {usage}")
    *names, question = words
    if not question_needed and is_media_name(question):
        return list(words), ""
    if is_media_name(question) or (len(question) < 256 and Path(question).is_file()):
        raise PromptError(f"no question after {question}; {usage}")
    return names, question


def is_media_name(word: str) -> bool:
    """Whether a word without spaces ends like an image or a video."""
    images = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
    return not any(map(str.isspace, word)) and (
        word.lower().endswith(images) or media_item(word)["type"] == "video"
    )


def open_media(name: str) -> Any:
    """A decoded image, or a video's name after a look that it can be read. Raises: MediaError."""
    if media_item(name)["type"] == "image":
        return load_image(name)
    read_source(name, "video", DEFAULT_LIMITS.max_bytes)
    return name


def check_writable(path: str | None, *, drawing: bool = False) -> None:
    """Told before an hour of asking, not after it. Raises: PromptError when a file can't be written there."""
    if path is None:
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise PromptError(f"{path}: there is no folder {folder}")
    if Path(path).is_dir():
        raise PromptError(f"{path}: is a folder, a file is needed")
    if not os.access(folder, os.W_OK):
        raise PromptError(f"{path}: no permission to write in the folder {folder}")
    if drawing and Path(path).suffix.lower() not in ENDINGS:
        raise PromptError(f"{path}: the name of a drawing must end in {', '.join(ENDINGS)}")
