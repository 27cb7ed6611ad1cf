"""Why qvl and a peer differ, by (qvl's rule, peer, kind of answer): who is right. "*" stands for all other kinds."""

_STRICT = "qvl: the competition keeps a score of exactly 0.5; the small package drops it"
_RAW = "qvl: lengths of the tidied texts; with raw ones, blanks at the end raise a score (as `official=true` does)"
_ALONE = "qvl: an option's own text names it; the peer wants a letter"
_CASE = "qvl: a bare lower-case letter names its option"
_WRAPPED = "qvl: bold and boxed letters are letters"
_LAST = "qvl: the last letter, after `Answer:` or in brackets, was decided on; the peer takes the first, or none of two"
_ARTICLE = "qvl: the A of `A green pear` is an article; the letter after `the answer is` counts"
_LINE = "qvl: a letter on a line of its own is an answer, with its reason below"
_ASIAN = "qvl: `정답은 B` and `答案是B` name an option"
_TAIL = "qvl: in `The answer is B` the letter is B, not T"
_STARTS = "qvl: `A. red apple` names A; the official parser wants blanks or brackets around it, and guesses"
_REFUSED = "qvl: a refusal names no option; the peer reads the I of `I cannot`"
_FIRST = "qvl: `Based on` isn't B"
_SPANS = (
    "qvl: a span is read without words like `happens in`, from JSON, and as a clock; the peer gives 0, or mixes "
    "minutes and seconds"
)

SIGNED: dict[tuple[str, str, str], str] = {
    ("anls", "anls 0.0.2", "*"): _STRICT,
    ("anls", "VLMEvalKit", "half, then blanks"): _RAW,
    ("anls", "anls_star 1.0.1", "half, then blanks"): _RAW,
    ("chartqa", "Qwen-VL evaluate_vqa", "number near by"): (
        "the target: 5% is of the truth (ChartQA, Methani et al.); Qwen-VL's script swaps the arguments and divides by "
        "the answer"
    ),
    (
        "textvqa",
        "VLMEvalKit",
        "full stop",
    ): "lmms-eval and qvl: EvalAI's processor drops a final full stop, after digits too",
    ("ocrbench", "lmms-eval", "full width"): (
        "the official script, as qvl: it compares full-width characters as they are; folding them is lmms-eval's own"
    ),
    ("choice", "lmms-eval mcq_extract", "text alone"): _ALONE,
    ("choice", "lmms-eval mcq_extract", "lower case"): _CASE,
    ("choice", "lmms-eval mcq_extract", "A as article"): _ARTICLE,
    ("choice", "VLMEvalKit can_infer_option", "text alone"): _ALONE,
    ("choice", "VLMEvalKit can_infer_option", "lower case"): _CASE,
    ("choice", "VLMEvalKit can_infer_option", "Answer:"): _LAST,
    ("choice", "VLMEvalKit can_infer_option", "two letters"): _LAST,
    ("choice", "VLMEvalKit can_infer_option", "letter, line break"): _LINE,
    ("choice", "VLMEvalKit can_infer_option", "Korean"): _ASIAN,
    ("choice", "VLMEvalKit can_infer_option", "Chinese"): _ASIAN,
    ("choice", "Video-MME", "text alone"): _ALONE,
    ("choice", "Video-MME", "lower case"): _CASE,
    ("choice", "Video-MME", "reasoning"): _FIRST,
    ("choice", "Video-MME", "Answer:"): _LAST,
    ("choice", "Video-MME", "two letters"): _LAST,
    ("choice", "Video-MME", "A as article"): _ARTICLE,
    ("choice", "LVBench", "text alone"): _ALONE,
    ("choice", "LVBench", "bold"): _WRAPPED,
    ("choice", "LVBench", "boxed"): _WRAPPED,
    ("choice", "LVBench", "lower case"): _CASE,
    ("choice", "LVBench", "the answer is"): _TAIL,
    ("choice", "LVBench", "refusal"): _REFUSED,
    ("choice", "LVBench", "Korean"): _ASIAN,
    ("choice", "LVBench", "Chinese"): _ASIAN,
    ("choice", "LVBench", "Answer:"): _LAST,
    ("choice", "LVBench", "two letters"): _LAST,
    ("choice", "LVBench", "A as article"): _ARTICLE,
    ("choice", "LVBench", "letter, line break"): _LINE,
    ("choice", "MMMU eval_utils, without its guess", "letter. text"): _STARTS,
    ("choice", "MMMU eval_utils, without its guess", "text alone"): _ALONE,
    ("choice", "MMMU eval_utils, without its guess", "bold"): _WRAPPED,
    ("choice", "MMMU eval_utils, without its guess", "boxed"): _WRAPPED,
    ("choice", "MMMU eval_utils, without its guess", "lower case"): _CASE,
    ("choice", "MMMU eval_utils, without its guess", "letter, line break"): _LINE,
    ("choice", "MMMU eval_utils, without its guess", "Korean"): _ASIAN,
    ("choice", "MMMU eval_utils, without its guess", "Chinese"): _ASIAN,
    ("choice", "MMMU eval_utils, without its guess", "Answer:"): _LAST,
    (
        "charades_sta",
        "lmms-eval",
        "two spans",
    ): "open: qvl takes the last span as the correction, lmms-eval the first",
    ("charades_sta", "lmms-eval", "*"): _SPANS,
    ("refcoco", "VLMEvalKit, Qwen2.5-VL's pixels", "*"): (
        "qvl: Qwen2.5-VL writes pixels; VLMEvalKit takes numbers up to 1000 for parts of 1000, and a perfect box fails"
    ),
}
