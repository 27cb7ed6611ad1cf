"""The request field `qvl_parse`: an answer's text as places, a page, times or actions beside the text itself.

The prompt is left as it was sent: whoever asks for boxes uses the words of the model's family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qvl.errors import OutputError
from qvl.outputs.events import Clip
from qvl.outputs.mapping import PictureMap
from qvl.serve.problems import Problem
from qvl.tasks.run import parse_reply, result_dict

if TYPE_CHECKING:
    from qvl.catalog.generations import Generation
    from qvl.inputs.processor import ModelInputs
    from qvl.serve.schema import ChatRequest


def parser_of(
    request: ChatRequest, inputs: ModelInputs, generation: Generation, model: str
) -> Callable[[str], dict[str, Any]] | None:
    """What turns an answer's text into the extra field; None when it wasn't asked for. model: its own name, which
    tells the embedded one.

    Raises: Problem 400 when the conversation doesn't hold exactly one image to map to (for events: one video).
    """
    task = request.qvl_parse
    if task is None:
        return None
    wanted = "video" if task == "events" else "image"
    kinds = {span.item: span.kind for span in inputs.media}  # a video may be several spans
    if list(kinds.values()) != [wanted]:
        have = ", ".join(kinds.values()) or "none"
        raise Problem(
            400,
            f"qvl_parse {task} needs a conversation with one {wanted}, this one has {have}",
            param="qvl_parse",
            code="invalid_value",
        )
    span = inputs.media[0]
    picture = PictureMap(span.original, span.seen) if wanted == "image" else None
    clip = Clip(duration=span.clip_seconds) if wanted == "video" else None

    def parse(text: str) -> dict[str, Any]:
        try:
            return {"task": task, **result_dict(parse_reply(task, text, generation, picture, clip, model))}
        except OutputError as e:  # frame numbers, which need the file's own rate
            return {"task": task, "items": [], "reason": str(e)}

    return parse
