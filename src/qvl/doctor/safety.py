"""Safety: invalid media are refused quickly with a client error, and the next question is answered as before."""

from __future__ import annotations

import base64
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

from qvl.backends.answer import conversation
from qvl.backends.settings import Settings
from qvl.doctor.endpoint import EndpointUnderTest
from qvl.doctor.images import blocks, png
from qvl.doctor.probe import Finding, failed, passed, plumbing
from qvl.errors import BackendError, CapacityError, MediaError, PromptError, SpendError

SLOW_S = 60.0


def _refused(
    endpoint: EndpointUnderTest, what: str, send: Callable[[], Any], *, own_fault: bool = False
) -> Finding:
    """Sends something bad between two askings of something good. own_fault: a 5xx of a server that goes on will do."""
    good = blocks(endpoint.rng("good"), 8 * endpoint.unit, 8 * endpoint.unit, endpoint.unit)
    before = endpoint.ask([good], "What is this?", max_new_tokens=4)
    began = time.perf_counter()
    endpoint.num_asked += 1
    try:
        send()
        said, status = "", 200
    except SpendError:
        raise
    except (MediaError, PromptError, CapacityError) as e:
        said, status = str(e), 400
    except BackendError as e:
        said, status = str(e), e.status or 0
    took = time.perf_counter() - began
    numbers = {"status": status, "seconds": round(took, 3)}
    try:
        after = endpoint.ask([good], "What is this?", max_new_tokens=4)
    except BackendError as e:
        return failed(f"after {what}, a good question isn't answered any more: {e}", **numbers)
    if not endpoint.gap(before, after).agree:
        return failed(f"after {what}, a good question is answered differently.", **numbers)
    if not said:
        return failed(f"{what} was answered as if it were right.", **numbers)
    if not 400 <= status < (600 if own_fault else 500):
        return failed(
            f"{what} ended in status {status or 'none: the connection broke'}: {said[:120]}", **numbers
        )
    if took > SLOW_S:
        return failed(f"{what} was refused after {took:.0f} s only.", **numbers)
    # 400 would say whose fault it is, but a server that goes on has come to no harm
    own = f" as a fault of its own, status {status}," if status >= 500 else ""
    return passed(
        f"{what}: refused{own} in {took:.2g} s ({said[:100]}), and the next question answered.", **numbers
    )


def _send(endpoint: EndpointUnderTest, data: bytes) -> Any:
    """Past our own checks where the backend is a server, which has to do its own."""
    if not endpoint.backend.can.raw:
        return endpoint.backend.ask([data], "What is this?", max_new_tokens=2)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    items = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    return endpoint.backend.post({"messages": [{"role": "user", "content": items}], "max_tokens": 2})


def _garbage(endpoint: EndpointUnderTest) -> Finding:
    data = endpoint.rng("garbage").bytes(3000)
    return _refused(endpoint, "a file of random bytes", lambda: _send(endpoint, data))


def _cut(endpoint: EndpointUnderTest) -> Finding:
    whole = png(blocks(endpoint.rng("cut"), 12 * endpoint.unit, 12 * endpoint.unit, 2))
    return _refused(endpoint, "an image cut in the middle", lambda: _send(endpoint, whole[: len(whole) // 2]))


def _bomb(endpoint: EndpointUnderTest) -> Finding:
    """A PNG of a few hundred bytes that claims 60,000x60,000 pixels: 10 GB if believed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100_000), 9)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    what = "a small file that claims 60,000x60,000 pixels"
    # vLLM 0.32 says 500 where Pillow refuses to unpack: the harm would be to unpack it
    return _refused(endpoint, what, lambda: _send(endpoint, data), own_fault=True)


def _thread(endpoint: EndpointUnderTest) -> Finding:
    """Sides of 1:600; the family's own resizing refuses from 1:200 on."""
    data = png(blocks(endpoint.rng("thread"), 2, 1200, 2))
    return _refused(endpoint, "an image of 1200x2 pixels", lambda: _send(endpoint, data))


def _too_long(endpoint: EndpointUnderTest) -> Finding:
    words = "word " * min(3 * endpoint.room, 400_000)
    messages = conversation([], words)
    asked: Settings = {"max_new_tokens": 2, "temperature": 0}
    return _refused(
        endpoint, f"a prompt of {len(words):,} characters", lambda: endpoint.backend.chat(messages, **asked)
    )


_CAUSES = ("media-checks",)

PROBES = plumbing(
    "safety",
    ("bad-picture", "bytes that are no image are refused", _garbage, *_CAUSES),
    ("cut-picture", "half an image is refused", _cut, *_CAUSES),
    ("huge-claim", "a decompression bomb is refused", _bomb, *_CAUSES),
    ("thread-picture", "an impossible shape is refused", _thread, *_CAUSES),
    ("too-long", "a prompt beyond the context is refused", _too_long, "context-cut"),
)
