"""Each benchmark reads five items in its official layout, words its prompt, and scores by its rule."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from benchmark_files import MAKERS, base64_image, image_bytes, put_tsv
from qvl.backends.settings import Settings
from qvl.cli.main import main
from qvl.errors import QvlError
from qvl.evaluate.benchmarks import BENCHMARKS, benchmark, readers
from qvl.evaluate.benchmarks import page_rules as rules
from qvl.evaluate.benchmarks.aitz import Step, coat_click, direction, gold_step, hits
from qvl.evaluate.benchmarks.charades import iou, official_span, said_span
from qvl.evaluate.benchmarks.chartqa import relaxed, strict
from qvl.evaluate.benchmarks.docvqa import anls
from qvl.evaluate.benchmarks.lvbench import official_letter as lvbench_letter
from qvl.evaluate.benchmarks.mathvista import normalise
from qvl.evaluate.benchmarks.mmmu import open_right, parse_letter, parse_open, parse_pro_letter
from qvl.evaluate.benchmarks.omnidocbench import assign
from qvl.evaluate.benchmarks.refcoco import first_generation_box
from qvl.evaluate.benchmarks.screenspot import seeclick_point
from qvl.evaluate.benchmarks.textvqa import vqa_accuracy
from qvl.evaluate.benchmarks.videomme import official_letter as videomme_letter
from qvl.evaluate.samples import Sample, SampleError, check_truths
from qvl.evaluate.scorers.base import Reply
from qvl.geometry import default_video_limits, sampled_fps, sampled_frame_count, seconds_per_grid

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
    assert [load().size for _, _, loads in found for load in loads] == [(200, 100)] * 2
    put_tsv(tmp_path / "b.tsv", header, [["8", "7", "plain", "z"]])
    with pytest.raises(SampleError, match="row '7'"):
        list(readers.read_tsv(tmp_path / "b.tsv"))


def test_all_images_of_a_tsv_row_are_read(tmp_path):
    both = str([base64_image(), base64_image()])
    header = ["index", "image", "question", "answer"]
    file = put_tsv(
        tmp_path / "a.tsv",
        header,
        [["1", both, "which?", "x"], ["2", "1", "and?", "y"], ["3", "", "none?", "z"]],
    )
    found = list(readers.read_tsv(file))
    assert [[load().size for load in loads] for _, _, loads in found] == [
        [(200, 100)] * 2,
        [(200, 100)] * 2,
        [],
    ]


def test_parquet_rows_with_several_images_are_read_late(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    image = {"bytes": image_bytes(), "path": "1.png"}
    rows = [
        {"id": f"validation_Art_{i}", "question": "<image 1>?", "options": "['a', 'b']", "answer": "B",
         "image_1": image, "image_2": image if i % 2 else None}
        for i in range(5)
    ]  # fmt: skip
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "validation-0.parquet", row_group_size=2)
    samples = benchmark("mmmu").samples(tmp_path)
    assert [len(s.media) for s in samples] == [1, 2, 1, 2, 1]
    assert [i.size for i in samples[3].loaded()] == [(200, 100)] * 2
    assert samples[3].choices == ("a", "b")
    assert samples[3].stratum == "Art"


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


@pytest.mark.parametrize(
    ("text", "first_character", "first_capital"),
    [
        ("B", "B", "B"),
        ("(B) two", "B", "B"),
        ("B. two", "B", "B"),
        ("The answer is B", "T", "B"),
        ("**B**", "*", "B"),
        ("Based on the video, C", "B", "B"),
        ("", "", ""),
        ("c", "c", ""),
    ],
)
def test_official_letters_of_the_video_sets(text, first_character, first_capital):
    assert lvbench_letter(text) == first_character
    assert videomme_letter(text) == first_capital


def test_unanswered_questions_stay_in_the_denominator(tmp_path):
    bench = benchmark("videomme")
    samples = bench.samples(MAKERS["videomme"][0](tmp_path))
    rows = [(s, bench.scorer.grade(reply("C" if i else "none", s), s)) for i, s in enumerate(samples)]
    figures = bench.figures(rows)
    assert figures["accuracy"] == pytest.approx(0.8)
    assert figures["accuracy of answered"] == 1


def test_subtitles_stand_before_the_question_when_asked_for(tmp_path):
    MAKERS["videomme"][0](tmp_path)
    with_them = benchmark("videomme").samples(tmp_path, split="with_subtitles")
    assert "Hello there\nSelect" in with_them[0].question
    assert "Hello" not in benchmark("videomme").samples(tmp_path)[0].question
    assert with_them[0].cluster == with_them[1].cluster != with_them[3].cluster


@pytest.mark.parametrize(
    ("text", "ours", "official"),
    [
        ("The event happens in 3.5 - 10 seconds.", (3.5, 10), (3.5, 10)),
        ("It starts at 3 and ends at 10", (3, 10), None),
        ('{"start": "00:05.5", "end": "01:10"}', (5.5, 70), None),
        ("from 0:05 to 0:10 it happens", (5, 10), (0, 5)),  # to a peer 05 - 0 is the range
        ("10.0 - 3.0, the event starts", (3, 10), (3, 10)),
        ("I see no such event", None, None),
    ],
)
def test_spans_of_time(text, ours, official):
    assert said_span(text) == ours
    assert official_span(text) == official


def test_temporal_iou_counts_the_gap():
    assert iou((0, 10), (5, 15)) == pytest.approx(1 / 3)
    assert iou((0, 1), (2, 3)) == 0


@pytest.mark.parametrize(
    ("end", "name"),
    [((5, 1), "up"), ((5, 9), "down"), ((1, 5), "left"), ((9, 5), "right"), ((5, 5), ""), ((8, 2), "up")],
)
def test_the_direction_is_that_of_the_finger(end, name):
    assert direction(5, 5, *end) == name


def test_a_tap_counts_in_the_gold_element_or_near_the_point():
    gold = Step("click", 0.5, 0.5)
    element = [0.45, 0.2, 0.1, 0.4]  # y, x, height, width: x from 0.16 to 0.64 once enlarged
    assert hits(Step("click", 0.17, 0.5), gold, [element])
    assert not hits(Step("click", 0.15, 0.5), gold, [element])
    assert hits(Step("click", 0.5, 0.63), gold, [])
    assert not hits(Step("click", 0.5, 0.65), gold, [])
    assert not hits(Step("click", 0.5, 0.56), gold, [], control=True)


def test_coat_compares_taps_with_the_corner():
    """The fault that makes ours needed: a perfect tap fails, one in the corner passes."""
    elements = [[40, 80, 20, 40]]
    assert not coat_click((100, 50, 100, 50), (0, 0), elements)
    assert coat_click((0, 0, 0, 0), (0, 0), elements)
    assert coat_click((100, 50, 100, 50), (100, 50), elements)


def test_a_long_swipe_is_no_tap():
    row = {"result_action_type": 4, "result_action_text": ""}
    assert gold_step(row | {"result_touch_yx": "[0.5, 0.5]", "result_lift_yx": "[0.52, 0.5]"}).kind == "click"
    assert gold_step(row | {"result_touch_yx": "[0.5, 0.5]", "result_lift_yx": "[0.1, 0.5]"}) == Step(
        "scroll", 0.5, 0.5, "up"
    )
    with pytest.raises(ValueError, match="99"):
        gold_step(row | {"result_action_type": 99, "result_touch_yx": "[0, 0]", "result_lift_yx": "[0, 0]"})


def test_aitz_counts_types_steps_and_episodes(tmp_path):
    bench = benchmark("aitz")
    samples = bench.samples(MAKERS["aitz"][0](tmp_path), generation="qwen2_5_vl")
    assert "Step 1: click on the button; Step 2: scroll up; " in samples[2].question
    assert "196x112" in (samples[0].system or "").replace(" ", "")
    answers = [*MAKERS["aitz"][1].values()]
    answers[2] = answers[2].replace("hello", "bye")
    figures = bench.figures([(s, bench.scorer.grade(reply(a, s), s)) for s, a in zip(samples, answers)])
    assert figures["exact match"] == pytest.approx(0.8)
    assert figures["type match"] == 1
    assert figures["success rate"] == 0
    assert figures["goal progress"] == pytest.approx(0.4)


def test_boxes_are_read_in_the_generations_own_numbers(tmp_path):
    """A perfect pixel box on a small image scores 1; other harnesses take its numbers for parts of 1000."""
    bench = benchmark("refcoco")
    sample = bench.samples(MAKERS["refcoco"][0](tmp_path))[0]
    pixels = '{"bbox_2d": [20, 11, 98, 56]}'
    assert bench.scorer.grade(reply(pixels, sample, "qwen2_5_vl"), sample).score == 1
    assert bench.scorer.grade(reply(pixels, sample, "qwen3_vl"), sample).score == 0
    thousands = '{"bbox_2d": [100, 100, 500, 500]}'
    assert bench.scorer.grade(reply(thousands, sample, "qwen3_vl"), sample).score == 1
    assert first_generation_box("(100,100),(500,500)", 999, 999) == pytest.approx((100, 100, 500, 500))
    assert first_generation_box("none", 9, 9) == (0, 0, 0, 0)


def test_seeclick_reads_bare_numbers_as_parts_of_one():
    assert seeclick_point("(0.5, 0.25)", 200, 100) == (100, 25)
    assert seeclick_point("<box>(100,200),(300,400)</box>", 1000, 1000) == pytest.approx((200, 300))
    assert seeclick_point("no point", 1, 1) is None
    assert seeclick_point("the box", 1, 1) is None


def test_settings_are_those_of_the_generation():
    charades = benchmark("charades_sta")
    assert charades.settings_for("qwen3_vl_moe").fps == 4
    assert charades.settings_for("qwen2_5_vl").fps == 2
    assert benchmark("ocrbench").settings_for("qwen2_5_vl").min_pixels == 100 * 28 * 28
    assert benchmark("docvqa").settings_for("qwen2_5_vl").min_pixels == 1280 * 28 * 28
    qwen3 = benchmark("mmmu").settings_for("qwen3_vl")
    assert (qwen3.temperature, qwen3.top_p, qwen3.top_k, qwen3.presence_penalty) == (0.7, 0.8, 20, 1.5)
    assert benchmark("lvbench").settings_for("qwen3_vl").total_pixels == 224 * 1024 * 32 * 32


@pytest.mark.parametrize("name", BENCHMARKS)
def test_settings_are_those_that_a_backend_takes(name):
    for settings in benchmark(name).settings.values():
        assert {k.replace("max_tokens", "max_new_tokens") for k in settings.to_dict()} <= set(
            Settings.__annotations__
        )


def test_the_real_sampled_fps_is_what_the_model_is_told():
    """Charades: 16 of 30 seconds' frames are 3.75 seconds a step; a harness that says 2 fps tells 1.0."""
    assert seconds_per_grid(sampled_fps(900, 30.0, 16)) == 3.75
    asked = benchmark("charades_sta").settings_for("qwen2_5_vl")
    limits = replace(default_video_limits(), fps=asked.fps, max_frames=asked.max_frames)
    assert seconds_per_grid(sampled_fps(900, 30.0, sampled_frame_count(900, 30.0, limits))) == 1.0


def test_options_are_written_as_the_models_know_them(tmp_path):
    question = benchmark("mmmu").samples(MAKERS["mmmu"][0](tmp_path), generation="qwen2_5_vl")[0].question
    assert question.startswith("Question: <image 1> Which")
    assert "\nOptions:\nA. one\nB. two\n" in question


def test_teds_counts_cells_and_spans():
    table = "<table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td>2</td></tr></table>"
    assert rules.table_similarity(table, table) == 1
    one_cell_of_six_nodes = table.replace("<td>2</td>", "<td>3</td>")
    assert rules.table_similarity(one_cell_of_six_nodes, table) == pytest.approx(1 - 1 / 6)
    assert rules.table_similarity(table.replace("<td>b", '<td colspan="2">b'), table) == pytest.approx(
        1 - 1 / 6
    )
    assert rules.table_similarity("no table", table) == 0
    assert rules.markdown_table("| a | b |\n|---|---|\n| 1 | 2 |") == table


def test_the_official_outline_rule_ignores_all_words_and_ours_does_not():
    truth, other = "# Title\none line", "# Other\nsomething else"
    assert rules.outline_similarity(other, truth) == 1
    assert rules.outline_with_words(other, truth) < 0.7
    assert rules.outline_with_words(truth, truth) == 1


def test_page_similarity_is_one_for_the_same_long_text_and_nothing_for_none():
    text = "all the words of a page that is long enough for four words at once"
    assert rules.page_similarity(text, text) == pytest.approx(1, abs=1e-3)
    assert rules.page_similarity("", text) == 0
    assert 0 < rules.page_similarity(text.replace("page", "sheet"), text) < 1
    assert rules.words_of("한 글 字") == ["한", "글", "字"]


def test_fields_read_from_json_or_pairs():
    assert rules.read_fields('```json\n{"a": 1}\n```') == {"a": "1"}
    assert rules.read_fields("total: 5, date: now") == {"total": "5", "date": "now"}
    assert rules.fields_f1({"a": "1", "x": "y"}, {"a": "1"}) == 0.5


def test_the_assignment_is_the_cheapest():
    optimize = pytest.importorskip("scipy.optimize")
    draw = np.random.default_rng(0)
    for rows, columns in ((1, 1), (3, 5), (6, 2), (7, 7), (0, 3)):
        cost = draw.random((rows, columns))
        ours = assign(cost.tolist())
        assert len(ours) == min(rows, columns)
        at = optimize.linear_sum_assignment(cost)
        assert sum(cost[r, c] for r, c in ours.items()) == pytest.approx(cost[at].sum())


def test_a_page_that_misses_its_table_and_formula_pays_for_them(tmp_path):
    bench = benchmark("omnidocbench")
    sample = bench.samples(MAKERS["omnidocbench"][0](tmp_path))[0]
    text_only = "# Heading 0\n\nthe first half of a sentence and the other half."
    grade = bench.scorer.grade(reply(text_only, sample), sample)
    assert grade.score == pytest.approx(1 / 3)
    figures = bench.figures([(sample, grade)])
    assert figures["text edit distance"] == 0
    assert figures["formula edit distance"] == 1
    assert figures["table TEDS"] == 0


def test_fields_of_key_information_are_pooled_over_a_set(tmp_path):
    bench = benchmark("cc_ocr")
    sample = bench.samples(MAKERS["cc_ocr"][0](tmp_path), split="kie")[0]
    half = bench.scorer.grade(reply('{"total": "12.50", "items": [{"name": "coffee"}]}', sample), sample)
    assert half == (0.5, {"met": 1, "wrong": 2})
    assert bench.figures([(sample, half)])["kie"] == pytest.approx(0.5)


def broken(value, draw: random.Random):
    """The same JSON with one thing of another kind, or left out, somewhere inside."""
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], broken(value[at], draw), *value[at + 1 :]]
    if isinstance(value, dict) and value and draw.random() < 0.8:
        name = draw.choice(list(value))
        if draw.random() < 0.4:
            return {k: v for k, v in value.items() if k != name}
        return {**value, name: broken(value[name], draw)}
    return draw.choice([None, 7, "text", [], {}, [[1]], -1.5])


@pytest.mark.parametrize("name", MAKERS)
def test_files_in_another_layout_are_refused_by_name_and_never_crash(name, tmp_path):
    bench = benchmark(name)
    make = MAKERS[name][0]
    draw = random.Random(name)
    for turn in range(8):
        folder = tmp_path / str(turn)
        folder.mkdir()
        make(folder)
        file = draw.choice([f for f in folder.rglob("*") if f.suffix in (".json", ".jsonl", ".tsv", ".txt")])
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json" and turn % 3:
            file.write_text(json.dumps(broken(json.loads(text), draw)), encoding="utf-8")
        else:
            file.write_text(text[: draw.randrange(len(text))], encoding="utf-8")
        try:  # what a reader lets pass, the truths' check names before anything is asked
            samples = bench.samples(folder, generation="qwen2_5_vl")
            check_truths(samples, bench.scorer.read_truth)
        except QvlError:
            continue
        for sample in samples:
            bench.scorer.grade(reply("B", sample), sample)


def test_another_harness_answers_are_scored_by_a_benchmarks_rule(tmp_path, capsys):
    rows = [{"doc_id": 0, "target": "['12%']", "filtered_resps": ["12.4%"], "input": "?"}]
    log = tmp_path / "samples_chartqa.jsonl"
    log.write_text(json.dumps(rows[0]) + "\n")
    words = ["eval", "import", str(log), "-o", str(tmp_path / "run"), "--scorer"]
    assert main([*words, "chartqa", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["score"] == 1
    assert main([*words, "mathvista", "--fresh"]) == 2  # its rule needs what a log doesn't hold
    assert "question_type" in capsys.readouterr().err
