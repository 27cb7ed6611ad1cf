"""Fields of OpenAI's and vLLM's requests that our schema doesn't hold: which are taken all the same, and which aren't.

A field is refused only when it would change the answer and isn't done. One that changes nothing, or whose value means
"as usual", is taken; the log names each such field once. docs/serve.md shows these tables.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

# Taken with any value, without effect: field → why.
IDLE: dict[str, str] = {
    "annotations": "of an earlier answer",
    "audio_id": "of an earlier answer",
    "cache_control": "a caching hint",
    "cache_salt": "a caching hint",
    "ec_transfer_params": "between servers",
    "file_id": "of an earlier answer",
    "include_obfuscation": "about the transport",
    "index": "of an earlier answer",
    "kv_transfer_params": "between servers",
    "length_penalty": "counts in beam search alone",
    "metadata": "a label",
    "parsed": "of an earlier answer",
    "parsed_arguments": "of an earlier answer",
    "max_tool_calls": "counts tools of the server's own",
    "prediction": "a hint about speed",
    "priority": "requests are served in their order",
    "prompt_cache_breakpoint": "a caching hint",
    "prompt_cache_key": "a caching hint",
    "prompt_cache_options": "a caching hint",
    "prompt_cache_retention": "a caching hint",
    "request_id": "a label; the answer's header x-request-id is the header's own",
    "return_mm_kwargs": "of a route that isn't here",
    "return_token_offsets": "of a route that isn't here",
    "routed_experts_prompt_start": "belongs to a field that isn't here",
    "safety_identifier": "a label",
    "service_tier": "there is one tier",
    "session_id": "a label",
    "spaces_between_special_tokens": "special tokens aren't written",
    "store": "nothing is stored",
    "stream_interval": "about the transport",
    "user": "a label",
    "uuid": "a caching hint",
    "verbosity": "a hint; say it in words",
}

# Taken with these values, which mean "as usual", and refused with others: field → values.
USUAL: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (False,),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", {}),
    "functions": ([],),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "logprob_token_ids": (),
    "media_io_kwargs": ({},),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "prompt_logprobs": (),
    "repetition_detection": (),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "thinking_token_budget": (-1,),
    "truncate_prompt_tokens": (),
    "truncation_side": ("left", "right"),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    "web_search_options": (),
}

# Names that other servers give to sampling, grammars or media, and ours to none: always refused.
_CHANGES = frozenset(
    """beam_width diversity_penalty dry_multiplier guided_choice guided_decoding_backend guided_grammar guided_json
    guided_regex mirostat no_repeat_ngram_size regex ebnf grammar json_schema tfs_z top_a typical_p
    xtc_probability""".split()
)

_MAX_NAMES = 200  # a stranger may invent names; the log stays short
_told: set[str] = set()


def drop_idle(data: Mapping[Any, Any], known: Mapping[str, Any], where: str) -> dict[Any, Any]:
    """The fields that the schema has to see: those it knows, and those that it has to refuse.

    known: the schema's own names. where: what holds the fields, for the log.
    """
    kept = {}
    for name, value in data.items():
        if name in known or not isinstance(name, str):
            kept[name] = value
        elif value is None or name in IDLE:
            if value is not None:
                tell(where, name, IDLE[name])
        elif name in USUAL:
            if not any(type(value) is type(usual) and value == usual for usual in USUAL[name]):
                kept[name] = value
        elif name in _CHANGES or misspelled(name, known):
            kept[name] = value
        else:
            tell(where, name, "not known")
    return kept


def misspelled(name: str, known: Mapping[str, Any]) -> str | None:
    """The field that a name was probably meant to be: left out, it would change the answer."""
    close = difflib.get_close_matches(name, known, 1, 0.8) if len(name) > 4 else []
    return close[0] if close else None


def tell(where: str, name: str, why: str) -> None:
    """One line in the log for each field of a name, however often it comes."""
    told = f"{where}{name}"[:80]
    if told not in _told and len(_told) < _MAX_NAMES:
        _told.add(told)
        log.info("request field %s is accepted and has no effect: %s", ascii(told), why)
