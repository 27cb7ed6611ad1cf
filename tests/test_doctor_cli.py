"""`qvl doctor` from the command line, and against our own server over HTTP."""

import json

import pytest

import qvl
from qvl.cli.main import main
from serve_live import live

QUICK = ["--only", "stop", "--only", "stream", "--only", "tokens-small"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def served():
    with live(qvl.load("mini", max_num_seqs=8), model_name="mini") as server:
        yield server


def test_a_served_model_passes_and_schemas_and_bad_media_are_probed_for_real(served, home, capsys):
    names = ["tokens and pixels", "text", "safety", "batch", "order", "same-words", "same-clips"]
    words = [word for name in names for word in ("--only", name)]
    code = main(["doctor", "--endpoint", served.url, "--model", "mini", "--json", *words])
    data = json.loads(capsys.readouterr().out)
    probes = {p["name"]: p for p in data["probes"]}
    assert code == 0, [p["evidence"] for p in data["probes"] if p["status"] == "failed"]
    assert data["standard"] == "the reference mini"
    for name in (
        "json-schema",
        "bad-picture",
        "huge-claim",
        "stream-stop",
        "batch",
        "same-words",
        "same-clips",
    ):
        assert probes[name]["status"] == "passed", probes[name]
    assert probes["bad-picture"]["numbers"]["status"] == 400
    served.wait_until_idle()


def test_a_failing_probe_exits_1_and_names_its_cause(home, capsys, monkeypatch):
    import qvl.tasks.open as door

    class Deaf:
        """Stops are lost on the way."""

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def chat(self, messages, **settings):
            settings.pop("stop", None)
            return self.inner.chat(messages, **settings)

    opened = door.open_backend
    monkeypatch.setattr(door, "open_backend", lambda *a, **k: Deaf(opened(*a, **k)))
    assert main(["doctor", "--only", "stop"]) == 1
    out = capsys.readouterr().out
    assert "stop failed" in out
    assert "maybe: stop strings are taken and not kept" in " ".join(out.split())


def test_save_then_compare_is_one_command_each(home, tmp_path, capsys, monkeypatch):
    import qvl.doctor.sets as sets

    monkeypatch.setattr(sets, "SETS", {name: sets.SETS[name] for name in ("words", "strip")})
    path = str(tmp_path / "before.json")
    assert main(["doctor", "--baseline", "save", path, *QUICK]) == 0
    assert "baseline of 10 answers" in capsys.readouterr().err
    compared = ["--only", "same-words", "--only", "skill-strip", "--json"]
    assert main(["doctor", "--baseline", "compare", path, *compared]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [p["status"] for p in data["probes"]] == ["passed", "passed"]
    assert data["standard"].startswith("the baseline of ")
    # answers of other weights
    raw = json.loads((tmp_path / "before.json").read_text())
    raw["weights"] = "00"
    (tmp_path / "before.json").write_text(json.dumps(raw))
    assert main(["doctor", "--baseline", "compare", path, *compared]) == 2
    assert "other weights" in capsys.readouterr().err


def test_the_report_is_written_and_the_table_shown(home, tmp_path, capsys):
    page = tmp_path / "out.html"
    assert main(["doctor", *QUICK, "--report", str(page)]) == 0
    out = capsys.readouterr().out
    assert "TOKENS AND PIXELS" in out
    assert "3 passed" in out
    assert "tokens-small" in page.read_text(encoding="utf-8")


def test_the_list_needs_no_model(capsys):
    assert main(["doctor", "--list", "--json", "--only", "safety"]) == 0
    assert [p["theme"] for p in json.loads(capsys.readouterr().out)] == ["safety"] * 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--baseline", "kept"], "known: save, compare"),
        (["before.json"], "--baseline save or --baseline compare"),
        (["--baseline", "save", "--reference", "mini"], "exclude each other"),
        (["--baseline", "compare", "--seed", "1"], "--seed goes with"),
        (["--baseline", "compare", "no-such-name"], "there is no such baseline"),
        (["--only", "nothing"], "no probe, theme or level"),
        (["--seed", "-1"], "from 0 to"),
        (["--report", "nowhere/out.html"], "there is no folder nowhere"),
        (["--baseline", "save", "nowhere/b.json"], "there is no folder nowhere"),
        (["--endpoint", "http://127.0.0.1:9", "--model", "m"], "127.0.0.1"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(home, capsys, words, said):
    assert main(["doctor", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_a_servers_own_limit_can_be_told(home, capsys):
    assert main(["doctor", "--max-pixels", "90000", "--only", "tokens-over", "--json"]) == 1
    probe = json.loads(capsys.readouterr().out)["probes"][0]
    assert "over the limit" in probe["evidence"]
    assert probe["numbers"]["over the limit_counted"] > probe["numbers"]["over the limit_expected"]
