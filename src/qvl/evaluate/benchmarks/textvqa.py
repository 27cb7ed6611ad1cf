"""TextVQA: reading text in photos, ten people's answers to each question."""

from __future__ import annotations

import re
from pathlib import Path

from qvl.evaluate.benchmarks import prompts, readers
from qvl.evaluate.benchmarks.docvqa import read_vqa_tsv
from qvl.evaluate.benchmarks.record import Benchmark, Files, mean, settings_with
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Grade, Reply, Scorer, accepted

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_FULL_STOP = re.compile(r"\.(?!\d)")
_WORDS = dict(zip("none zero one two three four five six seven eight nine ten".split(), "00123456789")) | {
    "ten": "10"
}
_ARTICLES = ("a", "an", "the")
# English contractions; what is looked up is each of them with one apostrophe left out.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def _spellings() -> dict[str, str]:
    out = {}
    for word in _CONTRACTIONS:
        places = [i for i, c in enumerate(word) if c == "'"]
        out.update({word[:i] + word[i + 1 :]: word for i in places})
    return out


_SPELLING = _spellings()


def normalise(text: str) -> str:
    """Lower case; punctuation out or to blanks; number words to digits; articles out; contractions spelt in full.

    Source: EvalAI's answer processor (facebookresearch/mmf), read in EvolvingLMMs-Lab/lmms-eval @75571cf
    lmms_eval/tasks/_task_utils/vqa_eval_metric.py.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    before = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in before or f" {mark}" in before
        text = text.replace(mark, "" if beside_blank or _COMMA_IN_NUMBER.search(before) else " ")
    text = _FULL_STOP.sub("", text, count=32)  # the source passes a flag where the count belongs
    words = [_WORDS.get(w, w) for w in text.lower().split()]
    return " ".join(_SPELLING.get(w, w) for w in words if w not in _ARTICLES)


def vqa_accuracy(said: str, answers: tuple[str, ...]) -> float:
    """min(1, matches / 3), averaged over the answers with one of them left out each time.

    Of ten: 1 match 0.3, 2 0.6, 3 0.9, 4 and more 1.
    """
    said, known = normalise(said), [normalise(a) for a in answers]
    return mean(min(1.0, (known.count(said) - (a == said)) / 3) for a in known)


def rule(reply: Reply, truth: tuple[str, ...], sample: Sample, *, official: bool = False) -> Grade:
    """VQA accuracy: min(1, matches / 3) averaged over the ten leave-one-out sets, after normalising case, punctuation,
    articles, number words and contractions. `official` is the same rule.
    """
    return Grade(vqa_accuracy(reply.text, truth), normalise(reply.text) or None)


def read(path: Path, split: str) -> list[Sample]:
    """TextVQA_0.5.1_val.json with train_images/ beside it, or VLMEvalKit's TSV."""
    file = readers.the_file(path, "TextVQA_0.5.1_val.json", "TextVQA_VAL.tsv") if path.is_dir() else path
    if file.suffix == ".tsv":
        return read_vqa_tsv(file)
    samples = []
    for i, row in enumerate(readers.field(readers.read_json(file), "data", str(file))):
        where = f"{file}: data[{i}]"
        image = readers.field(row, "image_id", where)
        samples.append(
            Sample(
                id=str(readers.field(row, "question_id", where)),
                media=(readers.image_file(file.parent, f"train_images/{image}.jpg", where),),
                question=row["question"],
                answer=readers.field(row, "answers", where),
                cluster=image,
                where=where,
            )
        )
    return samples


TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA val: reading text in photos",
    files=Files(
        where="textvqa.org (TextVQA_0.5.1_val.json, train_val_images.zip), or VLMEvalKit's TextVQA_VAL.tsv",
        licence="CC BY 4.0",
        layout="{data: [{question_id, question, image_id, answers: ten texts}]}, train_images/IMAGE_ID.jpg; "
        "TSV: index, image (base64), question, answer (a list as text)",
        seen="question_id, question, answers: EvolvingLMMs-Lab/lmms-eval @75571cf: lmms_eval/tasks/textvqa/utils.py; "
        "the folder unverified",
        items={"val": 5000},
    ),
    read=read,
    prompt=prompts.short_answer,
    scorer=Scorer(name="textvqa", rule=rule, truth=accepted, graded=True),
    settings=settings_with(max_tokens=32),
    pitfalls=(
        "VLMEvalKit keeps the full stop of `3.`, which is wrong there and right here",
        "some reports give the words of an OCR engine in the prompt",
    ),
)  # fmt: skip
