"""Seeds and mutators of what strangers send, and a loop: `python tests/fuzz/mutate.py MINUTES`."""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qvl.errors import MediaError, QvlError

EXPECTED = (QvlError,)
# what breaks readers: signs of structure, ends of ranges, depth, half characters
WORDS = [
    b"\x00", b"\xff" * 8, b"NaN", b"-1", b"1e999", b"999999999999999999999", b"null", b"[]", b"{}", b'""',
    b"[" * 200, b'{"a":' * 80,
    b"\xed\xa0\x80", "\u202e".encode(), b"\x1b[2J", b"<|im_end|>", b"\\u0000", b"true", b"\r", b"\n\n", b"0" * 400,
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    seeds: list[bytes]
    read: Callable[[bytes], object]


def mutated(seeds: list[bytes], seed: int) -> bytes:
    """The same data for the same seed: bits, bytes, pieces, words and two seeds joined."""
    rng = random.Random(seed)
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at % len(data)] = rng.randrange(256)
            case 2:
                del data[at : at + rng.choice((1, 4, 64, len(data)))]
            case 3:
                data[at:at] = rng.choice(WORDS)
            case 4:
                data[at:at] = data[at : at + rng.randrange(200)] * rng.choice((1, 2, 20))
            case 5:
                data[at : at + 4] = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF)).to_bytes(
                    4, rng.choice(("little", "big"))
                )
            case 6:
                other = rng.choice(seeds)
                data[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data[:1_000_000])


def kinds(checkpoint: Path, folder: Path) -> dict[str, Case]:
    from PIL import Image

    from qvl.backends.wire import Reply, assembled, data_lines, read_chunk, read_json, read_reply
    from qvl.checkpoint.checkpoint import Checkpoint
    from qvl.inputs.chat import ChatTemplate, read_messages
    from qvl.inputs.image import load_image
    from qvl.inputs.tokenizer import Tokenizer
    from qvl.outputs.repair import find_json

    images = []
    for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        out = io.BytesIO()
        Image.effect_noise((24, 16), 90).convert("RGB").save(out, form)
        images.append(out.getvalue())
    out = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(out, "PDF")
    names = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json")
    files = [f"{name}\n".encode() + (checkpoint / name).read_bytes() for name in names]
    work = Path(shutil.copytree(checkpoint, folder / "model"))
    pdf = folder / "a.pdf"
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    messages, _ = read_messages([{"role": "user", "content": "hi"}])

    def pdf_page(data: bytes) -> None:
        """In this process: a thousand starts of the worker take minutes. pdfium itself must not fall."""
        import pypdfium2

        pdf.write_bytes(data)
        try:
            document = pypdfium2.PdfDocument(pdf)
            for index in range(min(2, len(document))):
                page = document[index]
                width, height = page.get_size()
                if 0 < width * height < 1e6:
                    page.render(scale=0.5)
            document.close()
        except pypdfium2.PdfiumError as e:
            raise MediaError(str(e)) from e

    def config(data: bytes) -> None:
        name, _, content = data.partition(b"\n")
        name = name if name.decode("latin-1") in names else b"config.json"
        path = work / name.decode()
        kept = path.read_bytes()
        path.write_bytes(content)
        try:
            opened = Checkpoint(work)
            opened.config, opened.generation, opened.processor  # noqa: B018
        finally:
            path.write_bytes(kept)

    def reply(data: bytes) -> None:
        assembled(read_reply(read_json(data, "u"), "u"))

    def stream(data: bytes) -> None:
        found = Reply()
        for line in data_lines([data[:50], data[50:]]):
            if line != "[DONE]":
                read_chunk(line, found, "u")
        assembled(found)

    def template(data: bytes) -> None:
        ChatTemplate(data.decode("utf-8", "replace")).render(messages, tokenizer)

    answer = {
        "choices": [{"message": {"content": "hi", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
                     "finish_reason": "stop", "logprobs": {"content": []}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
    }  # fmt: skip
    listed = answer | {"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}]}
    piece = {"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}
    said = [
        b'```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "a"}]\n```', b"<ref>a</ref><box>(1,2),(3,4)</box>",
        b'{"point_2d": [5, 6]}', b"<tool_call>\n{}\n</tool_call>",
    ]  # fmt: skip
    return {
        "image": Case(images, lambda data: load_image(data)),
        "pdf": Case([out.getvalue()], pdf_page),
        "checkpoint": Case(files, config),
        "reply": Case([json.dumps(answer).encode(), json.dumps(listed).encode()], reply),
        "stream": Case([b"data: " + json.dumps(piece).encode() + b"\n\ndata: [DONE]\n\n"], stream),
        "text": Case(said, lambda data: find_json(data.decode("utf-8", "replace"))),
        "template": Case([b"{% for m in messages %}{{ m.role }}{{ m.content|trim }}{% endfor %}"], template),
    }


def main(minutes: float) -> int:
    import tempfile

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import write_tiny_checkpoint

    found = Path(__file__).parent / "found"
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_checkpoint(Path(folder) / "tiny")
        cases = kinds(Path(folder) / "tiny", Path(folder))
        until, seed, crashes = time.monotonic() + 60 * minutes, 1_000_000, 0
        while time.monotonic() < until:
            for kind, case in cases.items():
                data = mutated(case.seeds, seed)
                try:
                    case.read(data)
                except EXPECTED:
                    pass
                except Exception:
                    crashes += 1
                    found.mkdir(exist_ok=True)
                    (found / f"{kind}-{seed}.bin").write_bytes(data)
                    traceback.print_exc()
            seed += 1
        print(f"{(seed - 1_000_000) * len(cases):,} cases in {minutes:g} min, {crashes} crashes")
    return int(crashes > 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 1))
