"""What turns a conversation into ids: special tokens, chat template, pixel limits, how generation ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qvl.checkpoint.check.finding import Finding
from qvl.checkpoint.checkpoint import Checkpoint
from qvl.errors import ConfigError, QvlError
from qvl.inputs.chat import read_messages
from qvl.inputs.processor import preprocessor_settings
from qvl.records import read_json

_ORIGINAL = "take this file from the original model"
# what config.json numbers, and how the tokenizer of every generation from Qwen2-VL on writes it
_SPECIAL = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
_PROBE: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": "x"},
            {"type": "text", "text": "a"},
            {"type": "video", "video": "y"},
        ],
    }
]


def findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    found: list[Finding] = []
    if checkpoint.config.generation.template == "chatml":  # Qwen-VL has other files and other tokens
        found += _tokenizer(checkpoint)
        found += _processor(checkpoint)
        found += _generation(checkpoint)
    for rule in ("processor", "generation"):  # what else loading refuses
        if not any(finding.level == "error" for finding in found):
            try:
                part = getattr(checkpoint, rule)
                if rule == "generation" and part.not_honoured:
                    keys = ", ".join(f"{k}={v!r}" for k, v in part.not_honoured.items())
                    what = f"generation_config.json: not honoured: {keys}"
                    found.append(
                        Finding("note", "generation-unread", what, "nothing, if answers don't need it")
                    )
                if rule == "processor" and part.unread:
                    what = f"not read: {', '.join(part.unread)}; qvl doesn't know them, and computes as without them"
                    found.append(
                        Finding("note", "processor-unread", what, "nothing, if a trainer wrote them")
                    )
            except QvlError as e:
                found.append(Finding("error", rule, str(e), _ORIGINAL))
    yield from found


def _json(path: Path) -> Any:
    """The content, or None without a file. Raises: ValueError."""
    return read_json(path) if path.is_file() else None


def _tokenizer(checkpoint: Checkpoint) -> Iterator[Finding]:
    config = checkpoint.config
    try:
        tokenizer = checkpoint.tokenizer
    except QvlError as e:
        yield Finding("error", "tokenizer", str(e), _ORIGINAL)
        return
    for key, text in _SPECIAL.items():
        want, have = getattr(config, key), tokenizer.special.get(text)
        if want != have:
            yield Finding(
                "error",
                "special-id",
                f"config.json's {key} is {want}, the tokenizer's {text} is {'missing' if have is None else have}: "
                "image features and image tokens won't match",
                f"set {key} to {have}" if have is not None else "take tokenizer.json from the original model",
            )
    size = len(tokenizer)
    if size > config.text.vocab_size:
        yield Finding(
            "error",
            "vocab",
            f"the tokenizer has {size} tokens, the embedding table {config.text.vocab_size} rows: the last have none",
            "call resize_token_embeddings before saving, or take tokenizer.json from the original model",
        )
    ends = [i for i in config.eos_token_ids if i >= config.text.vocab_size]
    if ends:
        yield Finding("error", "eos", f"config.json's eos_token_id {ends} is past the vocabulary", _ORIGINAL)
    raw = _json(checkpoint.folder / "tokenizer.json") or {}
    truncation = raw.get("truncation")
    if isinstance(truncation, dict):
        yield Finding(
            "error",
            "truncation",
            f"tokenizer.json cuts prompts at {truncation.get('max_length')} tokens, a leftover of calibration: "
            "placeholders of images are cut with them, and features no longer match tokens",
            'set "truncation" to null in tokenizer.json',
        )
    yield from _template(checkpoint, tokenizer)


def _template(checkpoint: Checkpoint, tokenizer: Any) -> Iterator[Finding]:
    try:
        template = checkpoint.template
    except QvlError as e:
        yield Finding("error", "template", str(e), _ORIGINAL)
        return
    if template is None:
        yield Finding(
            "warning",
            "template-missing",
            "there is no chat template (chat_template.jinja, chat_template.json or in tokenizer_config.json); qvl uses "
            "its own, other engines refuse to chat",
            "copy chat_template.jinja or chat_template.json from the original model",
        )
        return
    try:
        parts = template.render(read_messages(_PROBE)[0], tokenizer)
    except QvlError as e:
        yield Finding("error", "template", str(e), _ORIGINAL)
        return
    text = "".join(piece for piece, _ in parts)
    for kind, pad in (("image", "<|image_pad|>"), ("video", "<|video_pad|>")):
        if (count := text.count(pad)) != 1:
            yield Finding(
                "error",
                "template-media",
                f"{template.where}: writes {count} {pad} for one {kind}: features and placeholders won't match",
                "copy the template from the original model; the text-only Qwen template drops images",
            )
    if text.count("<|vision_start|>") != text.count("<|vision_end|>"):
        yield Finding(
            "error", "template-media", f"{template.where}: leaves a <|vision_start|> without its end", _ORIGINAL
        )  # fmt: skip
    if "assistant" not in text[-40:]:  # a thinking model's also opens its thoughts
        yield Finding(
            "warning", "template-prompt", f"{template.where}: add_generation_prompt doesn't open an answer", _ORIGINAL
        )  # fmt: skip


def _processor(checkpoint: Checkpoint) -> Iterator[Finding]:
    config, vision = checkpoint.config, checkpoint.config.vision
    try:
        settings = preprocessor_settings(checkpoint.folder)
    except ConfigError as e:
        yield Finding("error", "processor", str(e), _ORIGINAL)
        return
    if not settings[0][0]:
        yield Finding(
            "warning",
            "processor-missing",
            "there is no preprocessor_config.json, nor a processor_config.json with an image_processor; engines fall "
            "back on the limits of a class or refuse images",
            _ORIGINAL,
        )
    for raw, where in settings:
        name = Path(where).name
        sides = (
            ("patch_size", vision.patch_size),
            ("merge_size", vision.spatial_merge_size),
            ("temporal_patch_size", vision.temporal_patch_size),
        )
        for key, want in sides:
            if raw.get(key, want) != want:
                yield Finding(
                    "error",
                    "processor-patch",
                    f"{name}: {key} is {raw[key]}, the tower's is {want}: the number of visual tokens won't match",
                    f"set {key} to {want}; Qwen2-VL and Qwen2.5-VL have 14, Qwen3-VL and later 16"
                    if key == "patch_size"
                    else f"set {key} to {want}",
                )
        yield from _limits(name, raw, config)


def _limits(name: str, raw: dict[str, Any], config: Any) -> Iterator[Finding]:
    size = raw.get("size")
    size = size if isinstance(size, dict) else {}
    low, high = raw.get("min_pixels"), raw.get("max_pixels")
    short, long = size.get("shortest_edge"), size.get("longest_edge")
    for ours, theirs, keys in (
        (low, short, ("min_pixels", "shortest_edge")),
        (high, long, ("max_pixels", "longest_edge")),
    ):
        if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs:
            yield Finding(
                "warning",
                "limits-differ",
                f"{name}: {keys[0]} is {ours}, size.{keys[1]} {theirs}: which one counts depends on the version of "
                "transformers",
                "write the same area to both",
            )
    low, high = low if low is not None else short, high if high is not None else long
    if not (isinstance(low, int) and isinstance(high, int)):
        return
    if not 0 < low <= high:
        yield Finding(
            "error", "limits", f"{name}: images must have {low} to {high} pixels, which no image has",
            "min_pixels must be above 0 and at most max_pixels",
        )  # fmt: skip
        return
    if "video" in name:
        return  # there the area is of all frames together
    unit = (config.vision.patch_size * config.vision.spatial_merge_size) ** 2
    context = config.text.max_position_embeddings
    if high // unit >= context:
        yield Finding(
            "warning", "limits", f"{name}: {high} pixels are {high // unit} visual tokens, the context has {context}",
            f"lower max_pixels below {context * unit}",
        )  # fmt: skip


def _generation(checkpoint: Checkpoint) -> Iterator[Finding]:
    path = checkpoint.folder / "generation_config.json"
    try:
        raw = _json(path)
    except ValueError as e:
        yield Finding("error", "generation", f"{path}: not JSON ({e})", _ORIGINAL)
        return
    if raw is None:
        yield Finding(
            "note",
            "generation-missing",
            "there is no generation_config.json: every engine samples by its own defaults",
            _ORIGINAL,
        )
        return
    eos = raw.get("eos_token_id") if isinstance(raw, dict) else None
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    vocab = checkpoint.config.text.vocab_size
    if any(type(i) is not int or not 0 <= i < vocab for i in ids):
        yield Finding(
            "error",
            "generation",
            f"generation_config.json ends answers at {eos}, the vocabulary has {vocab} rows",
            _ORIGINAL,
        )
    elif ids and checkpoint.config.eos_token_ids and not set(ids) & set(checkpoint.config.eos_token_ids):
        yield Finding(
            "warning",
            "generation-eos",
            f"generation_config.json ends answers at {ids}, config.json at {list(checkpoint.config.eos_token_ids)}: "
            "engines that read only one of them don't stop, or stop too soon",
            "write the same ids to both",
        )
