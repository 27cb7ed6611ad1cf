"""The words that make each generation answer in a way that this room can read.

Where a model was trained on fixed words (QwenVL HTML, the grounding tags) they are those of its makers' readme
and cookbooks; the others are ours and ask for the format in plain words. Agents' tool schemas are no prompts of
this kind: they belong to the tools that really exist on a screen.
"""

from __future__ import annotations

from typing import Literal

from qvl.errors import OutputError
from qvl.outputs.mapping import check_family

Task = Literal["boxes", "points", "document", "markdown", "text", "events"]


def prompt_for(task: Task, family: str, subject: str = "") -> str:
    """The user text for a task. subject: what to locate or to find in time; not used for documents and text.

    Raises: OutputError where a generation never learnt the task, or a subject is missing.
    """
    known = check_family(family)
    subject = subject.strip()
    if task in ("boxes", "points", "events") and not subject:
        raise OutputError(f"what should be located? {task} needs a subject, such as 'the red circle'")
    if task == "boxes":
        if known == "qwen_vl":
            return f"<ref>{subject}</ref>"
        if known == "qwen2_vl":
            return f"Detect the bounding box of <|object_ref_start|>{subject}<|object_ref_end|>."
        return f"Locate {subject}, report the bbox coordinates in JSON format."
    if task == "points":
        if known in ("qwen_vl", "qwen2_vl"):
            raise OutputError(f"{known} answers with boxes, not points: ask for boxes and take their middle")
        return f"Locate {subject}, report the point coordinates in JSON format."
    if task in ("document", "markdown") and known in ("qwen_vl", "qwen2_vl"):
        raise OutputError(
            f"{known} never learnt documents with layout: take a Qwen2.5-VL or Qwen3-VL model, or the task 'text'"
        )
    if task == "document":  # the cookbook's words end in a blank, and its page comes after them
        return "QwenVL HTML " if known == "qwen2_5_vl" else "qwenvl html"
    if task == "markdown":
        if known == "qwen2_5_vl":
            raise OutputError("qwen2_5_vl writes documents as HTML only: ask for 'document'")
        return "qwenvl markdown"
    if task == "text":
        return "Read all the text in the image."
    if task == "events":
        if known == "qwen_vl":
            raise OutputError("qwen_vl takes images only: videos need Qwen2-VL or later")
        return (
            f"Give the query: '{subject}', when does the described content occur in the video? "
            "Answer with start and end as mm:ss.ff."
        )
    raise OutputError(f"no task is named {task!r}; known: boxes, points, document, markdown, text, events")
