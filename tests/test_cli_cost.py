"""`qvl cost` from the command line: tables and JSON, stale prices, unknown names, contradictory options."""

import json

import pytest

from qvl.cli.main import main

TODAY = ["--today", "2026-11-23"]
API = ["cost", "--model", "qwen-vl-max", "--image", "1280x720", "--requests", "100k", *TODAY]
OWN = [*API, "--gpu", "1xh100", "--self-model", "qwen2.5-vl-7b"]


def run(capsys, *words):
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


def facts(capsys, *words):
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_old_prices_refuse_a_verdict_and_name_themselves(capsys):
    code, out, err = run(capsys, *API)
    assert code == 2
    assert out == ""
    assert "qwen-vl-max is 326 days old" in err
    assert "--allow-stale" in err


def test_allow_stale_answers_and_warns(capsys):
    code, out, err = run(capsys, *API, "--allow-stale")
    assert code == 0
    assert "a month" in out
    assert "warning: API price of qwen-vl-max is 326 days old" in err


def test_on_an_earlier_day_the_same_prices_are_fresh(capsys):
    words = ["cost", "--model", "qwen3.7-plus", "--image", "1280x720", "--requests", "100k",
             "--gpu", "1xh100", "--self-model", "qwen2.5-vl-7b"]  # fmt: skip
    code, _, err = run(capsys, *words, "--today", "2026-09-25")
    assert code == 0
    assert "warning" not in err
    code, _, err = run(capsys, *words, "--today", "2027-03-01")
    assert code == 2
    assert "qwen3.7-plus is 270 days old" in err


def test_a_price_from_after_the_day_that_is_asked_about_is_refused(capsys):
    words = [w if w != "2026-11-23" else "2026-05-20" for w in OWN]
    code, _, err = run(capsys, *words, "--exchange-rate", "7.3")
    assert code == 2
    assert "rent of h100 (secure) is dated 2026-08-19, after today" in err


def test_a_users_file_makes_the_verdict_fresh(capsys, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        [[api]]
        name = "qwen-vl-max"
        provider = "contract"
        currency = "USD"
        image_rule = "qwen-32"
        max_input = 129024
        date = 2026-11-01
        tiers = [{ input = 1.0, output = 2.0 }]
        """
    )
    code, out, err = run(capsys, *API, "--prices", path)
    assert (code, err) == (0, "")
    found = facts(capsys, *API, "--prices", path)
    # 880 + 2 tokens of picture, 256 of text, 256 of answer
    assert found["per_1000_requests"] == pytest.approx((1138 * 1.0 + 256 * 2.0) / 1000)
    assert "contract" in out


def test_json_has_every_part_of_the_comparison(capsys):
    found = facts(capsys, *OWN, "--allow-stale")
    assert found["currency"] == "USD"
    assert found["api"]["image_tokens"] == 882
    assert [b["side"] for b in found["own"]] == ["rented"]
    assert found["capacity"]["requests_per_s"] > 0
    assert found["cheapest"] == "api"
    assert len(found["sensitivity"]) >= 3
    assert found["break_even"][0]["requests_per_month"] is None
    assert "none" in found["break_even"][0]["text"]
    assert len(found["prices"]) == len(set(found["prices"]))


def test_a_measured_rate_replaces_the_bound(capsys):
    found = facts(capsys, *OWN, "--allow-stale", "--rate", "2.5")
    assert found["capacity"]["requests_per_s"] == 2.5
    assert "measured" in found["capacity"]["source"]


def test_yuan_and_dollars_tell_the_same_story(capsys):
    dollars, yuan = (
        facts(capsys, *OWN, "--allow-stale"),
        facts(capsys, *OWN, "--allow-stale", "--currency", "cny"),
    )
    assert yuan["api"]["per_month"] == pytest.approx(6.72 * dollars["api"]["per_month"])
    assert yuan["own"][0]["per_month"] == pytest.approx(6.72 * dollars["own"][0]["per_month"])
    assert yuan["break_even"][0]["needed"] == pytest.approx(dollars["break_even"][0]["needed"])


def test_the_guides_server_is_priced_owned_and_rented(capsys):
    words = ["cost", "--model", "qwen-vl-max@2025-07", "--prompt-tokens", "900", "--answer-tokens", "100",
             "--requests", "100k", "--gpu", "8xh100", "--self-model", "qwen2.5-vl-72b"]  # fmt: skip
    found = facts(capsys, *words, "--allow-stale", *TODAY, "--exchange-rate", "7.3")  # the guide's
    assert found["api"]["per_million_tokens"] == pytest.approx(0.493, abs=0.001)
    assert found["api"]["per_month"] == pytest.approx(49.3, abs=0.1)
    owned = next(b for b in found["own"] if b["side"] == "owned")
    assert owned["hardware"] == pytest.approx(8333.33, abs=0.01)
    assert owned["people"] == 5000
    assert 1200 < owned["power"] < 1300
    assert found["cheapest"] == "api"


def test_a_mac_is_planned_with_llama_cpp_and_its_watts_are_the_whole_machines(capsys):
    words = [*API, "--gpu", "m2-ultra", "--purchase-price", "5000", "--allow-stale"]
    found = facts(capsys, *words)
    assert found["capacity"]["engine"] == "llama.cpp"
    owned = next(b for b in found["own"] if b["side"] == "owned")
    assert owned["power"] == pytest.approx(295 * 1.4 / 1000 * 730 * 0.12)
    assert not any("host factor" in note for note in found["notes"])


def test_every_factor_that_is_nobodys_price_list_is_said(capsys):
    _, out, _ = run(capsys, *OWN[:-4], "--gpu", "8xh100", "--allow-stale")
    for name in ("utilisation 0.3", "months 36", "host factor 1.8", "pue 1.4", "usd per kwh 0.12", "5000"):
        assert f"assumed {name}" in out or name in out


def test_pages_become_requests_by_the_pictures_in_each(capsys):
    words = [
        "cost",
        "--model",
        "qwen-vl-max",
        "--image",
        "1240x1754x4",
        "--pages",
        "2M",
        "--allow-stale",
        *TODAY,
    ]
    found = facts(capsys, *words)
    per_request = found["per_1000_requests"] / 1000
    assert found["per_month"] == pytest.approx(500_000 * per_request)


def test_the_model_on_own_hardware_is_said_when_it_was_not_chosen(capsys):
    words = [w for w in OWN if w not in ("--self-model", "qwen2.5-vl-7b")]
    code, out, _ = run(capsys, *words, "--allow-stale")
    assert code == 0
    assert "planned for qwen2.5-vl-7b, which is not qwen-vl-max" in out


def test_open_weights_behind_an_api_run_as_themselves(capsys):
    words = ["cost", "--model", "qwen3-vl-8b-instruct", "--image", "1280x720", "--requests", "100k", "--gpu", "l40s",
             "--allow-stale", *TODAY]  # fmt: skip
    assert facts(capsys, *words)["capacity"]["model"] == "qwen3-vl-8b-instruct"


def test_the_text_shows_bills_break_even_and_three_assumptions(capsys):
    code, out, _ = run(capsys, *OWN, "--allow-stale", "--purchase-price", "30000")
    assert code == 0
    for word in ("API", "rented", "owned", "break-even", "what matters most", "utilisation"):
        assert word in out
    swings = out.split("what matters most")[1].split("note:")[0].strip().splitlines()[2:]
    assert len(swings) == 3


REFUSED = {
    "unknown model": (["cost", "--model", "qwen-vl-maxx", "--requests", "5", *TODAY], "qwen-vl-max"),
    "unknown gpu": ([*API, "--gpu", "h10"], "h100"),
    "unknown self model": ([*API, "--gpu", "h100", "--self-model", "qwen9-vl"], "qwen"),
    "no volume": (["cost", "--model", "qwen-vl-max", *TODAY], "--requests or --pages"),
    "two volumes": ([*API, "--pages", "5"], "contradict"),
    "no number": (["cost", "--model", "qwen-vl-max", "--requests", "many", *TODAY], "'many' is not a number"),
    "pages of no size": (["cost", "--model", "qwen-vl-max", "--pages", "5", *TODAY], "size of a page"),
    "negative volume": (["cost", "--model", "qwen-vl-max", "--requests=-5", *TODAY], "requests a month is -5"),
    "a share above one": ([*API, "--cache-hit", "1.5"], "cache-hit is 1.5"),
    "zero gpus": ([*API, "--gpu", "0xh100"], "0 devices"),
    "currency": ([*API, "--currency", "won"], "known: usd, cny"),
    "date": ([*API[:-1], "soon"], "'soon' is not a date"),
    "rent without a server": ([*API, "--rent", "2"], "--gpu"),
    "negative rent": ([*OWN, "--rent", "-2"], "rent is -2"),
    "no price for the card": ([*API, "--gpu", "rtxa4000", "--self-model", "qwen2.5-vl-3b", "--allow-stale"],
                              "--rent or --purchase-price"),
    "does not fit": ([*API, "--gpu", "rtx3060", "--self-model", "qwen2.5-vl-32b", "--allow-stale"], "does not fit"),
    "missing price file": ([*API, "--prices", "none.toml"], "can't be read"),
    "negative age": ([*API, "--max-age", "-1"], "-1"),
    "exchange rate": ([*API, "--exchange-rate", "0"], "--exchange-rate 0"),
    "too long a request": ([*API, "--prompt-tokens", "200000", "--allow-stale"], "takes 129,024"),
    "a billion pixels": (["cost", "--model", "qwen-vl-max", "--image", "100000x10000", "--requests", "5", *TODAY],
                         "1,000,000,000 pixels"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line_that_helps_and_exit_2(capsys, name):
    words, helps = REFUSED[name]
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert helps in err
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("qvl cost: ")
