"""Each benchmark reads five items in its official layout, words its prompt, and scores by its rule."""

import pytest

from benchmark_files import MAKERS, base64_image, put_tsv
from qvl.errors import QvlError
from qvl.evaluate.benchmarks import BENCHMARKS, benchmark, readers
from qvl.evaluate.benchmarks.chartqa import relaxed, strict
from qvl.evaluate.benchmarks.docvqa import anls
from qvl.evaluate.benchmarks.mathvista import normalise
from qvl.evaluate.benchmarks.mmmu import open_right, parse_letter, parse_open, parse_pro_letter
from qvl.evaluate.benchmarks.textvqa import vqa_accuracy
from qvl.evaluate.samples import Sample, SampleError
from qvl.evaluate.scorers.base import Reply

GENERATIONS = ("qwen_vl", "qwen2_5_vl", "qwen3_vl")


def reply(text: str, sample: Sample, family: str = "qwen2_5_vl") -> Reply:
    return Reply(text=text, family=family, sizes=tuple(((100, 200), (112, 196)) for _ in sample.media))


def test_each_benchmark_has_a_fixture():
    assert set(MAKERS) == set(BENCHMARKS)


@pytest.mark.parametrize("name", MAKERS)
def test_five_items_are_read_worded_and_scored(name, tmp_path):
    make, right = MAKERS[name]
    bench = benchmark(name)
    data = make(tmp_path)
    samples = {s.id: s for s in bench.samples(data, generation="qwen2_5_vl")}
    assert len(samples) == 5
    rows = []
    for sample in samples.values():
        bench.scorer.read_truth(sample)
        for medium in sample.loaded():
            assert medium is not None
    for id_, text in right.items():
        grade = bench.scorer.grade(reply(text, samples[id_]), samples[id_])
        assert grade.score == 1, (id_, grade)
        assert grade.parsed is not None
        rows.append((samples[id_], grade))
    nothing = [(s, bench.scorer.grade(reply("", s), s)) for s in samples.values()]
    assert all(g.score == 0 for _, g in nothing)
    assert all(isinstance(v, float | int) for v in bench.figures(rows + nothing).values())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_record_says_where_its_files_are_and_what_is_wrong_with_its_rule(name):
    bench = benchmark(name)
    assert bench.name == name
    text = bench.how()
    for part in ("Files: ", "Licence: ", "Layout: ", "Layout seen in: ", "Rule: "):
        assert part in text
    assert "official" in bench.scorer.choices
    for generation in GENERATIONS:
        assert bench.settings_for(generation).source or bench.settings_for(generation).temperature is not None


@pytest.mark.parametrize("name", MAKERS)
def test_the_official_rule_can_be_asked_for(name, tmp_path):
    make, right = MAKERS[name]
    bench = benchmark(name)
    samples = {s.id: s for s in bench.samples(make(tmp_path))}
    scorer = bench.scorer.with_options({"official": True})
    for id_, text in right.items():
        assert 0 <= scorer.grade(reply(text, samples[id_]), samples[id_]).score <= 1


def test_an_unknown_benchmark_and_missing_files_are_named(tmp_path):
    with pytest.raises(QvlError, match="docvqa"):
        benchmark("docvq")
    with pytest.raises(SampleError, match="--how"):
        benchmark("docvqa").samples(tmp_path / "nowhere")
    with pytest.raises(SampleError, match=r"val_v1\.0"):
        benchmark("docvqa").samples(tmp_path)
    with pytest.raises(SampleError, match="split"):
        benchmark("docvqa").samples(tmp_path, split="train")


def test_a_missing_image_is_named_with_its_row(tmp_path):
    MAKERS["docvqa"][0](tmp_path)
    (tmp_path / "documents" / "page_3.png").unlink()
    with pytest.raises(SampleError, match=r"data\[3\].*page_3\.png"):
        benchmark("docvqa").samples(tmp_path)


def test_a_tsv_reads_its_images_late_and_shares_them_between_rows(tmp_path):
    header = ["index", "image", "question", "answer"]
    rows = [["7", base64_image(), 'a "quoted"\tand\nbroken cell', "['x', 'y']"], ["8", "7", "plain", "z"]]
    file = put_tsv(tmp_path / "a.tsv", header, rows)
    found = list(readers.read_tsv(file))
    assert [row["question"] for _, row, _ in found] == ['a "quoted"\tand\nbroken cell', "plain"]
    assert found[1][0].endswith(":4")
    assert all("image" not in row for _, row, _ in found)
    assert [load().size for _, _, load in found] == [(200, 100)] * 2
    put_tsv(tmp_path / "b.tsv", header, [["8", "7", "plain", "z"]])
    with pytest.raises(SampleError, match="row '7'"):
        list(readers.read_tsv(tmp_path / "b.tsv"))


def test_parquet_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SampleError, match=r"qvl\[parquet\]"):
        list(readers.read_parquet(tmp_path))


# ---------------------------------------------------------------------------------------- rules, edge by edge


@pytest.mark.parametrize(
    ("said", "answer", "ours", "official"),
    [
        ("ab", "ac", 0.5, 0.5),  # exactly 0.5 counts
        ("ab    ", "ac", 0.5, 1 - 1 / 6),  # blanks at the end
        ("42%", "42", 1 - 1 / 3, 1 - 1 / 3),
        ("Two  Words", "two words", 1.0, 1.0),
        ("abc", "xyz", 0.0, 0.0),
        ("", "", 1.0, 1.0),
    ],
)
def test_anls_measures_tidied_texts(said, answer, ours, official):
    assert anls(said, (answer,)) == pytest.approx(ours)
    assert anls(said, (answer,), raw_length=True) == pytest.approx(official)


@pytest.mark.parametrize(
    ("said", "target", "right", "exact_years"),
    [
        ("105", "100", True, True),
        ("105.1", "100", False, False),
        ("10%", "0.1", True, True),
        ("2010", "2015", True, False),
        ("2015", "2015", True, True),
        ("0.0", "0", False, True),
        ("1,000", "1000", False, True),
        ("Blue.", "blue", False, True),
        ("Blue", "blue", True, True),
    ],
)
def test_relaxed_accuracy_and_its_strict_sister(said, target, right, exact_years):
    assert relaxed(said, target) is right
    assert strict(said, target) is exact_years


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_by_matches(matches, score):
    answers = ("red",) * matches + tuple(f"x{i}" for i in range(10 - matches))
    assert vqa_accuracy("The Red.", answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("said", "answer"), [("3.", "3"), ("two", "2"), ("dont", "don't"), ("1,000", "1000"), ("An ox", "ox")]
)
def test_vqa_answers_are_normalised(said, answer):
    assert vqa_accuracy(said, (answer,) * 10) == 1


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(A) no, (B)", "B"),
        ("B", "B"),
        ("B.", "B"),
        ("I think that the answer is four, really", "D"),
        ("**B**", None),
        (r"\boxed{B}", None),
        ("b", None),
        ("B\nbecause", None),
        ("Answer: B, as A is wrong", "A"),  # of the bare letters the one between blanks
    ],
)
def test_the_official_letter_parser_without_its_guess(text, letter):
    assert parse_letter(text, ("one", "two", "three", "four")) == letter


def test_mmmu_pro_reads_the_letter_after_answer():
    choices = tuple(f"option {i}" for i in range(10))
    assert parse_pro_letter("A is wrong.\nAnswer: J", choices) == "J"
    assert parse_pro_letter("C. because", choices) == "C"


def test_mmmu_counts_an_unread_answer_as_wrong_and_guesses_only_officially(tmp_path):
    bench = benchmark("mmmu")
    sample = bench.samples(MAKERS["mmmu"][0](tmp_path))[0]
    unread = reply("I can't tell", sample)
    assert bench.scorer.grade(unread, sample) == (0.0, None)
    guesses = {
        bench.scorer.with_options({"official": True, "seed": s}).grade(unread, sample).parsed
        for s in range(40)
    }
    assert guesses == set("ABCD")


def test_open_answers_of_mmmu():
    assert open_right(parse_open("so the result is 1,234.567"), ["1234.57"])
    assert open_right(parse_open("It = 5"), ["5"])
    assert not open_right(parse_open("a car"), ["r"])


@pytest.mark.parametrize(
    ("said", "kind", "read"),
    [
        ("(b)", "text", "green"),
        ("B", "text", "green"),
        ("gren", "text", "green"),
        ("I refuse", "text", "red"),  # the nearest by edit distance: a fault of the official rule
        ("3.9", "integer", "3"),
        ("1.25", "float", "1.2"),
        ("x", "float", None),
    ],
)
def test_mathvista_normalises_as_the_official_script(said, kind, read):
    question_type = "multi_choice" if kind == "text" else "free_form"
    assert normalise(said, ("red", "green", "blue") if kind == "text" else (), question_type, kind, 1) == read


def test_mathvista_gives_nothing_for_a_refusal(tmp_path):
    bench = benchmark("mathvista")
    sample = bench.samples(MAKERS["mathvista"][0](tmp_path))[0]
    assert bench.scorer.grade(reply("I can't see the image", sample), sample) == (0.0, None)
