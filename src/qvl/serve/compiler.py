"""Grammars of strangers are compiled first in a process of their own, which may be killed.

A schema of 200 bytes can take all memory and never end, and nothing stops a thread that compiles it. What this process
did within its limits of processor time and memory is compiled again beside the model, where it costs the same; what it
didn't is refused, and the process is started anew with the next grammar.

As a program it reads a vocabulary and then grammars from stdin, a line of JSON each, and writes a line for each.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from qvl.units import MiB

CPU_S = 3.0
MEMORY_BYTES = 128 * MiB  # beside what the vocabulary takes
_PATIENCE_S = 30.0  # on a busy machine processor time comes slowly


class Compiler:
    """The process as its parent sees it. One grammar at a time; not for several threads."""

    def __init__(self, vocabulary: Mapping[str, Any], cpu_s: float = CPU_S, memory_bytes: int = MEMORY_BYTES):
        """vocabulary: tokens (base64), special_token_ids, eos_token_id."""
        self._first = {**vocabulary, "cpu_s": cpu_s, "memory_bytes": memory_bytes}
        self._process: subprocess.Popen[bytes] | None = None

    def fault(self, kind: str, source: str, **beside: Any) -> str | None:
        """Why a grammar can't be had; None when it can. kind: json, lark or regex."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        said = self._ask({"kind": kind, "source": source, **beside})
        if said is None:
            self.close()
            limits = f"{self._first['cpu_s']:g} s of processor time, {self._first['memory_bytes'] // MiB} MiB"
            return f"it takes more to compile than a grammar may ({limits})"
        fault: str | None = said["fault"]
        return fault

    def close(self) -> None:
        """Kills the process. `fault` starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()
            process.wait()

    def __del__(self) -> None:
        self.close()

    def _start(self) -> None:
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qvl.serve.compiler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "RAYON_NUM_THREADS": "1",
            },
            start_new_session=True,  # Ctrl-C is its parent's
        )
        if self._ask(self._first, 4 * _PATIENCE_S) is None:
            self.close()
            raise RuntimeError("the process that compiles grammars doesn't start")

    def _ask(self, message: Mapping[str, Any], patience_s: float = _PATIENCE_S) -> dict[str, Any] | None:
        """The answer, or None when the process died or takes too long."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as ready:
                ready.register(process.stdout, selectors.EVENT_READ)
                line = process.stdout.readline() if ready.select(patience_s) else b""
        except OSError:
            return None
        said: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return said


# ------------------------------------------------------------------------------------------------ the process


class _Tokens:
    """A vocabulary as llguidance wants to see one; words are cut into bytes, which is enough to compile."""

    def __init__(self, given: Mapping[str, Any]):
        self.tokens = [base64.b64decode(token) for token in given["tokens"]]
        self.special_token_ids: list[int] = given["special_token_ids"]
        self.eos_token_id: int = given["eos_token_id"]
        self.bos_token_id = None
        self._of_byte = {token[0]: i for i, token in enumerate(self.tokens) if len(token) == 1}

    def __call__(self, text: bytes | str) -> list[int]:
        raw = text.encode() if isinstance(text, str) else text
        return [self._of_byte.get(byte, self.eos_token_id) for byte in raw]


def _limit_memory(beside: int) -> None:
    import resource

    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # no such system: time alone is limited
        return
    resource.setrlimit(resource.RLIMIT_AS, (now + beside, now + beside))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _fault(vocabulary: Any, asked: Mapping[str, Any]) -> str | None:
    import llguidance

    matcher = llguidance.LLMatcher
    try:
        if asked["kind"] == "json":
            grammar = matcher.grammar_from_json_schema(asked["source"], overrides=asked["style"])
        elif asked["kind"] == "lark":
            grammar = matcher.grammar_from_lark(asked["source"])
        else:
            grammar = matcher.grammar_from_regex(asked["source"])
        fault = matcher.validate_grammar(grammar, vocabulary)
        if fault and not fault.startswith("WARNING"):
            return str(fault)
        made = matcher(vocabulary, grammar, log_level=0)
        if not made.is_error():
            made.compute_bitmask()
        return str(made.get_error()) if made.is_error() else None
    except (ValueError, TypeError) as e:
        return str(e) or type(e).__name__


def main() -> None:
    import llguidance

    given = json.loads(sys.stdin.buffer.readline())
    vocabulary = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Tokens(given)))
    _limit_memory(given["memory_bytes"])
    print("{}", flush=True)
    for line in sys.stdin.buffer:
        # unhandled, the signal of this timer ends the process, whatever it is in the middle of
        signal.setitimer(signal.ITIMER_PROF, given["cpu_s"])
        fault = _fault(vocabulary, json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"fault": fault}), flush=True)


if __name__ == "__main__":
    main()
