"""OpenAI's Responses: their requests as chat requests, and chat's answers as theirs, whole or as events.

input items         chat messages                 output items
message             role and content              message (output_text)
reasoning           reasoning_content             reasoning (reasoning_text)
function_call       an assistant's tool_calls     function_call
function_call_output    a tool's message
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qvl.errors import QvlError
from qvl.outputs.thinking import Piece
from qvl.serve.problems import Problem, problem_of, to_json, validation_problem
from qvl.serve.schema import ChatRequest, ResponsesRequest
from qvl.serve.tools import Call

if TYPE_CHECKING:
    from qvl.serve.chat import Completion
    from qvl.serve.service import Service

_SAME = """model stream temperature top_p parallel_tool_calls top_k min_p repetition_penalty presence_penalty
frequency_penalty seed stop ignore_eos chat_template_kwargs mm_processor_kwargs""".split()


def chat_request_of(body: ResponsesRequest) -> ChatRequest:
    """Raises: Problem naming what can't be done."""
    chat: dict[str, Any] = {name: getattr(body, name) for name in _SAME}
    chat["messages"] = _messages(body)
    chat["max_completion_tokens"] = body.max_output_tokens
    if body.top_logprobs or "message.output_text.logprobs" in (body.include or ()):
        chat |= {"logprobs": True, "top_logprobs": body.top_logprobs}
    if body.tools:
        chat["tools"] = [_tool(tool) for tool in body.tools]
    choice = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    chat["tool_choice"] = choice
    form = (body.text or {}).get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": {k: v for k, v in form.items() if k != "type"}}
    chat["response_format"] = form
    chat["reasoning_effort"] = (body.reasoning or {}).get("effort")
    try:
        return ChatRequest.model_validate({name: value for name, value in chat.items() if value is not None})
    except ValidationError as e:
        problem = validation_problem(e.errors())
        renamed = str(problem).replace("messages[", "input[")
        param = problem.param and problem.param.replace("messages[", "input[")
        raise Problem(400, renamed, param=param, code=problem.code) from e


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise Problem(
            400,
            f"tools: {tool.get('type')!r} is not supported by this server; known: function",
            param="tools",
            code="unsupported_parameter",
        )
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    thought = ""
    for at, item in enumerate(body.input):
        kind = item.get("type", "message")
        last = messages[-1] if messages else {}
        if kind == "message":
            message = {"role": item.get("role"), "content": _content(item.get("content"))}
            if thought and message["role"] == "assistant":
                message["reasoning_content"], thought = thought, ""
            messages.append(message)
        elif kind == "reasoning":
            parts = item.get("content") or item.get("summary") or []
            thought = "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if last.get("role") == "assistant":
                last.setdefault("tool_calls", []).append(call)
            else:
                begun = {"reasoning_content": thought} if thought else {}
                messages.append({"role": "assistant", "content": None, "tool_calls": [call], **begun})
                thought = ""
        elif kind == "function_call_output":
            content = _content(item.get("output"))
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        else:
            raise Problem(
                400,
                f"input[{at}]: {kind!r} is not supported by this server; known: message, reasoning, function_call, "
                "function_call_output",
                param=f"input[{at}]",
                code="unsupported_parameter",
            )
    return messages


def _content(content: Any) -> Any:
    return [_part(part) for part in content] if isinstance(content, list) else content


def _part(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if kind in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text")}
    if kind == "input_image":
        rest = {k: v for k, v in part.items() if k not in ("type", "image_url", "detail")}
        image = {"url": part.get("image_url"), "detail": part.get("detail")}
        return {"type": "image_url", "image_url": image, **rest}
    return part


# ------------------------------------------------------------------------------------------------- the answer


class ResponsesAnswer:
    """Over a running chat completion of one answer."""

    def __init__(
        self, request: ResponsesRequest, chat: ChatRequest, completion: Completion, service: Service
    ):
        self._request, self._chat, self._completion = request, chat, completion
        self._hide, self._model = service.hide, service.options.model_name
        self._id, self._created = f"resp_{secrets.token_hex(16)}", int(time.time())
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._open = False  # whether the last item still grows

    async def whole(self) -> dict[str, Any]:
        """Raises: QvlError when there is no answer."""
        async for _ in self._events():
            pass
        return self._response(self._status())

    async def pieces(self) -> AsyncIterator[bytes]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        try:
            async for event in self._events():
                yield event
        except QvlError as e:
            error = problem_of(e, self._hide)
            failed = self._response("failed") | {"error": {"code": "server_error", "message": str(error)}}
            yield self._event("response.failed", response=failed)
            return
        status = self._status()
        yield self._event(f"response.{status}", response=self._response(status))

    async def _events(self) -> AsyncIterator[bytes]:
        """The output grows in `self._output`; how, is what comes out."""
        async for _, said, logprobs in self._completion.said():
            for one in said:
                kind = (
                    "function_call"
                    if isinstance(one, Call)
                    else "reasoning"
                    if isinstance(one, Piece)
                    else "message"
                )
                if isinstance(one, Call) and one.goes_on:
                    yield self._more_arguments(one.arguments)
                    continue
                if not self._open or self._output[-1]["type"] != kind or isinstance(one, Call):
                    for event in self._end():
                        yield event
                    for event in self._begin(kind, one):
                        yield event
                if isinstance(one, Call):
                    if one.arguments:
                        yield self._more_arguments(one.arguments)
                    continue
                text = one.text if isinstance(one, Piece) else one
                told = logprobs if kind == "message" else []
                yield self._more_text(kind, text, told)
                logprobs = [] if kind == "message" else logprobs
        for event in self._end():
            yield event

    def _begin(self, kind: str, said: Any) -> list[bytes]:
        self._open = True
        item: dict[str, Any] = {"id": f"{_PREFIX[kind]}_{secrets.token_hex(16)}", "type": kind}
        item["status"] = "in_progress"
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        else:
            item |= {"call_id": said.id, "name": said.name, "arguments": ""}
        self._output.append(item)
        events = [self._of_item("response.output_item.added", item=item)]
        if kind != "function_call":
            part: dict[str, Any] = {"type": _PART[kind], "text": ""}
            part |= {"annotations": [], "logprobs": []} if kind == "message" else {}
            item["content"].append(part)
            events.append(self._of_part("response.content_part.added", part=part))
        return events

    def _more_text(self, kind: str, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        part = self._output[-1]["content"][0]
        part["text"] += text
        if kind == "reasoning":
            return self._of_part("response.reasoning_text.delta", delta=text)
        part["logprobs"] += logprobs
        return self._of_part("response.output_text.delta", delta=text, logprobs=logprobs)

    def _more_arguments(self, text: str) -> bytes:
        self._output[-1]["arguments"] += text
        return self._of_part("response.function_call_arguments.delta", delta=text)

    def _end(self) -> list[bytes]:
        """Of the item that grew."""
        if not self._open:
            return []
        self._open = False
        item = self._output[-1]
        cut = self._completion.choices[0].finish_reason == "length"
        item["status"] = "incomplete" if cut else "completed"
        events = []
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            events.append(self._of_part("response.function_call_arguments.done", **done))
        else:
            part = item["content"][0]
            told = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
            events.append(self._of_part(f"response.{_PART[item['type']]}.done", text=part["text"], **told))
            events.append(self._of_part("response.content_part.done", part=part))
        events.append(self._of_item("response.output_item.done", item=item))
        return events

    def _of_item(self, event: str, **more: Any) -> bytes:
        return self._event(event, output_index=len(self._output) - 1, **more)

    def _of_part(self, event: str, **more: Any) -> bytes:
        item = self._output[-1]
        index = {} if item["type"] == "function_call" else {"content_index": 0}
        return self._of_item(event, item_id=item["id"], **index, **more)

    def _event(self, event: str, **more: Any) -> bytes:
        data = {"type": event, "sequence_number": self._sequence, **more}
        self._sequence += 1
        return b"event: " + event.encode() + b"\ndata: " + to_json(data) + b"\n\n"

    def _status(self) -> str:
        return "incomplete" if self._completion.choices[0].finish_reason == "length" else "completed"

    def _response(self, status: str) -> dict[str, Any]:
        request, chat = self._request, self._chat
        ended = status in ("completed", "incomplete")
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self._model,
            "output": self._output,
            "parallel_tool_calls": chat.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": chat.reasoning_effort, "summary": None},
            "store": False,
            "temperature": chat.temperature,
            "text": request.text or {"format": {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": chat.top_p,
            "truncation": "disabled",
            "usage": self._usage() if ended else None,
            "metadata": {},
        }

    def _usage(self) -> dict[str, Any]:
        usage = self._completion.usage_object()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self._completion.num_thought_tokens},
            "total_tokens": usage["total_tokens"],
        }


_PREFIX = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
_PART = {"message": "output_text", "reasoning": "reasoning_text"}
