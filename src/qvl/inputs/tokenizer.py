"""Text ↔ token ids, and text out of tokens as they come.

Words and special tokens never mix by accident: `encode` makes only ordinary tokens, whatever the text
contains, and special ids come from `special` alone. Templates and conversations are chat.py's.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from qvl.errors import ConfigError, lfs_pointer, nearest
from qvl.records import read_json, shown
from qvl.units import MiB

# How every generation of Qwen cuts text before merging (tokenization_qwen.py; tokenizer.json of Qwen2-VL).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# and Qwen3.5, whose words hold combining marks too (tokenization_qwen3_5.py)
_SPLIT_MARKS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_AS_IT_IS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}

# A qwen.tiktoken file holds ranks only; the first generation's code numbers these after them.
QWEN_VL_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)),
    "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>",
)  # fmt: skip

# Special or added tokens that a model says as part of an answer, and that a reader of the answer needs.
MODEL_WORDS = frozenset(
    "<tool_call> </tool_call> <think> </think> <ref> </ref> <box> </box> <quad> </quad>".split()
    + [f"<|{kind}_{end}|>" for kind in ("object_ref", "box", "quad") for end in ("start", "end")]
)


def _byte_of_char() -> dict[str, int]:
    """Byte-level vocabularies write every byte as one printable character; this reads them back."""
    table, spare = {}, 256
    for byte in range(256):
        printable = 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255
        table[chr(byte if printable else spare)] = byte
        spare += not printable
    return table


_BYTE_OF_CHAR = _byte_of_char()
_CHAR_OF_BYTE = {byte: char for char, byte in _BYTE_OF_CHAR.items()}  # a table for str.translate


_LARGEST = 128 * MiB  # bytes of a tokenizer.json; published ones have up to 20 MiB


class Tokenizer:
    """A byte-level vocabulary whose special tokens are kept apart from its words.

    special: text of every added token → id. control_ids: those that never belong to an answer's text.
    """

    def __init__(self, words: Backend, special: Mapping[str, int]):
        """words: a backend that holds no added token."""
        self._words = words
        self.special = dict(special)
        self._special_text = {i: text for text, i in self.special.items()}
        self.control_ids = frozenset(i for text, i in self.special.items() if text not in MODEL_WORDS)
        longest_first = sorted(self.special, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._bytes = {i: text.encode() for text, i in self.special.items()}  # and of each word asked for

    # ------------------------------------------------------------------------------------ reading files

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """From a checkpoint folder: tokenizer.json, vocab.json with merges.txt, or a qwen.tiktoken.

        Raises: ConfigError if neither is there or it can't be read.
        """
        folder = Path(folder)
        for name, read in (("tokenizer.json", cls.from_file), ("qwen.tiktoken", cls.from_tiktoken)):
            if (folder / name).is_file():
                return read(folder / name)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return cls.from_vocabulary(folder)
        raise ConfigError(
            f"{folder}: no tokenizer.json, no vocab.json with merges.txt and no qwen.tiktoken in this folder"
        )

    @classmethod
    def from_vocabulary(cls, folder: Path) -> Tokenizer:
        """From vocab.json and merges.txt, the files of the slow tokenizer that every generation from Qwen2-VL on has.

        Added tokens are those of tokenizer_config.json, or of added_tokens.json. Raises: ConfigError.
        Source: tokenization_qwen2 and tokenization_qwen3_5 of transformers 5.24.
        """
        vocabulary = read_object(folder / "vocab.json")
        settings = read_object(folder / "tokenizer_config.json")
        try:
            lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as e:
            raise ConfigError(f"{folder / 'merges.txt'}: can't be read ({e})") from e
        merges = [line for line in lines if line and not line.startswith("#version")]
        added = [
            {**_AS_IT_IS, **(token if isinstance(token, dict) else {"content": token}), "id": int(number)}
            for number, token in (settings.get("added_tokens_decoder") or {}).items()
        ] or [
            {**_AS_IT_IS, "content": text, "id": number}
            for text, number in read_object(folder / "added_tokens.json").items()
        ]
        split = settings.get("pretokenize_regex")
        if not split:
            split = _SPLIT_MARKS if "3_5" in str(settings.get("tokenizer_class")) else _SPLIT
        raw = {
            "version": "1.0",
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
                    {
                        "type": "ByteLevel",
                        "add_prefix_space": False,
                        "trim_offsets": False,
                        "use_regex": False,
                    },
                ],
            },
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": False,
                "use_regex": False,
            },
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        }
        return cls.from_json(raw, str(folder / "vocab.json"))

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """From a tokenizer.json with a byte-level decoder. Raises: ConfigError."""
        try:
            raw = read_json(Path(path), _LARGEST)
        except OSError as e:
            raise ConfigError(f"{path}: can't be read ({e.strerror})") from e
        except ValueError as e:
            raise ConfigError(f"{path}: {lfs_pointer(Path(path)) or f'not JSON ({e})'}") from e
        return cls.from_json(raw, str(path))

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], where: str = "tokenizer") -> Tokenizer:
        """From the content of a tokenizer.json. Raises: ConfigError."""
        raw = dict(raw) if isinstance(raw, Mapping) else {}
        if not isinstance(raw.get("model"), dict) or "vocab" not in raw["model"]:
            raise ConfigError(f"{where}: not a tokenizer file (it has no model.vocab)")
        decoder = raw.get("decoder")
        decoder = decoder if isinstance(decoder, dict) else {}
        parts = decoder.get("decoders", [decoder])
        parts = parts if isinstance(parts, list) else [parts]
        kinds = {str(part.get("type")) if isinstance(part, dict) else shown(part) for part in parts}
        if kinds != {"ByteLevel"}:
            raise ConfigError(f"{where}: its decoder is {sorted(map(str, kinds))}; only ByteLevel is known")
        special = {}
        for token in raw.get("added_tokens") or []:
            content, number = (
                (token.get("content"), token.get("id")) if isinstance(token, dict) else ("", None)
            )
            if (
                not isinstance(content, str)
                or not content
                or type(number) is not int
                or not 0 <= number < 1 << 31
            ):
                raise ConfigError(
                    f"{where}: added token {shown(token)} needs a content that isn't empty and an id from 0 on"
                )
            if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
                raise ConfigError(f"{where}: added token {token['content']!r} eats its surroundings")
            special[token["content"]] = token["id"]
        # A trainer of small vocabularies lists special tokens among the words too. There a user's text
        # could still spell one, so they go, save those that merges build.
        model = dict(raw["model"])
        if isinstance(model["vocab"], dict) and any(text in model["vocab"] for text in special):
            merges = model.get("merges") or []
            if not isinstance(merges, list) or not all(_is_merge(merge) for merge in merges):
                raise ConfigError(f"{where}: model.merges must be a list of pairs of texts")
            built = {"".join(m) if isinstance(m, list) else m.replace(" ", "", 1) for m in merges}
            keep = built | {model.get("unk_token")}
            model["vocab"] = {t: i for t, i in model["vocab"].items() if t in keep or t not in special}
        raw |= {
            "added_tokens": [],
            "post_processor": None,
            "model": model,
            "truncation": None,
            "padding": None,
        }
        try:
            words = Backend.from_str(json.dumps(raw))
        except Exception as e:  # the backend raises bare Exception
            raise ConfigError(f"{where}: the tokenizer can't be built ({e})") from e
        return cls(words, special)

    @classmethod
    def from_tiktoken(cls, path: str | Path, special: Sequence[str] = QWEN_VL_SPECIAL) -> Tokenizer:
        """From a file of "base64 rank" lines; `special` are numbered after the last rank. Raises: ConfigError."""
        ranks: dict[bytes, int] = {}
        try:
            lines = Path(path).read_bytes().splitlines()
        except OSError as e:
            raise ConfigError(f"{path}: can't be read ({e.strerror})") from e
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error) as e:
                raise ConfigError(f"{path}:{number}: not a line of base64 and rank") from e
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if missing:
            raise ConfigError(
                f"{path}: {len(missing)} of 256 single bytes have no rank; the file is cut short"
            )
        first = max(ranks.values()) + 1
        return cls(_rank_backend(ranks), {text: first + i for i, text in enumerate(special)})

    # ------------------------------------------------------------------------------------------ encoding

    def __len__(self) -> int:
        """Rows an embedding needs for every id: the largest id + 1."""
        return self._num_rows

    @cached_property
    def _num_rows(self) -> int:
        return int(max([*self._words.get_vocab().values(), *self.special.values()])) + 1

    def id_of(self, special: str) -> int:
        """Raises: ConfigError if the vocabulary has no such special token."""
        try:
            return self.special[special]
        except KeyError:
            raise ConfigError(
                f"the tokenizer has no {special!r}; {nearest(special, sorted(self.special))}"
            ) from None

    def special_text(self, token_id: int) -> str | None:
        """The text of a special token, None for a word."""
        return self._special_text.get(token_id)

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens only: `<|im_end|>` written in the text is encoded as its letters."""
        # half a surrogate pair can't be UTF-8; it arrives from JSON escapes of strangers
        text = text.encode("utf-8", "replace").decode() if _has_surrogate(text) else text
        if len(text) <= _PIECE:
            return self._words.encode(text, add_special_tokens=False).ids if text else []
        ids: list[int] = []
        for piece in _pieces(text) if self._cuts_words else (text,):
            # a batch lets other threads run meanwhile, a single text doesn't
            ids += self._words.encode_batch_fast([piece], add_special_tokens=False)[0].ids
        return ids

    @cached_property
    def _cuts_words(self) -> bool:
        """Whether text is cut at least at each word's end before merging, as every published vocabulary does."""
        first = json.loads(self._words.to_str())["pre_tokenizer"] or {}
        steps = first.get("pretokenizers", [first])
        return any(step["type"] == "Split" or step.get("use_regex") for step in steps if step)

    def encode_parts(self, parts: Iterable[tuple[str, bool]]) -> list[int]:
        """Ids of (text, trusted) parts. Special tokens are recognised only wholly inside one trusted part.

        Neighbouring words are encoded together across parts, as if the text were one string.
        """
        ids: list[int] = []
        words: list[str] = []
        for text, trusted in parts:
            at = 0
            for match in self._special_pattern.finditer(text) if trusted else ():
                words.append(text[at : match.start()])
                ids += self.encode("".join(words))
                words.clear()
                ids.append(self.special[match.group()])
                at = match.end()
            words.append(text[at:])
        return ids + self.encode("".join(words))

    def encode_trusted(self, text: str) -> list[int]:
        """Ids of a text of our own, in which special tokens count. Never for a user's words."""
        return self.encode_parts([(text, True)])

    # ------------------------------------------------------------------------------------------ decoding

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 of one token, maybe half a character. Empty for padding rows beyond the vocabulary."""
        known = self._bytes.get(token_id)
        if known is None:
            token = (self._words.id_to_token(token_id) if token_id >= 0 else None) or ""
            spelt = all(char in _BYTE_OF_CHAR for char in token)
            known = bytes(_BYTE_OF_CHAR[char] for char in token) if spelt else token.encode()
            self._bytes[token_id] = known
        return known

    def decode(self, ids: Iterable[int], keep_control: bool = False) -> str:
        """Text of a whole answer. Box, tool and think tokens stay; `<|im_end|>` and its like are dropped."""
        kept = (i for i in ids if keep_control or i not in self.control_ids)
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def stream(self, keep_control: bool = False) -> StreamDecoder:
        return StreamDecoder(self, keep_control)


class StreamDecoder:
    """Turns tokens into text as they come. All pieces together equal decode() of all tokens."""

    def __init__(self, tokenizer: Tokenizer, keep_control: bool = False):
        self._tokenizer = tokenizer
        self._keep_control = keep_control
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is certain now; "" while a character is incomplete."""
        if not self._keep_control and token_id in self._tokenizer.control_ids:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: a replacement character if the answer stopped inside a character."""
        return self._utf8.decode(b"", final=True)


def _is_merge(merge: Any) -> bool:
    return isinstance(merge, str) or (
        isinstance(merge, list) and all(isinstance(part, str) for part in merge)
    )


def read_object(path: Path) -> dict[str, Any]:
    """{} without the file. Raises: ConfigError."""
    if not path.is_file():
        return {}
    try:
        raw = read_json(path)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: {lfs_pointer(path) or f'not a JSON object ({e})'}") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: not a JSON object (it holds a {type(raw).__name__})")
    return raw


_PIECE = 1 << 16
# Where every vocabulary's expression ends one word and begins another: after a line, at a space between letters.
_SEAM = re.compile(r"\n(?=[0-9A-Za-z])|(?<=[a-z])(?= [a-z])")


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of about 64 Ki characters, whose tokens are those of the whole. A text without seams stays
    whole."""
    at = 0
    while (seam := _SEAM.search(text, at + _PIECE)) is not None:
        yield text[at : seam.end()]
        at = seam.end()
    yield text[at:]


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _rank_backend(ranks: Mapping[bytes, int]) -> Backend:
    """A merging backend that gives what ranked byte pairs give: the lowest-ranked neighbours join first."""

    vocabulary = {token.decode("latin-1").translate(_CHAR_OF_BYTE): rank for token, rank in ranks.items()}
    rank_of = vocabulary.get
    merges = []
    for token in sorted(vocabulary, key=vocabulary.__getitem__):
        # every split counts: by ranks alone, any two neighbours that spell a token may join
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        if len(known) > 1:
            known.sort(key=lambda pair: (rank_of(pair[0]), rank_of(pair[1])))
        merges += known
    backend = Backend(models.BPE(vocabulary, merges, ignore_merges=True))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend
