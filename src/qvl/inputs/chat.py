r"""A conversation → token ids, with one placeholder for each image or video.

Special tokens of the template are special tokens; the same characters in a message are plain text. Before rendering,
every character of `<`, `>` and `|` that comes from a message is replaced by an unguessable mark; the rendered text is
cut at the marks, and only what lies between them can be a special token:

    words      say <|im_end|>         rendered   …user\nsay ①②im_end②③<|im_end|>…
    encoded    "say <|im_end|>" as letters, then the real <|im_end|>

Single characters and not whole tokens, because two neighbouring messages could each bring half of one.
Words without these characters reach the template unchanged, so its tests and trims work as published.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from qvl.catalog.generations.generation import Generation
from qvl.errors import ConfigError, PromptError, warn_once
from qvl.inputs.sandbox import BoundedEnvironment, bounded
from qvl.inputs.tokenizer import MODEL_WORDS, Tokenizer, read_object
from qvl.records import read_text

log = logging.getLogger(__name__)

Kind = Literal["image", "video"]
Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
_MESSAGE_KEYS = {"role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content"}
# those of qwen-vl-utils, and num_frames
_PIXEL_KEYS = {"min_pixels", "max_pixels", "resized_height", "resized_width"}
_VIDEO_KEYS = _PIXEL_KEYS | set(
    "total_pixels fps nframes num_frames min_frames max_frames sample_fps raw_fps video_start video_end".split()
)
_SOURCE_KEYS: dict[str, Kind] = {
    "image": "image", "image_url": "image", "video": "video", "video_url": "video"
}  # fmt: skip


@dataclass(frozen=True)
class MediaItem:
    """One image or video of a conversation, not yet read. `settings` are the limits written beside it."""

    kind: Kind
    source: Any
    settings: Mapping[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------ reading messages


def read_messages(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[MediaItem]]:
    """Checks a conversation: messages as templates expect them, and its media in prompt order.

    Raises: PromptError naming the message and what is wrong with it.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not messages:
        raise PromptError("a conversation is a list of at least one {'role': …, 'content': …}")
    clean: list[dict[str, Any]] = []
    media: list[MediaItem] = []
    for number, message in enumerate(messages, 1):
        where = f"message {number}"
        if not isinstance(message, Mapping):
            raise PromptError(f"{where}: is a {type(message).__name__}, not {{'role': …, 'content': …}}")
        unknown = sorted(map(str, set(message) - _MESSAGE_KEYS))
        if unknown:
            raise PromptError(f"{where}: unknown {', '.join(unknown)}; known: {_list(_MESSAGE_KEYS)}")
        role = message.get("role")
        if role not in ROLES:
            raise PromptError(f"{where}: role is {role!r}; known: {', '.join(ROLES)}")
        content = message.get("content")
        entry: dict[str, Any] = {"role": role}
        if content is None and message.get("tool_calls"):
            entry["content"] = ""
        elif isinstance(content, str):
            entry["content"] = content
        elif isinstance(content, Sequence) and not isinstance(content, bytes):
            entry["content"] = [
                _read_item(item, f"{where}, item {i}", media) for i, item in enumerate(content, 1)
            ]
        else:
            raise PromptError(
                f"{where}: content is a {type(content).__name__}; a text or a list of items is needed"
            )
        if message.get("tool_calls"):
            if not isinstance(message["tool_calls"], Sequence):
                raise PromptError(
                    f"{where}: tool_calls is a {type(message['tool_calls']).__name__}, not a list"
                )
            entry["tool_calls"] = [_read_call(call, where) for call in message["tool_calls"]]
        for key in ("tool_call_id", "name", "reasoning_content"):
            if message.get(key) is not None:
                if not isinstance(message[key], str):
                    raise PromptError(f"{where}: {key} is a {type(message[key]).__name__}, not a text")
                entry[key] = message[key]
        clean.append(entry)
    return clean, media


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _read_item(item: Any, where: str, media: list[MediaItem]) -> dict[str, Any]:
    if isinstance(item, str):
        return {"type": "text", "text": item}
    if not isinstance(item, Mapping):
        raise PromptError(
            f"{where}: is a {type(item).__name__}, not {{'type': 'text' | 'image' | 'video', …}}"
        )
    kinds = [key for key in ("text", *_SOURCE_KEYS) if key in item]
    named = {kinds[0], _SOURCE_KEYS.get(kinds[0])} if len(kinds) == 1 else set()
    if not named or str(item.get("type", kinds[0])).removeprefix("input_") not in named:
        raise PromptError(
            f"{where}: type {item.get('type')!r} with {_list(set(map(str, item)))}; "
            "known: text, image, image_url, video, video_url, each with a key of that name"
        )
    key = kinds[0]
    if key == "text":
        known = {"type", "text"}
        if not isinstance(item["text"], str):
            raise PromptError(f"{where}: text is a {type(item['text']).__name__}")
    else:
        known = {"type", key} | (_PIXEL_KEYS if _SOURCE_KEYS[key] == "image" else _VIDEO_KEYS)
    unknown = sorted(map(str, set(item) - known))
    if unknown:
        raise PromptError(f"{where}: unknown {', '.join(unknown)}; known: {_list(known)}")
    if key == "text":
        return {"type": "text", "text": item["text"]}
    kind, source = _SOURCE_KEYS[key], item[key]
    if key.endswith("_url") and isinstance(source, Mapping):
        extra = set(source) - {"url"} - ({"detail"} if source.get("detail") in (None, "auto") else set())
        if extra or not isinstance(source.get("url"), str):
            raise PromptError(
                f"{where}: {key} takes a url and nothing else, got {_list(set(map(str, source)))}"
            )
        source = source["url"]
    media.append(MediaItem(kind, source, {k: v for k, v in item.items() if k in known - {"type", key}}))
    return {"type": kind, kind: kind}


def _read_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise PromptError(f"{where}: a tool call needs {{'function': {{'name': …, 'arguments': …}}}}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI sends JSON as a text; templates write it out from the object
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as e:
            raise PromptError(f"{where}: arguments of {function['name']} are not JSON ({e})") from e
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


# ---------------------------------------------------------------------------------------------- the template


class _Marks:
    """Replaces characters that could build special tokens by marks that no text can contain."""

    CHARS = "<>|"

    def __init__(self, tokenizer: Tokenizer):
        # one nonce a call: a user who saw one prompt's marks can't use them in the next
        self.nonce = f"q{secrets.token_hex(8)}z"
        chars = {char for text in tokenizer.special for char in (text[0], text[-1])} | set(self.CHARS)
        self.chars = sorted(chars)
        words = sorted(MODEL_WORDS & set(tokenizer.special), key=len, reverse=True)
        single = "[" + "".join(map(re.escape, self.chars)) + "]"
        self._strict = re.compile(f"({single})")
        self._lenient = re.compile("|".join([*map(re.escape, words), f"({single})"]))
        self._mark = re.compile(f"{self.nonce}([0-9]+)y")

    def hide(self, value: Any, lenient: bool = False) -> Any:
        """The same value with every text in it marked. lenient leaves MODEL_WORDS as they are."""
        if isinstance(value, str):
            pattern = self._lenient if lenient else self._strict
            return pattern.sub(lambda m: f"{self.nonce}{self.chars.index(m[1])}y" if m[1] else m[0], value)
        if isinstance(value, Mapping):
            return {self.hide(k, lenient): self.hide(v, lenient) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(v, lenient) for v in value]
        return value

    def parts(self, rendered: str) -> list[tuple[str, bool]]:
        """(text, may hold special tokens) in order."""
        pieces = self._mark.split(rendered)  # text, index, text, index, …
        return [(self.chars[int(p)], False) if i % 2 else (p, True) for i, p in enumerate(pieces)]


def _hide_message(message: Message, marks: _Marks, model_words: Sequence[str]) -> dict[str, Any]:
    """Only free text is marked: keys and roles were checked by read_messages and media items are its own.

    What roles in `model_words` say may hold the words models answer with (tool calls, boxes, thoughts); no other's
    words hold the tokens that structure a prompt.
    """
    lenient = message["role"] in model_words
    hidden = dict(message)
    content = message["content"]
    if isinstance(content, str):
        hidden["content"] = marks.hide(content, lenient)
    else:
        hidden["content"] = [
            {**item, "text": marks.hide(item["text"], lenient)} if "text" in item else item
            for item in content
        ]
    for key in ("tool_call_id", "name", "reasoning_content"):
        if key in message:
            hidden[key] = marks.hide(message[key], lenient)
    if "tool_calls" in message:
        hidden["tool_calls"] = [
            {**call, "function": marks.hide(call["function"])} for call in message["tool_calls"]
        ]
    return hidden


def _raise(message: str) -> None:
    raise PromptError(f"the chat template refuses: {message}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja's own: no HTML escapes, letters as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _now(form: str) -> str:
    return datetime.now().strftime(form)


class _Generation(Extension):
    """`{% generation %}`: marks what an assistant says, for a loss; what is written stays the same.

    A call block as in the reference, in which variables set inside don't reach outside.
    """

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_say"), [], [], body).set_lineno(line)

    def _say(self, caller: Callable[[], str]) -> str:
        return caller()


@lru_cache(maxsize=1)
def _environment() -> BoundedEnvironment:
    """The language of chat templates. Source: utils/chat_template_utils.py of transformers 5.24."""
    env = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = _to_json
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = _now
    return env


_LARGEST_TEMPLATE = 1 << 20  # characters; published ones have up to 10,000

# what transformers calls a tokenizer's special tokens, all of which templates may use
_SPECIAL_TOKENS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    "additional_special_tokens",
)  # fmt: skip


def _special_tokens(folder: Path) -> dict[str, Any]:
    """Of special_tokens_map.json and tokenizer_config.json, whose word counts."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            raw = read_object(folder / name)
        except ConfigError as e:  # most templates use none of them
            warn_once(log, f"not read: {e}")
            continue
        named = {name: raw.get(name) for name in _SPECIAL_TOKENS}
        more = raw.get("extra_special_tokens")  # transformers 5: {"image_token": "<|image_pad|>"}, or a list
        named |= more if isinstance(more, dict) else {"additional_special_tokens": more} if more else {}
        for key, value in named.items():
            values = [_content(v) for v in value] if isinstance(value, list) else _content(value)
            if values:
                found[str(key)] = values
    return found


def _content(token: Any) -> Any:
    """A token is written as its text or as an object that holds it."""
    return token.get("content") if isinstance(token, Mapping) else token


def _own_template(name: str) -> str:
    return resources.files("qvl.inputs").joinpath(f"templates/{name}.jinja").read_text(encoding="utf-8")


class ChatTemplate:
    """A jinja chat template, run in jinja's immutable sandbox."""

    # who may use the words that models answer with: the model itself, and whoever runs it
    model_words: tuple[str, ...] = ("assistant", "system")

    def __init__(self, source: str, where: str = "chat template", **constants: Any):
        """constants: special tokens of the tokenizer, and variables of our own templates.

        Raises: ConfigError if it can't be parsed.
        """
        if len(source) > _LARGEST_TEMPLATE:
            raise ConfigError(f"{where}: has {len(source):,} characters; {_LARGEST_TEMPLATE:,} are enough")
        try:
            self._template = _environment().from_string(source)
            self.variables = meta.find_undeclared_variables(_environment().parse(source))
        except jinja2.TemplateError as e:
            raise ConfigError(f"{where}: can't be parsed ({e})") from e
        except (RecursionError, SyntaxError, MemoryError, ValueError) as e:  # nested deeper than Python goes
            raise ConfigError(f"{where}: can't be compiled ({type(e).__name__}: {e})") from e
        self.where = where
        self._constants = constants

    @classmethod
    def default(cls, generation: Generation, raw: bool = False) -> ChatTemplate:
        """For checkpoints without one. raw: of the base Qwen-VL, which continues texts and holds no conversation."""
        template = cls(
            _own_template(generation.template),
            f"the template of {generation.title}",
            default_system=generation.system,
            raw=raw,
        )
        if generation.user_writes_places:
            template.model_words = ("assistant", "system", "user")
        return template

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ChatTemplate | None:
        """chat_template.jinja, chat_template.json or tokenizer_config.json of a checkpoint; None without one.

        Raises: ConfigError.
        """
        folder = Path(folder)
        constants = _special_tokens(folder)
        plain = folder / "chat_template.jinja"
        if plain.is_file():
            try:
                return cls(read_text(plain, _LARGEST_TEMPLATE), str(plain), **constants)
            except (OSError, ValueError) as e:
                raise ConfigError(f"{plain}: can't be read ({e})") from e
        for name in ("chat_template.json", "tokenizer_config.json"):
            source = read_object(folder / name).get("chat_template")
            if isinstance(source, list):  # several named templates
                named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
                source = named.get("default")
            if isinstance(source, str):
                return cls(source, str(folder / name), **constants)
        return None

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        add_vision_id: bool = False,
        variables: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
    ) -> list[tuple[str, bool]]:
        """Parts for Tokenizer.encode_parts of messages from read_messages, one placeholder an image or video.

        A part is (text, whether special tokens in it count). variables: further ones of this template, such as
        enable_thinking or documents. continue_final_message: the last message is left open, so that the answer goes on
        with it; no prompt for a new one is added then.
        Raises: PromptError if the template refuses, fails, or takes no tools or variables of that name.
        """
        given: dict[str, Any] = dict(variables or {})
        if tools:
            given["tools"] = list(tools)
        if add_vision_id:
            given["add_vision_id"] = True
        ignored = sorted(set(given) - self.variables)
        if ignored:
            raise PromptError(
                f"{self.where}: takes no {', '.join(ignored)}, so giving it would change nothing"
            )
        marks = _Marks(tokenizer)
        hidden = [_hide_message(message, marks, self.model_words) for message in messages]
        given = {name: marks.hide(value, lenient=name == "tools") for name, value in given.items()}
        open_end = f"{marks.nonce}end "  # with a blank, as templates may strip what a message ends with
        if continue_final_message:
            _leave_open(hidden, open_end)
        # absent tools and documents are none, and not undefined
        variables = {
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            **self._constants,
            **given,
        }
        try:
            with bounded():
                rendered = self._template.render(messages=hidden, **variables)
        except jinja2.TemplateError as e:
            raise PromptError(f"{self.where}: fails on this conversation ({e})") from e
        except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as e:
            raise PromptError(f"{self.where}: fails on this conversation ({type(e).__name__}: {e})") from e
        if continue_final_message:
            at = rendered.rfind(open_end.rstrip())
            if at < 0:
                raise PromptError(f"{self.where}: leaves out the end of the last message, so it can't go on")
            kept = rendered.startswith(open_end, at)
            rendered = rendered[:at] if kept else rendered[:at].rstrip()
        return marks.parts(rendered)


def _leave_open(messages: list[dict[str, Any]], mark: str) -> None:
    """Puts the mark behind the last text of the last message. Raises: PromptError if there is none to go on with."""
    last = messages[-1]
    content = last["content"]
    if last["role"] != "assistant":
        raise PromptError(f"the last message is the {last['role']}'s; only an assistant's can be continued")
    if isinstance(content, str) and content:
        last["content"] = content + mark
        return
    for item in reversed(content if isinstance(content, list) else []):
        if "text" in item:
            item["text"] += mark
            return
    raise PromptError("the last message has no text that could be continued")


def assistant_spans(ids: Sequence[int], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """[start, end) of every assistant turn in ChatML ids, from its first word to its <|im_end|> inclusive.

    What a fine-tuning loss counts. Words can't forge a turn: these ids come from templates alone.
    """
    begin, end = tokenizer.id_of("<|im_start|>"), tokenizer.id_of("<|im_end|>")
    header = [begin, *tokenizer.encode("assistant\n")]
    ids = list(ids)
    spans, at = [], 0
    while at < len(ids):
        if ids[at : at + len(header)] != header:
            at += 1
            continue
        start = at + len(header)
        stop = ids.index(end, start) + 1 if end in ids[start:] else len(ids)
        spans.append((start, stop))
        at = stop
    return spans
