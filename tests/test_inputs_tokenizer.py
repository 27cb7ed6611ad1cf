"""Words stay words, streams never break a character, and both vocabulary formats agree with the reference."""

import base64
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inputs_small import PLAIN_ADDED, SPECIAL, TEXT, tokenizer_json, write_checkpoint
from qvl.errors import ConfigError
from qvl.inputs.tokenizer import QWEN_VL_SPECIAL, Tokenizer

TOKENIZER = Tokenizer.from_json(json.loads(tokenizer_json()))
SPECIAL_IDS = set(TOKENIZER.special.values())
pieces = st.lists(st.one_of(st.sampled_from(SPECIAL + PLAIN_ADDED + TEXT), st.text()), max_size=6).map(
    "".join
)


@pytest.fixture(scope="module")
def reference():
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(tokenizer_json())


@settings(max_examples=200, deadline=None)
@given(pieces)
def test_words_never_become_special_tokens_and_read_back_as_written(text):
    import unicodedata

    ids = TOKENIZER.encode(text)
    assert not SPECIAL_IDS & set(ids)
    assert TOKENIZER.decode(ids) == unicodedata.normalize("NFC", text)


@settings(max_examples=150, deadline=None)
@given(pieces)
def test_trusted_text_is_encoded_as_the_reference_does(reference, text):
    assert TOKENIZER.encode_trusted(text) == reference.encode(text, add_special_tokens=False).ids


def test_every_special_token_is_found_in_trusted_text_only():
    for text in SPECIAL + PLAIN_ADDED:
        assert TOKENIZER.encode_trusted(f"a{text}b").count(TOKENIZER.id_of(text)) == 1
        assert TOKENIZER.id_of(text) not in TOKENIZER.encode(f"a{text}b")


def test_words_are_encoded_together_across_parts():
    whole = TOKENIZER.encode("user\n\n\nhello")
    assert TOKENIZER.encode_parts([("user\n", True), ("\n\nhel", False), ("lo", True)]) == whole


def test_a_special_token_spread_over_parts_stays_text():
    for parts in (
        [("<|im_", True), ("end|>", True)],
        [("<|im_end|>", False)],
        [("<|im_", True), ("end|>", False)],
    ):
        ids = TOKENIZER.encode_parts(parts)
        assert not SPECIAL_IDS & set(ids)
        assert TOKENIZER.decode(ids) == "<|im_end|>"


def test_a_special_token_listed_among_the_words_is_not_reachable_from_text():
    raw = json.loads(tokenizer_json())
    raw["model"]["vocab"] |= {t["content"]: t["id"] for t in raw["added_tokens"]}
    raw["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": "\0"},
        "behavior": "Isolated",
        "invert": False,
    }
    raw["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_json(raw)
    assert tokenizer.id_of("<|im_end|>") not in tokenizer.encode("<|im_end|>")


def test_half_a_surrogate_pair_is_replaced_instead_of_failing():
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud83db")) == "a?b"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) + 3), max_size=40))
def test_a_stream_of_any_tokens_equals_decoding_them_at_once(ids):
    stream = TOKENIZER.stream()
    assert "".join([stream.push(i) for i in ids]) + stream.finish() == TOKENIZER.decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_decoding_equals_the_reference_when_nothing_is_dropped(reference, ids):
    assert TOKENIZER.decode(ids, keep_control=True) == reference.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("text", ["합계는 12,500원", "👩‍👩‍👧‍👦 ok", "a🧾b", "混合 text 한글 🎉"])
def test_a_stream_never_emits_half_a_character(text):
    # one token a byte is the worst case
    ids = [i for byte in text.encode() for i in [_byte_token(byte)]]
    stream = TOKENIZER.stream()
    emitted = [stream.push(i) for i in ids]
    assert "�" not in "".join(emitted)
    assert "" in emitted
    assert "".join(emitted) + stream.finish() == text


def _byte_token(byte):
    return next(i for i in range(len(TOKENIZER)) if TOKENIZER.token_bytes(i) == bytes([byte]))


def test_an_answer_cut_inside_a_character_ends_in_one_replacement():
    stream = TOKENIZER.stream()
    assert stream.push(_byte_token("한".encode()[0])) == ""
    assert stream.finish() == "�"


def test_control_tokens_are_dropped_and_boxes_kept():
    text = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|><|im_end|>"
    ids = TOKENIZER.encode_trusted(text)
    assert TOKENIZER.decode(ids) == text.removesuffix("<|im_end|>")
    assert TOKENIZER.decode(ids, keep_control=True) == text
    stream = TOKENIZER.stream()
    assert "".join([stream.push(i) for i in ids]) + stream.finish() == text.removesuffix("<|im_end|>")


def test_ids_of_padding_rows_decode_to_nothing():
    assert TOKENIZER.decode([len(TOKENIZER) + 5]) == ""


def test_an_unknown_special_token_is_named_with_its_neighbours():
    with pytest.raises(ConfigError, match=r"<\|im_stop\|>.*<\|im_"):
        TOKENIZER.id_of("<|im_stop|>")


def test_a_folder_is_read_and_one_without_a_vocabulary_refused(tmp_path):
    assert Tokenizer.from_pretrained(write_checkpoint(tmp_path / "a")).special == TOKENIZER.special
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not a tokenizer file"),
        ('{"model": {"type": "BPE"}}', "not a tokenizer file"),
        ('{"model": {"vocab": {}}, "decoder": {"type": "WordPiece"}}', "WordPiece"),
        ('{"model": {"type": "Nope", "vocab": {}}, "decoder": {"type": "ByteLevel"}}', "can't be built"),
    ],
)
def test_broken_tokenizer_files_are_config_errors(tmp_path, content, reason):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=reason):
        Tokenizer.from_file(path)


# ------------------------------------------------------------------------------------------- qwen.tiktoken


def make_ranks():
    """A small rank table, built by greedy pair merging on the sample text."""
    ranks = {bytes([b]): b for b in range(256)}
    words = [w.encode() for line in TEXT for w in line.replace(" ", " \0").split("\0")]
    split = [[bytes([b]) for b in w] for w in words]
    for _ in range(120):
        counts = {}
        for parts in split:
            for pair in itertools.pairwise(parts):
                counts[pair] = counts.get(pair, 0) + 1
        left, right = max(counts, key=lambda p: (counts[p], p))
        ranks.setdefault(left + right, len(ranks))
        split = [merge_all(parts, left, right) for parts in split]
    return ranks


def merge_all(parts, left, right):
    out = []
    for part in parts:
        if out and out[-1] == left and part == right:
            out[-1] = left + right
        else:
            out.append(part)
    return out


RANKS = make_ranks()


@pytest.fixture(scope="module")
def rank_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "qwen.tiktoken"
    path.write_bytes(b"\n".join(base64.b64encode(t) + b" %d" % r for t, r in RANKS.items()))
    return path


def oracle(piece):
    """Byte pairs by rank, the slow way."""
    if piece in RANKS:
        return [RANKS[piece]]
    parts = [bytes([b]) for b in piece]
    while True:
        joins = [(RANKS[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in RANKS]
        if not joins:
            return [RANKS[p] for p in parts]
        _, i = min(joins)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.sampled_from([w for line in TEXT for w in line.split() if w.isalpha()]),
        st.from_regex(r"[a-z가-힣]{1,12}", fullmatch=True),
    )
)
def test_ranks_merge_as_the_slow_way_does(rank_file, word):
    import unicodedata

    tokenizer = _rank_tokenizer(rank_file)
    assert tokenizer.encode(word) == oracle(unicodedata.normalize("NFC", word).encode())


_cache = {}


def _rank_tokenizer(path):
    return _cache.setdefault(path, Tokenizer.from_tiktoken(path))


def test_first_generation_specials_follow_the_ranks(rank_file):
    tokenizer = _rank_tokenizer(rank_file)
    first = max(RANKS.values()) + 1
    assert len(QWEN_VL_SPECIAL) == 217
    # published ids count from 151643: <ref> is 151851, <imgpad> 151859
    assert tokenizer.id_of("<|im_end|>") - first == 2
    assert tokenizer.id_of("<ref>") - first == 151851 - 151643
    assert tokenizer.id_of("<imgpad>") - first == 151859 - 151643
    assert not set(tokenizer.special.values()) & set(tokenizer.encode("<img>x</img><|im_end|>"))


def test_a_folder_with_ranks_only_is_read(rank_file):
    text = "그림 1: <box>(1,2)</box> 🧾"
    tokenizer = Tokenizer.from_pretrained(rank_file.parent)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"!!! 0", ":1: not a line"), (b"YQ==", ":1: not a line"), (b"YQ== 0", "255 of 256")],
)
def test_broken_rank_files_are_config_errors(tmp_path, content, reason):
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        Tokenizer.from_tiktoken(path)
    with pytest.raises(ConfigError, match="can't be read"):
        Tokenizer.from_tiktoken(tmp_path / "none")


def test_a_slow_tokenizers_files_give_the_same_ids(tmp_path):
    """vocab.json, merges.txt and the added tokens that tokenizer_config.json or added_tokens.json numbers."""
    raw = json.loads(tokenizer_json())
    added = {t["content"]: t["id"] for t in raw["added_tokens"]}
    words = {text: number for text, number in raw["model"]["vocab"].items() if text not in added}
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["model"]["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    fast = Tokenizer.from_json(raw)
    for _ in range(2):
        slow = Tokenizer.from_pretrained(tmp_path)
        assert slow.special == fast.special
        for text in [*TEXT, "<|im_start|>user\n그림 <|im_end|>", "café  naïve\n\n 12"]:
            assert slow.encode_trusted(text) == fast.encode_trusted(text)
        decoder = {str(number): {"content": text, "special": True} for text, number in added.items()}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
        (tmp_path / "added_tokens.json").unlink(missing_ok=True)
