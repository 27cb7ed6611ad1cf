"""Constrained decoding: JSON, a JSON schema, a call of a tool. The grammar work is llguidance's.

It computes, token by token, which tokens may come next; the sampler draws among those alone.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qvl.serve.compiler import Compiler
from qvl.serve.problems import Problem
from qvl.serve.tools import JSON_STYLE, readable
from qvl.units import KiB

if TYPE_CHECKING:
    from qvl.inputs.tokenizer import Tokenizer
    from qvl.serve.schema import StructuredOutputs

log = logging.getLogger(__name__)

MAX_SOURCE = 256 * KiB


class _Vocabulary:
    """Our tokenizer as llguidance wants to see one."""

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int):
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(i) for i in range(len(tokenizer))]
        self.special_token_ids = sorted(tokenizer.special.values())

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


class Grammars:
    """Grammars over one vocabulary. Made once: reading 150,000 tokens takes a moment."""

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int):
        try:
            import llguidance
        except ImportError as e:
            raise Problem(
                400,
                "response_format and forced tool calls need the llguidance package where the server runs: "
                "pip install 'qvl[serve]'",
                param="response_format",
                code="unsupported_parameter",
            ) from e
        self._library = llguidance
        # of 1 to 2 kB each, made as an answer goes on
        self._limits = llguidance.LLParserLimits(max_lexer_states=50_000)
        vocabulary = _Vocabulary(tokenizer, eos_token_id)
        self._vocabulary = llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary))
        self._compiler = Compiler(
            {
                "tokens": [base64.b64encode(token).decode() for token in vocabulary.tokens],
                "special_token_ids": vocabulary.special_token_ids,
                "eos_token_id": eos_token_id,
            }
        )
        self._eos = eos_token_id
        self._size = len(tokenizer)

    def json(self, schema: Mapping[str, Any] | None, param: str = "response_format") -> GrammarConstraint:
        """Any JSON object, or what the schema describes. Raises: Problem naming what of it is not supported."""
        source = json.dumps(readable(schema) if schema is not None else {"type": "object"})
        self._check(param, "json", source, style=JSON_STYLE)
        grammar = self._library.LLMatcher.grammar_from_json_schema(
            source,
            overrides=JSON_STYLE,  # type: ignore[arg-type]
        )
        return self._start(grammar, param)

    def lark(self, grammar: str, param: str = "tools") -> GrammarConstraint:
        self._check(param, "lark", grammar)
        return self._start(self._library.LLMatcher.grammar_from_lark(grammar), param)

    def regex(self, expression: str) -> GrammarConstraint:
        self._check("structured_outputs", "regex", expression)
        return self._start(self._library.LLMatcher.grammar_from_regex(expression), "structured_outputs")

    def close(self) -> None:
        """Ends the compiling process, in the middle of a grammar too."""
        self._compiler.close()

    def _check(self, param: str, kind: str, source: str, **beside: Any) -> None:
        """Raises: Problem for what can't be compiled, or takes more than a grammar may."""
        if len(source) > MAX_SOURCE:
            raise _refused(param, f"it has {len(source):,} characters, {MAX_SOURCE:,} are read")
        fault = self._compiler.fault(kind, source, **beside)
        if fault:
            raise _refused(param, fault)

    def _start(self, grammar: str, param: str) -> GrammarConstraint:
        matcher = self._library.LLMatcher(self._vocabulary, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise _refused(param, matcher.get_error())
        return GrammarConstraint(matcher, self._size, self._eos)


def structured(grammars: Grammars, wanted: StructuredOutputs) -> GrammarConstraint:
    """vLLM's field. Raises: Problem naming what of it is not supported."""
    if wanted.choice is not None:
        return grammars.lark(
            "start: " + " | ".join(json.dumps(one, ensure_ascii=False) for one in wanted.choice), _FIELD
        )
    if wanted.regex is not None:
        return grammars.regex(wanted.regex)
    if wanted.grammar is not None:
        return grammars.lark(wanted.grammar, _FIELD)
    schema = wanted.json_
    try:
        schema = json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError) as e:
        raise _refused(_FIELD, f"json is not JSON ({e})") from e
    if schema is not None and not isinstance(schema, dict):
        raise _refused(_FIELD, "json is not a JSON object")
    return grammars.json(schema, _FIELD)


_FIELD = "structured_outputs"


def _refused(param: str, reason: str) -> Problem:
    first = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    return Problem(400, f"{param}: its schema can't be kept to: {first}", param=param, code="invalid_schema")


class GrammarConstraint:
    """engine.sampling.Constraint along one answer."""

    def __init__(self, matcher: Any, vocab_size: int, eos_token_id: int):
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos = eos_token_id

    def copy(self) -> GrammarConstraint:
        return GrammarConstraint(self._matcher.deep_copy(), self._vocab_size, self._eos)

    def allowed(self) -> np.ndarray:
        """bool (vocab_size,). At the end of the grammar, and when the library gives up, only the end is left."""
        if not self._matcher.is_stopped():
            packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            allowed = np.unpackbits(packed, bitorder="little")[: self._vocab_size].astype(bool)
            if allowed.any():
                return allowed
        if self._matcher.is_error():
            log.warning("an answer's grammar was given up: %s", self._matcher.get_error())
        allowed = np.zeros(self._vocab_size, bool)
        allowed[self._eos] = True
        return allowed

    def accept(self, token: int) -> None:
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
