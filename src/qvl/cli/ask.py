"""`qvl ask MEDIA... "QUESTION"`: the answer streams to stdout, and nothing else does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qvl.backends.answer import Answer
    from qvl.backends.base import Stream
    from qvl.outputs.mapping import Rect
    from qvl.tasks.model import Model
    from qvl.tasks.prompts import Task
    from qvl.tasks.retry import Retry
    from qvl.tasks.run import TaskAnswer

# Options that every verb with a model shares
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="A checkpoint folder, a hub id, mini (the embedded one), a hosted model such as qwen-vl-max, or a "
        "server's address. With --endpoint: the served model's name.",
        metavar="PATH|HUB_ID|mini|NAME|URL",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="int8 or int4: the weights are made so as they are read; left out: as stored.",
        metavar="int8|int4",
    ),
]
EndpointOption = Annotated[
    str | None, typer.Option(help="An OpenAI-compatible server in place of this machine.", metavar="URL")
]
FamilyOption = Annotated[
    str | None, typer.Option(help="Of the served model, where its name doesn't tell.", metavar="qwen2_5_vl|…")
]
KeyOption = Annotated[
    str | None,
    typer.Option(help="The environment variable with the server's key.", metavar="NAME"),
]
HighResolutionOption = Annotated[
    bool, typer.Option("--high-resolution", help="Alibaba Model Studio's switch for large pictures.")
]
RegionOption = Annotated[
    str | None,
    typer.Option(
        help="Of Alibaba Model Studio; the key belongs to it.", metavar="beijing|singapore|virginia"
    ),
]
SpendOption = Annotated[
    str | None,
    typer.Option(help="No call that could bring the sum above this is made.", metavar="0.50|$2|3CNY"),
]
PricesOption = Annotated[
    str | None, typer.Option(help="Prices of your own, as for qvl cost.", metavar="FILE.toml")
]
RetryOption = Annotated[
    str | None,
    typer.Option(
        help="What to do with a reply that repeats itself without end: nothing but stop it, draw it anew (seed), or "
        "then ask about the halves of the picture too (crop).",
        metavar="no|seed|crop",
    ),
]
ThinkingOption = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking",
        help="For models that can do both; left out: as the model does by default.",
    ),
]


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='MEDIA... "QUESTION"', help="Pictures and clips, then the question, in quotes."
        ),
    ] = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    endpoint: EndpointOption = None,
    family: FamilyOption = None,
    api_key_env: KeyOption = None,
    high_resolution: HighResolutionOption = False,
    region: RegionOption = None,
    max_spend: SpendOption = None,
    prices: PricesOption = None,
    thinking: ThinkingOption = None,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="Boxes and points, in pixels of the picture.")
    ] = False,
    document: Annotated[bool, typer.Option("--document", help="The page, as Markdown.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Times in the clip, in seconds.")] = False,
    actions: Annotated[
        bool, typer.Option("--actions", help="What to do on this screenshot; nothing is done.")
    ] = False,
    phone: Annotated[bool, typer.Option("--phone", help="--actions on a phone, not a computer.")] = False,
    retry: RetryOption = None,
    draw: Annotated[
        str | None, typer.Option(help="The picture with what was found, to this file.", metavar="OUT.png")
    ] = None,
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
    show_thinking: Annotated[
        bool, typer.Option("--show-thinking", help="What a thinking model thinks first, to stderr.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Tokens, seconds and memory, to stderr.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object in place of the text.")] = False,
) -> int:
    """Ask a model about pictures or clips."""
    task = _one_task(boxes=boxes, document=document, events=events, actions=actions)
    _check_options(task, draw=draw, phone=phone, system=system)
    check_out(draw, drawing=True)
    retried = None if retry is None else _check_retry(retry)
    names, question = split_words(words or [], question_needed=task != "document")
    media = [open_media(name) for name in names]  # before torch is imported: a bad file is told at once

    import time

    began = time.perf_counter()
    backend = open_model(
        model, endpoint, weights=weights, family=family, api_key_env=api_key_env, high_resolution=high_resolution,
        region=region, max_spend=max_spend, prices=prices, mapped=True,
    )  # fmt: skip
    load_s = time.perf_counter() - began
    if not backend.can.local:
        media = list(names)  # a server gets the files as they are
    settings: dict[str, Any] = dict(
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, max_pixels=max_pixels, fps=fps,
        thinking=thinking,
    )  # fmt: skip
    if task is None:
        if retried is None:
            answer = _ask_streaming(
                backend.stream(media, question, system=system, **settings), show_thinking, as_json
            )
        else:
            answer, notes = _ask_watched(backend, media, question, system, retried, settings)
            if show_thinking and answer.reasoning:
                print(showable(answer.reasoning), file=sys.stderr)
            if not as_json:
                print(showable(answer.text) if sys.stdout.isatty() else answer.text)
            for line in notes:
                print(f"note: {line}", file=sys.stderr)
        peak_bytes = backend.peak_memory_bytes
        if as_json:
            _print_json(described(backend.name, answer, load_s, peak_bytes))
        else:
            _tell_doubts(answer)
        if stats:
            print(statistics(answer, load_s, peak_bytes), file=sys.stderr)
        return 0

    from qvl.tasks.run import run_task

    tool: Any = "mobile_use" if phone else "computer_use"
    found = run_task(
        backend,
        task,
        media,
        question,
        tool=tool,
        retry=retried or "seed",
        **{k: v for k, v in settings.items() if v is not None},
    )
    peak_bytes = backend.peak_memory_bytes
    if as_json:
        described_all = described(backend.name, found.answer, load_s, peak_bytes)
        _print_json(described_all | {"found": found.to_dict()})
    elif text := found_text(found):
        print(text)
    tell(found, () if draw is None else draw_to(found, names[0], draw))
    if show_thinking and found.answer.reasoning:
        print(showable(found.answer.reasoning), file=sys.stderr)
    if stats:
        print(statistics(found.answer, load_s, peak_bytes), file=sys.stderr)
    return 0 if found.reason is None else 1


def _ask_streaming(stream: Stream, show_thinking: bool, quiet: bool) -> Answer:
    """The answer to stdout as it comes, unless quiet; thoughts to stderr when they are wanted."""

    def end_thoughts() -> None:  # before the answer, which on a terminal would go on in their line
        sys.stderr.write("\n")
        sys.stderr.flush()

    thinking = False
    for text, thought in stream.pieces():
        if thinking and not thought:
            end_thoughts()
        thinking = thought and show_thinking
        out = sys.stderr if thought else sys.stdout
        if show_thinking if thought else not quiet:
            out.write(showable(text) if out.isatty() else text)
            out.flush()
    answer = stream.finish()
    if thinking:
        end_thoughts()
    if not quiet:
        sys.stdout.write("\n")
    return answer


def _tell_doubts(answer: Answer) -> None:
    for note in answer.notes:
        print(f"note: {note}", file=sys.stderr)
    if (cut := how_cut(answer)) is not None:
        print(cut, file=sys.stderr)


def how_cut(answer: Answer) -> str | None:
    """What to say of an answer that isn't whole."""
    if answer.reasoning and not answer.text.strip():
        return "(the model still thought when it was cut; --max-new-tokens)"
    if answer.finish_reason == "length":
        return f"(cut after {answer.completion_tokens} tokens; --max-new-tokens)"
    return None


def _check_retry(name: str) -> Retry:
    from qvl.tasks.retry import check_retry

    return check_retry(name)


def _ask_watched(
    backend: Model,
    media: list[Any],
    question: str,
    system: str | None,
    retry: Retry,
    settings: dict[str, Any],
) -> tuple[Answer, tuple[str, ...]]:
    """(the answer, why earlier tries were stopped). Only a single picture is cut."""
    from qvl.backends.answer import media_item
    from qvl.geometry import Size
    from qvl.inputs.image import load_image
    from qvl.tasks.retry import ask_watched
    from qvl.tasks.run import cut

    single = retry == "crop" and len(media) == 1 and media_item(media[0])["type"] == "image"
    image = load_image(media[0]) if single else None

    def ask(crop: Rect | None, drawn: dict[str, Any]) -> Stream:
        shown = media if crop is None or image is None else [cut(image, crop)]
        return backend.stream(shown, question, system=system, **(settings | drawn))

    size = None if image is None else Size(image.height, image.width)
    watched = ask_watched(ask, retry=retry, size=size)
    return watched.answer, watched.notes


def _one_task(**asked: bool) -> Task | None:
    chosen = [name for name, on in asked.items() if on]
    if len(chosen) > 1:
        from qvl.errors import PromptError

        raise PromptError(f"--{' and --'.join(chosen)} exclude each other: ask once for each")
    return chosen[0] if chosen else None  # type: ignore[return-value]


def _check_options(task: Task | None, *, draw: str | None, phone: bool, system: str | None) -> None:
    from qvl.errors import PromptError

    if draw is not None and task not in ("boxes", "document", "actions"):
        raise PromptError("--draw needs something with a place: --boxes, --document or --actions")
    if phone and task != "actions":
        raise PromptError("--phone goes with --actions")
    if system is not None and task is not None:
        raise PromptError(f"--system can't go with --{task}, which brings the prompt it needs")


def open_model(
    model: str | None,
    endpoint: str | None,
    family: str | None = None,
    api_key_env: str | None = None,
    high_resolution: bool = False,
    **options: Any,
) -> Model:
    """The model that the shared options name; options without a value are left out.

    Raises: BackendError for options of a server without one.
    """
    from qvl.tasks.open import open_backend

    options |= {"family": family, "api_key_env": api_key_env, "high_resolution": high_resolution or None}
    given = {name: value for name, value in options.items() if value is not None}
    return open_backend(model, endpoint=endpoint, **given)


def check_out(path: str | None, *, drawing: bool = False) -> None:
    """Told before an hour of asking, not after it. Raises: PromptError when a file can't be written there."""
    import os
    from pathlib import Path

    from qvl.errors import PromptError

    if path is None:
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise PromptError(f"{path}: there is no folder {folder}")
    if Path(path).is_dir():
        raise PromptError(f"{path}: is a folder, a file is needed")
    if not os.access(folder, os.W_OK):
        raise PromptError(f"{path}: nothing may be written in the folder {folder}")
    if drawing:
        from qvl.outputs.draw import ENDINGS

        if Path(path).suffix.lower() not in ENDINGS:
            raise PromptError(f"{path}: a drawing ends in {', '.join(ENDINGS)}")


def draw_to(found: TaskAnswer[Any], picture: str, path: str) -> tuple[str, ...]:
    """Draws what was found onto the picture; returns what couldn't be drawn. Raises: OutputError."""
    from qvl.inputs.image import load_image
    from qvl.outputs.draw import save
    from qvl.tasks.run import draw_result

    drawing = draw_result(found, load_image(picture))
    save(drawing, path)
    return drawing.notes


def tell(found: TaskAnswer[Any], more: tuple[str, ...] = ()) -> None:
    """To stderr: doubts, repairs, and why there is nothing."""
    for line in (*found.all_warnings, *more):
        print(f"note: {line}", file=sys.stderr)
    for line in found.result.repairs:
        print(f"repaired: {line}", file=sys.stderr)
    if found.reason is not None:
        said = showable(" ".join(found.answer.text.split()))
        words = f"; the answer was: {said[:200]}{'…' if len(said) > 200 else ''}" if said else ""
        print(f"nothing found: {found.reason}{words}", file=sys.stderr)


def found_text(found: TaskAnswer[Any]) -> str:
    """What was found, one thing a line (a page as Markdown), safe for a terminal."""
    from qvl.outputs.actions import ActionResult, describe
    from qvl.outputs.blocks import Page
    from qvl.outputs.boxes import Box, Point, Quad
    from qvl.outputs.export import to_markdown

    result = found.result
    if isinstance(result, Page):
        return showable(to_markdown([result]).rstrip("\n"))
    if isinstance(result, ActionResult):
        return showable("\n".join(map(describe, result.items)))
    lines = []
    for item in result:
        if isinstance(item, Box):
            numbers = " ".join(f"{v:.1f}" for v in item.rect)
            lines.append(f"{numbers}  {item.label or item.text}")
        elif isinstance(item, Point):
            lines.append(f"{item.x:.1f} {item.y:.1f}  {item.label or item.text}")
        elif isinstance(item, Quad):
            numbers = " ".join(f"{v:.1f}" for corner in item.corners for v in corner)
            lines.append(f"{numbers}  {item.label or item.text}")
        else:
            lines.append(f"{item.start:.2f} {item.end:.2f}  {item.text}")
    return showable("\n".join(line.rstrip() for line in lines))


def _print_json(data: Any) -> None:
    import json

    print(json.dumps(data, ensure_ascii=False))


def split_words(words: list[str], question_needed: bool = True) -> tuple[list[str], str]:
    """(media, question): the last word is the question. Raises: PromptError when it is missing or a file."""
    from pathlib import Path

    from qvl.errors import PromptError

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


def described(model: str, answer: Answer, load_s: float, peak_bytes: int | None) -> dict[str, Any]:
    """The answer as one JSON object; sizes are (height, width) in pixels."""
    return {
        "model": model,
        "answer": answer.text,
        "reasoning": answer.reasoning,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "visual_tokens": answer.visual_tokens,
        "completion_tokens": answer.completion_tokens,
        "seconds": {"load": round(load_s, 4)} | {name: round(s, 4) for name, s in answer.seconds.items()},
        "decode_tokens_per_s": answer.decode_tokens_per_s and round(answer.decode_tokens_per_s, 2),
        "peak_memory_bytes": peak_bytes,
        "cost": answer.cost and {"amount": answer.cost.amount, "currency": answer.cost.currency},
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


def statistics(answer: Answer, load_s: float, peak_bytes: int | None) -> str:
    """Two lines for people, and a third for what was paid; a server tells less than our own engine."""
    from qvl.units import format_bytes, format_seconds

    phases = {"load": load_s} | {
        k: v for k, v in answer.seconds.items() if k in ("vision", "prefill", "first", "total")
    }
    parts = [f"{name} {format_seconds(s)}" for name, s in phases.items()]
    if answer.decode_tokens_per_s is not None or "decode" in answer.seconds:
        rate = answer.decode_tokens_per_s
        parts.append(f"decode {'-' if rate is None else f'{rate:.1f}'} tok/s")
    if peak_bytes is not None:
        parts.append(f"peak memory {format_bytes(peak_bytes)}")
    paid = "" if answer.cost is None else f"\ncost {answer.cost} by {answer.cost.source}"
    return (
        f"{answer.visual_tokens} visual + {max(0, answer.prompt_tokens - answer.visual_tokens)} text = "
        f"{answer.prompt_tokens} prompt tokens, {answer.completion_tokens} answer tokens, {answer.finish_reason}\n"
        + ", ".join(parts)
        + paid
    )
