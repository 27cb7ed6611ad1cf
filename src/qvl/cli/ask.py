"""`qvl ask MEDIA... "QUESTION"`: the answer streams to stdout, and nothing else does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qvl.backends.answer import Answer
    from qvl.backends.native import NativeModel


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='MEDIA... "QUESTION"', help="Pictures and clips, then the question, in quotes."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A checkpoint folder, a hub id, or mini.", metavar="PATH|HUB_ID|mini")
    ] = "mini",
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer in tokens.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy; left out: as the checkpoint says.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same answer.")] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Pictures and frames are shrunk to this area.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second taken from clips.")] = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt in place of the checkpoint's.", metavar="TEXT")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Tokens, seconds and memory, to stderr.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object in place of the text.")] = False,
) -> int:
    """Ask a model about pictures or clips."""
    names, question = split_words(words or [])
    media = [open_media(name) for name in names]  # before torch is imported: a bad file is told at once

    import time

    began = time.perf_counter()
    import qvl

    loaded: NativeModel = qvl.load(model)
    load_s = time.perf_counter() - began
    stream = loaded.stream(
        media,
        question,
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        max_pixels=max_pixels,
        fps=fps,
    )
    if not as_json:
        for piece in stream:
            sys.stdout.write(showable(piece) if sys.stdout.isatty() else piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
    answer = stream.finish()
    if as_json:
        import json

        print(json.dumps(described(model, answer, load_s, loaded.peak_memory_bytes), ensure_ascii=False))
    elif answer.finish_reason == "length":
        print(f"(cut after {answer.completion_tokens} tokens; --max-new-tokens)", file=sys.stderr)
    if stats:
        print(statistics(answer, load_s, loaded.peak_memory_bytes), file=sys.stderr)
    return 0


def split_words(words: list[str]) -> tuple[list[str], str]:
    """(media, question): the last word is the question. Raises: PromptError when it is missing or a file."""
    from pathlib import Path

    from qvl.errors import PromptError

    usage = 'qvl ask MEDIA... "QUESTION", the question last and in quotes'
    if not words or not words[-1].strip():
        raise PromptError(f"no question; {usage}")
    *names, question = words
    if is_media_name(question) or (len(question) < 256 and Path(question).is_file()):
        raise PromptError(f"no question after {question}; {usage}")
    return names, question


def is_media_name(word: str) -> bool:
    """Whether a word without spaces ends like a picture or clip."""
    from qvl.backends.answer import media_item

    pictures = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif")
    return not any(map(str.isspace, word)) and (
        word.lower().endswith(pictures) or media_item(word)["type"] == "video"
    )


def open_media(name: str) -> Any:
    """A decoded picture, or a clip's name after a look that it can be read. Raises: MediaError."""
    from qvl.backends.answer import media_item
    from qvl.inputs.image import DEFAULT_LIMITS, load_image, read_source

    if media_item(name)["type"] == "image":
        return load_image(name)
    read_source(name, "video", DEFAULT_LIMITS.max_bytes)
    return name


def showable(text: str) -> str:
    """An answer as a terminal may see it: what a picture made the model write must not steer the terminal."""
    return "".join("�" if c in _STEERING else c for c in text)


# every control character but tab and line feed
_STEERING = frozenset(map(chr, [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)]))


def described(model: str, answer: Answer, load_s: float, peak_bytes: int) -> dict[str, Any]:
    """The answer as one JSON object; sizes are (height, width) in pixels."""
    return {
        "model": model,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "visual_tokens": answer.visual_tokens,
        "completion_tokens": answer.completion_tokens,
        "seconds": {"load": round(load_s, 4)} | {name: round(s, 4) for name, s in answer.seconds.items()},
        "decode_tokens_per_s": answer.decode_tokens_per_s and round(answer.decode_tokens_per_s, 2),
        "peak_memory_bytes": peak_bytes,
        "media": [
            {
                "kind": size.kind,
                "original": list(size.original),
                "seen": list(size.seen),
                "visual_tokens": size.visual_tokens,
            }
            for size in answer.media
        ],
    }


def statistics(answer: Answer, load_s: float, peak_bytes: int) -> str:
    """Two lines for people."""
    from qvl.units import format_bytes, format_seconds

    rate = answer.decode_tokens_per_s
    return (
        f"{answer.visual_tokens} visual + {answer.prompt_tokens - answer.visual_tokens} text = "
        f"{answer.prompt_tokens} prompt tokens, {answer.completion_tokens} answer tokens, {answer.finish_reason}\n"
        f"load {format_seconds(load_s)}, vision {format_seconds(answer.seconds['vision'])}, "
        f"prefill {format_seconds(answer.seconds['prefill'])}, "
        f"decode {'-' if rate is None else f'{rate:.1f}'} tok/s, peak memory {format_bytes(peak_bytes)}"
    )
