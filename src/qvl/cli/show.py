"""Formats answers and parsed results for the terminal and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qvl.inputs.image import load_image
from qvl.outputs.actions import ActionResult, describe
from qvl.outputs.blocks import Page
from qvl.outputs.boxes import Box, Point, Quad
from qvl.outputs.draw import save
from qvl.outputs.export import to_markdown
from qvl.records import pick, printable
from qvl.tasks.run import draw_result
from qvl.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from qvl.backends.answer import Answer
    from qvl.backends.base import Stream
    from qvl.tasks.run import TaskAnswer


def terminal_safe(text: str) -> str:
    """An answer as a terminal may see it: what an image made the model write must not steer the terminal."""
    return printable(text)


def print_stream(stream: Stream, show_thinking: bool, quiet: bool) -> Answer:
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
            out.write(text)
            out.flush()
    answer = stream.finish()
    if thinking:
        end_thoughts()
    if not quiet:
        sys.stdout.write("\n")
    return answer


def print_notes(answer: Answer) -> None:
    """To stderr: what is doubtful about an answer."""
    for note in answer.notes:
        print(f"note: {note}", file=sys.stderr)
    if (cut := cut_note(answer)) is not None:
        print(cut, file=sys.stderr)


def cut_note(answer: Answer) -> str | None:
    """What to say of an answer that isn't whole."""
    if answer.reasoning and not answer.text.strip():
        return "(the model still thought when it was cut; --max-new-tokens)"
    if answer.finish_reason == "length":
        return f"(cut after {answer.completion_tokens} tokens; --max-new-tokens)"
    return None


def print_doubts(found: TaskAnswer[Any], more: tuple[str, ...] = ()) -> None:
    """To stderr: doubts, repairs, and why there is nothing."""
    for line in (*found.all_warnings, *more):
        print(f"note: {line}", file=sys.stderr)
    for line in found.result.repairs:
        print(f"repaired: {line}", file=sys.stderr)
    if found.reason is not None:
        said = terminal_safe(" ".join(found.answer.text.split()))
        words = f"; the answer was: {said[:200]}{'…' if len(said) > 200 else ''}" if said else ""
        print(f"nothing found: {found.reason}{words}", file=sys.stderr)


def found_text(found: TaskAnswer[Any]) -> str:
    """What was found, one thing a line (a page as Markdown), safe for a terminal."""
    result = found.result
    if isinstance(result, Page):
        return terminal_safe(to_markdown([result]).rstrip("\n"))
    if isinstance(result, ActionResult):
        return terminal_safe("\n".join(map(describe, result.items)))
    return terminal_safe("\n".join(map(_found_line, result)))


def _found_line(item: Any) -> str:
    numbers: Sequence[float]
    if isinstance(item, Box):
        numbers, label = item.rect, item.label or item.text
    elif isinstance(item, Point):
        return f"{item.x:.1f} {item.y:.1f}  {item.label or item.text}".rstrip()
    elif isinstance(item, Quad):
        numbers, label = [v for corner in item.corners for v in corner], item.label or item.text
    else:
        return f"{item.start:.2f} {item.end:.2f}  {item.text}".rstrip()
    return f"{' '.join(f'{v:.1f}' for v in numbers)}  {label}".rstrip()


def draw_to(found: TaskAnswer[Any], image: str, path: str) -> tuple[str, ...]:
    """Draws what was found onto the image; returns what couldn't be drawn. Raises: OutputError."""
    drawing = draw_result(found, load_image(image))
    save(drawing, path)
    return drawing.notes


def answer_dict(model: str, answer: Answer, load_s: float, peak_bytes: int | None) -> dict[str, Any]:
    """The answer as one JSON object; sizes are (height, width) in pixels."""
    return pick(
        answer,
        "answer=text", "reasoning", "finish_reason", "prompt_tokens", "visual_tokens", "completion_tokens",
        model=model,
        seconds={"load": round(load_s, 4)} | {name: round(s, 4) for name, s in answer.seconds.items()},
        decode_tokens_per_s=answer.decode_tokens_per_s and round(answer.decode_tokens_per_s, 2),
        peak_memory_bytes=peak_bytes,
        cost=answer.cost and pick(answer.cost, "amount", "currency"),
        media=[pick(size, "kind", "original", "seen", "visual_tokens") for size in answer.media],
    )  # fmt: skip


def statistics(answer: Answer, load_s: float, peak_bytes: int | None) -> str:
    """Two lines for people, and a third for what was paid; a server tells less than our own engine."""
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
