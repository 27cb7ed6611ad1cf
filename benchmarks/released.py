"""What a released checkpoint's small files prove: names, bytes, config and prompts, as one JSON object a folder.

    python benchmarks/released.py FOLDER...

A folder holds what public repositories keep of a checkpoint: config.json, model.safetensors.index.json, the template
and the vocabulary; no weights. Tokens are compared with transformers' slow tokenizer over the same files. A file SOURCE
says where the folder is from: {"repository": …, "commit": …, "path": …}. The facts stand in tests/data/released.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from qvl.catalog.config import read_config
from qvl.checkpoint.compare import expected_tensors
from qvl.checkpoint.names import to_canonical
from qvl.checkpoint.quantization import read_quantization
from qvl.errors import QvlError
from qvl.inputs.chat import ChatTemplate, read_messages
from qvl.inputs.tokenizer import Tokenizer

PICTURE = {"type": "image", "image": "x"}
VIDEO = {"type": "video", "video": "x"}


def _user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


SYSTEM = {"role": "system", "content": "Answer in one word."}
ANSWER = {"role": "assistant", "content": "A cat."}
PROMPTS: list[list[dict[str, Any]]] = [
    [_user(_text("Hello"))],
    [_user(PICTURE, _text("What is this?"))],
    [_user(_text("What is this? "), PICTURE)],
    [_user(PICTURE, PICTURE, _text("Compare the two."))],
    [_user(VIDEO, _text("What happens?"))],
    [_user(PICTURE, VIDEO, _text("Is it the same?"))],
    [SYSTEM, _user(PICTURE, _text("Which animal?"))],
    [_user(PICTURE, _text("Which animal?")), ANSWER, _user(_text("Are you sure?"))],
    [SYSTEM, _user(_text("1 + 1 = 2, 10 000 km, 3.14159"))],
    [_user(_text("영수증의 합계는 얼마입니까? 한 단어로."))],
    [_user(_text("这张图片里有什么？请用中文回答。"))],
    [_user(_text("What's   here?\n\n  - a\n\t- b\r\n"))],
    [_user(_text("def f(x):\n    return x ** 2  # café, naïve, Ω"))],
    [_user(_text("🧾🐈‍⬛ ½ ﬁ Å")), ANSWER, _user(PICTURE, _text("And this?"))],
    [_user(_text("The 12,500 won (VAT incl.) isn't I'll we've"))],
    [_user(_text("a")), ANSWER, _user(_text("b")), ANSWER, _user(_text("c"))],
]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def main(folders: list[str]) -> None:
    print(json.dumps([facts(Path(folder)) for folder in folders], indent=1, ensure_ascii=False))


def facts(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    found: dict[str, Any] = {
        "name": folder.name,
        **json.loads((folder / "SOURCE").read_text()),
        "config": config,
    }
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        names = sorted(content["weight_map"])
        nested = any(name.startswith("model.language_model.") for name in names)
        found["tensors"] = {
            "count": len(names),
            "digest": digest(names),
            "nested": nested,
            "bytes": content["metadata"]["total_size"] or None,
        }
    try:
        read = read_config(config)
        if index.is_file():
            stored = {to_canonical(name) for name in names}
            expected = expected_tensors(read, read_quantization(read.quantization), stored)
            wanted = {**expected.shapes, **expected.parts}
            found["missing"] = sorted(wanted.keys() - stored)
            found["extra"] = sorted(stored - wanted.keys())
            if not expected.parts and not found["missing"]:
                weights = sum(math.prod(shape) for shape in expected.shapes.values())
                found["tensors"]["weights"] = weights
    except QvlError as e:
        found["refused"] = str(e)
        return found
    if (folder / "vocab.json").is_file() and found.get("missing") == []:
        found["prompts"] = _prompts(folder, read)
    return found


def _prompts(folder: Path, config: Any) -> dict[str, Any]:
    from transformers import Qwen2Tokenizer

    settings = json.loads((folder / "tokenizer_config.json").read_text())
    theirs = Qwen2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokens = settings["added_tokens_decoder"]
    theirs.add_tokens(
        [t["content"] for _, t in sorted(tokens.items(), key=lambda i: int(i[0]))], special_tokens=True
    )
    ours, template = Tokenizer.from_vocabulary(folder), ChatTemplate.from_pretrained(folder)
    assert template is not None
    own = ChatTemplate.default(config.generation)
    source = Path(template.where)
    text = (
        source.read_text() if source.suffix == ".jinja" else json.loads(source.read_text())["chat_template"]
    )
    rendered, ids, equal, as_own = [], [], 0, 0
    for messages in PROMPTS:
        wanted = theirs.apply_chat_template(
            messages, chat_template=text, tokenize=False, add_generation_prompt=True
        )
        wanted_ids = theirs(wanted)["input_ids"]
        clean, _ = read_messages(messages)
        parts = template.render(clean, ours)
        equal += ours.encode_parts(parts) == wanted_ids
        as_own += "".join(piece for piece, _ in own.render(clean, ours)) == wanted
        rendered.append(wanted)
        ids.append(wanted_ids)
    return {
        "compared": len(PROMPTS),
        "equal": equal,
        "as_own": as_own,
        "ids": digest(ids),
        "rendered": digest(rendered),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
