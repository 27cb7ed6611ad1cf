"""Single probes against scripted backends and a random model: what they see, and what they don't blame."""

import json

import pytest

from qvl.backends.answer import Answer
from qvl.backends.base import Capabilities
from qvl.backends.fake import FakeModel
from qvl.doctor import EndpointUnderTest, examine
from qvl.doctor.causes import CAUSES
from qvl.doctor.probe import Finding, Probe
from qvl.doctor.report import to_html
from qvl.doctor.run import PROBES, cause_text, chosen
from qvl.doctor.sets import SETS, asked
from qvl.errors import BackendError, MediaError, PromptError


def finding(endpoint, name) -> Finding:
    return next(p for p in PROBES if p.name == name).run(endpoint)


def said(text, **changes):
    fields = dict(text=text, finish_reason="stop", prompt_tokens=0, visual_tokens=0, completion_tokens=0)
    return Answer(**(fields | changes))


# -------------------------------------------------------------------------------------------------- the list


def test_names_are_unique_and_causes_known():
    assert len({p.name for p in PROBES}) == len(PROBES) >= 40
    named = {cause for p in PROBES for cause in p.causes}
    assert named <= set(CAUSES)
    assert set(CAUSES) <= named, "a cause that no probe names"


def test_every_cause_says_what_and_when_its_threads_were_read():
    for key, cause in CAUSES.items():
        text = cause_text(key)
        assert text.startswith(cause.what)
        assert (f"read {cause.read})" in text) == bool(cause.where)


def test_every_probe_names_a_cause_with_a_thread_or_version():
    for probe in PROBES:
        assert any(CAUSES[cause].where for cause in probe.causes), probe.name


def test_probes_are_chosen_by_name_theme_and_level():
    assert [p.name for p in chosen(["stop"])] == ["stop"]
    assert {p.theme for p in chosen(["time"])} == {"time"}
    assert {p.level for p in chosen(["skill"])} == {"skill"}
    assert "stop" not in {p.name for p in chosen(skip=["stop"])}
    assert len(chosen()) == len(PROBES)


def test_an_unknown_word_is_refused_with_its_neighbours():
    with pytest.raises(PromptError, match="corners-large"):
        chosen(["corners-larg"])
    with pytest.raises(PromptError, match="no probe is left"):
        chosen(["stop"], ["text"])


# ------------------------------------------------------------------------------------------- errors of endpoints


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BackendError("no", status=400), "not supported"),
        (BackendError("no", status=500), "failed"),
        (BackendError("gone"), "failed"),
        (PromptError("no setting"), "not supported"),
        (MediaError("no clips"), "not supported"),
    ],
)
def test_a_probe_that_is_refused_is_not_supported_and_one_that_breaks_the_endpoint_failed(error, status):
    def broken(endpoint):
        raise error

    probe = Probe("x", "text", "plumbing", "", broken)
    report = examine(EndpointUnderTest(FakeModel("a")), [probe])
    assert report.results[0].finding.status == status
    assert report.ok == (status != "failed")


def test_a_refused_key_ends_the_examination():
    def broken(endpoint):
        raise BackendError("key", status=401)

    with pytest.raises(BackendError):
        examine(EndpointUnderTest(FakeModel("a")), [Probe("x", "text", "plumbing", "", broken)])


def test_an_endpoint_that_answers_nothing_cannot_be_examined():
    with pytest.raises(BackendError):
        EndpointUnderTest(FakeModel(BackendError("no", status=400)))


# -------------------------------------------------------------------------------------------------- text alone


def test_equal_texts_without_logprobs_prove_nothing():
    endpoint = EndpointUnderTest(FakeModel(lambda media, question: "the same"))
    assert not endpoint.has_logprobs
    for name in ("order", "corners-small", "clip-rate", "system-prompt"):
        assert finding(endpoint, name).status == "not supported", name


def test_texts_that_follow_the_pictures_pass_without_logprobs():
    seen = []

    def answer(media, question):
        seen.append(question)
        return f"answer {len(seen)}"

    assert finding(EndpointUnderTest(FakeModel(answer)), "order").status == "passed"


def test_an_endpoint_that_answers_anything_to_bad_media_fails():
    class Careless(FakeModel):
        can = Capabilities(raw=True)

        def post(self, body):
            return {}

    found = finding(EndpointUnderTest(Careless("fine")), "bad-picture")
    assert found.status == "failed"
    assert "as if it were right" in found.evidence


def test_a_server_error_on_bad_media_is_a_failure_and_a_refusal_is_none():
    class Strict(FakeModel):
        status = 400

        can = Capabilities(raw=True)

        def post(self, body):
            raise BackendError("bad picture", status=self.status)

    assert finding(EndpointUnderTest(Strict("fine")), "cut-picture").status == "passed"
    Strict.status = 500
    assert finding(EndpointUnderTest(Strict("fine")), "cut-picture").status == "failed"


def test_a_bomb_that_a_server_refuses_with_500_did_no_harm():
    class Pillow(FakeModel):
        can = Capabilities(raw=True)

        def post(self, body):
            raise BackendError("DecompressionBombError", status=500)

    found = finding(EndpointUnderTest(Pillow("fine")), "huge-claim")
    assert found.status == "passed"
    assert "status 500" in found.evidence


@pytest.mark.parametrize(
    ("text", "finish_reason", "status"),
    [
        ('{"colour": "red", "count": 3}', "stop", "passed"),
        ('{"colour": "red",          ', "length", "not supported"),
        ("The most common colour is ", "length", "failed"),
        ('{"colour": "pink", "count": 3}', "stop", "failed"),
        ('{"colour": "red"', "stop", "failed"),
    ],
)
def test_json_that_the_token_limit_cuts_proves_nothing(text, finish_reason, status):
    model = FakeModel(lambda media, question: said(text, finish_reason=finish_reason))
    assert finding(EndpointUnderTest(model), "json-schema").status == status


def test_an_unknown_family_is_not_said_to_know_no_seconds():
    found = finding(EndpointUnderTest(FakeModel("fine", family=None)), "clip-rate")
    assert found.status == "not supported"
    assert "isn't known" in found.evidence


# ------------------------------------------------------------------------------------------------------- places


class Seer(FakeModel):
    """Finds the shape it is asked for, and writes its box in a space of the test's choice."""

    def __init__(self, written, family="qwen2_5_vl"):
        super().__init__("?", family=family)
        self.written = written
        self.truth = {}

    def _next(self, call):
        picture = call.messages[-1]["content"][0].get("image") if call.media else None
        box = self.truth.get(id(picture))
        if box is None:
            return "?"
        numbers = [round(n) for n in self.written(box, call.media[0].seen)]
        return json.dumps([{"bbox_2d": numbers, "label": "it"}])


def looked_at(seer):
    endpoint = EndpointUnderTest(seer)
    for item in SETS["boxes"].draw(endpoint, "boxes"):
        road = endpoint.seen((item.question.media[0].height, item.question.media[0].width))
        picture = item.question.media[0]
        x, y = road.seen.width / picture.width, road.seen.height / picture.height
        box = (item.truth[0] * x, item.truth[1] * y, item.truth[2] * x, item.truth[3] * y)
        seer.truth[id(picture)] = box
        endpoint.answered.setdefault("boxes", []).append((item, endpoint.answer(item.question)))
    assert asked(endpoint, "boxes")
    return finding(endpoint, "box-space")


def seen_pixels(box, seen):
    return box


def scaled(box, x, y):
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def thousandths(box, seen):
    return scaled(box, 1000 / seen.width, 1000 / seen.height)


def halves(box, seen):
    return scaled(box, 0.5, 0.5)


def test_boxes_in_the_familys_own_space_pass_with_both_boxes_drawn():
    for family, written in (("qwen2_5_vl", seen_pixels), ("qwen3_vl", thousandths)):
        found = looked_at(Seer(written, family))
        assert found.status == "passed", found.evidence
        assert len(found.images) == 3


@pytest.mark.parametrize(
    ("written", "name"),
    [(thousandths, "relative 0-1000"), (halves, "halved image")],
)
def test_boxes_in_another_space_fail_and_the_space_is_named(written, name):
    found = looked_at(Seer(written))
    assert found.status == "failed", found.evidence
    assert name in found.evidence.rpartition("they are in ")[2]


def test_boxes_that_land_nowhere_tell_no_space():
    found = looked_at(Seer(lambda box, seen: (1, 2, 4, 5)))
    assert found.status == "not supported"


def test_the_skill_of_boxes_is_their_overlap():
    seer = Seer(seen_pixels)
    endpoint = EndpointUnderTest(seer)
    item = SETS["boxes"].draw(endpoint, "boxes")[0]
    exact = json.dumps([{"bbox_2d": [round(n) for n in item.truth], "label": "it"}])
    assert SETS["boxes"].score(endpoint, item, exact) > 0.85
    assert SETS["boxes"].score(endpoint, item, "nothing there") == 0


# ------------------------------------------------------------------------------------------------------- report


def test_the_page_holds_evidence_and_causes_and_escapes_what_models_say():
    from PIL import Image

    from qvl.doctor.probe import EvidenceImage

    def bad(endpoint):
        return Finding(
            "failed", "<script>alert(1)</script>", {}, (EvidenceImage("<b>x", Image.new("RGB", (9, 9))),)
        )

    probe = Probe("x", "sight", "plumbing", "shows it", bad, ("window-mask",))
    page = to_html(examine(EndpointUnderTest(FakeModel("a", name="<i>m")), [probe]))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<b>x" not in page
    assert "<i>m" not in page
    assert "data:image/png;base64," in page
    assert "vllm-project/vllm#15122" in page
    assert "http" not in page.replace("http-equiv", ""), "the page asks nothing of the network"


def test_the_report_as_json_has_a_row_for_every_probe():
    def good(endpoint):
        return Finding("passed", "fine", {"n": 1})

    report = examine(EndpointUnderTest(FakeModel("a")), [Probe("x", "text", "plumbing", "shows", good)])
    data = json.loads(json.dumps(report.to_dict()))
    assert data["ok"] is True
    assert data["probes"][0]["numbers"] == {"n": 1}
    assert data["counts"] == {"passed": 1, "failed": 0, "measured": 0, "not supported": 0}
    assert data["num_asked"] == 0
