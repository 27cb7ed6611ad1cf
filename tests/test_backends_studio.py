"""The hosted flagships: where they are, what pictures and thoughts count, what a call costs, and the limit kept."""

import collections
import json
import logging
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import qvl
from openai_server import delta, openai_server, reply, streams
from qvl.backends.endpoint import find_family, model_studio_limits
from qvl.backends.http import HttpModel, connect
from qvl.backends.media import image_size
from qvl.backends.spend import Meter, call_cost, parse_amount
from qvl.backends.studio import (
    REGIONS,
    find_price,
    hosted_name,
    image_rule_key,
    longest_output,
    region_of,
    region_url,
)
from qvl.catalog.generations import by_name
from qvl.catalog.prices import price_book
from qvl.cli.main import main
from qvl.errors import BackendError, CapacityError, PlanError, PromptError
from qvl.geometry import Size
from qvl.tasks.open import open_backend
from studio_server import FLAGSHIPS, KEY, Studio, picture_tokens

BOOK = price_book()


@pytest.fixture(scope="module")
def shared():
    with openai_server() as running:
        yield running


@pytest.fixture
def studio(shared, monkeypatch):
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    shared.seen.clear()
    made = Studio()
    shared.play(made)
    made.url = f"{shared.url}/compatible-mode/v1"
    made.seen = shared.seen
    return made


def flagship(studio, name="qwen-vl-max", **options):
    model = connect(studio.url, name, region="beijing", **options)
    model.waits = []
    model.wire.sleep = model.waits.append
    return model


def picture(height=320, width=640):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


# ----------------------------------------------------------------------------------------- names and places


@pytest.mark.parametrize("name", FLAGSHIPS)
def test_each_flagship_is_known_by_its_name(name):
    assert hosted_name(name) == name
    assert hosted_name(name.upper()) == name


@pytest.mark.parametrize("name", ["qwen-vl-max-2025-08-13", "qwen-vl-max-latest", "qwen3-vl-flash-us"])
def test_snapshots_are_hosted_too(name):
    assert hosted_name(name) == name


@pytest.mark.parametrize("name", ["mini", "Qwen/Qwen3-VL-8B-Instruct", "qwen3-vl-8b-instruct", "gpt-4o", ""])
def test_other_names_are_not_hosted(name):
    assert hosted_name(name) is None


def test_every_region_has_an_address_that_tells_it():
    assert {region_of(region_url(name)) for name in REGIONS} == set(REGIONS)


def test_an_unknown_region_is_refused_with_the_known_ones():
    with pytest.raises(BackendError, match="beijing, singapore, virginia"):
        open_backend("qwen-vl-max", region="mars")


@pytest.mark.parametrize("name", FLAGSHIPS)
def test_load_takes_a_hosted_name(name, studio):
    model = qvl.load(name)
    assert isinstance(model.backend, HttpModel)
    assert (model.name, model.wire.url) == (name, region_url("beijing"))


def test_load_takes_a_region(studio):
    assert "intl" in qvl.load("qwen-vl-max", region="singapore").wire.url


def test_a_region_takes_any_name_of_the_service(studio):
    model = qvl.load("qwen3-vl-8b-instruct", region="singapore")
    assert (model.name, model.family) == ("qwen3-vl-8b-instruct", "qwen3_vl")


def test_a_region_needs_a_name():
    with pytest.raises(BackendError, match="which hosted model"):
        open_backend(region="beijing")


def test_a_folder_of_that_name_goes_before_the_hosted_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen-vl-max").mkdir()
    with pytest.raises(qvl.errors.QvlError, match=r"qwen-vl-max.*(config|checkpoint)"):
        qvl.load("qwen-vl-max")


def test_load_takes_an_address(studio, shared):
    shared.play(reply(200, {"data": [{"id": "Qwen/Qwen2.5-VL-7B-Instruct"}]}))
    model = qvl.load(shared.url)
    assert (model.name, model.family) == ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl")


@pytest.mark.parametrize("options", [{"max_spend": "1"}, {"family": "qwen2_vl"}, {"prices": "x.toml"}])
def test_options_of_a_server_need_one(options):
    with pytest.raises(BackendError, match="is for a server"):
        qvl.load("mini", **options)


def test_without_a_key_nothing_is_sent(studio, monkeypatch):
    monkeypatch.delenv("DASHSCOPE_API_KEY")
    with pytest.raises(BackendError, match="DASHSCOPE_API_KEY"):
        flagship(studio)
    assert studio.seen == []


# ------------------------------------------------------------------------------------------------ pictures


@given(st.integers(28, 6000), st.integers(28, 6000), st.booleans())
def test_pictures_are_counted_as_the_service_counts_them(height, width, high):
    if max(height, width) > 190 * min(height, width):
        return
    limits = model_studio_limits("qwen3-vl-plus", "qwen3_vl_moe", high)
    size = image_size(Size(height, width), "qwen3_vl_moe", limits)
    assert size.visual_tokens == picture_tokens(height, width, 16384 if high else 2560)


@pytest.mark.parametrize("name", FLAGSHIPS)
def test_a_large_picture_is_shrunk_unless_the_switch_is_on(studio, name):
    page = picture(2400, 1700)
    cut, full = flagship(studio, name), flagship(studio, name, high_resolution=True)
    low, high = cut.ask([page], "?"), full.ask([page], "?")
    assert low.visual_tokens <= 2562 < high.visual_tokens
    assert "vl_high_resolution_images" not in studio.seen[0].body
    assert studio.seen[1].body["vl_high_resolution_images"] is True
    assert (low.notes, high.notes) == ((), ())  # our sizes and its counts agree


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("qwen-vl-max-2025-08-13", "qwen-32"),
        ("qwen-vl-max-2025-04-08", "qwen-28"),
        ("qwen-vl-plus-2025-07-10", "qwen-32"),
        ("qwen-vl-plus-2025-05-07", "qwen-28"),
        ("qwen-vl-max", None),
        ("qwen3-vl-plus-2025-09-23", None),
    ],
)
def test_a_snapshot_counts_pictures_as_it_did_on_its_day(name, rule):
    assert image_rule_key(name) == rule
    limits = model_studio_limits(name, find_family(name), high_resolution=False)
    assert limits.factor == (28 if rule == "qwen-28" else 32)


def test_a_snapshot_is_of_its_models_family():
    assert find_family("qwen-vl-max-2025-08-13") == find_family("qwen-vl-max") == by_name("qwen2_5_vl")


# ------------------------------------------------------------------------------------------------ answers


def test_an_answer_comes_with_its_counts(studio):
    answer = flagship(studio).ask([picture()], "?")
    assert (answer.text, answer.finish_reason) == ("The total is 10.36.", "stop")
    assert (answer.visual_tokens, answer.prompt_tokens) == (202, 227)
    assert answer.media[0].visual_tokens == 200


def test_a_stream_brings_the_same_counts_at_its_end(studio):
    stream = flagship(studio).stream([picture()], "?")
    assert "".join(stream) == "The total is 10.36."
    whole = flagship(studio).ask([picture()], "?")
    assert stream.answer.prompt_tokens == whole.prompt_tokens
    assert stream.answer.cost == whole.cost


@pytest.mark.parametrize("way", ["ask", "stream"])
def test_thoughts_are_asked_for_over_a_stream_and_parted(studio, way):
    model = flagship(studio, "qwen3-vl-plus")
    settings = {"thinking": True, "thinking_budget": 500}
    answer = model.ask([], "?", **settings) if way == "ask" else model.stream([], "?", **settings).finish()
    assert (answer.text, answer.reasoning) == ("The total is 10.36.", "I add the lines.")
    body = studio.seen[0].body
    assert (body["enable_thinking"], body["thinking_budget"], body["stream"]) == (True, 500, True)


def test_no_thinking_is_said_too(studio):
    flagship(studio, "qwen3-vl-plus").ask([], "?", thinking=False)
    assert studio.seen[0].body["enable_thinking"] is False


def test_other_servers_get_thinking_as_a_variable_of_the_template(studio, shared):
    model = connect(shared.url, "Qwen/Qwen3.5-9B")
    asked = model._prepare([{"role": "user", "content": "?"}], {"thinking": False})
    assert asked.body["chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(PromptError, match="Model Studio"):
        model._prepare([{"role": "user", "content": "?"}], {"thinking_budget": 5})


# ------------------------------------------------------------------------------------------------ refusals


def test_a_wrong_key_is_told_without_being_shown(studio, monkeypatch, caplog, capsys):
    wrong = "sk-wrongwrongwrongwrong"
    monkeypatch.setenv("DASHSCOPE_API_KEY", wrong)
    model = flagship(studio)
    with caplog.at_level(logging.DEBUG), pytest.raises(BackendError) as caught:
        model.ask([], "?")
    assert caught.value.status == 401
    assert "Incorrect API key" in str(caught.value)
    for text in (str(caught.value), repr(caught.value), repr(model), repr(model.wire), caplog.text):
        assert wrong not in text
    assert len(studio.seen) == 1  # not tried again


def test_a_full_service_is_waited_for(studio):
    studio.busy = 2
    model = flagship(studio)
    assert model.ask([], "?").text == "The total is 10.36."
    assert len(model.waits) == 2
    assert len(studio.billed) == 1


def test_a_service_that_stays_full_ends_in_an_error_that_says_so(studio):
    studio.busy = 99
    with pytest.raises(BackendError, match=r"429.*tried 5 times"):
        flagship(studio).ask([], "?")


def test_a_picture_that_the_service_cannot_open_is_its_400(studio):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(BackendError, match="image format is illegal") as caught:
        flagship(studio).post({"messages": [{"role": "user", "content": [part]}]})
    assert caught.value.status == 400
    assert len(studio.seen) == 1


def test_a_broken_file_is_refused_before_anything_is_sent(studio, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture")
    with pytest.raises(qvl.errors.MediaError):
        flagship(studio).ask([path], "?")
    assert studio.seen == []


def test_a_name_that_the_service_does_not_know_is_its_404(studio):
    with pytest.raises(BackendError, match=r"404.*check the model's name"):
        connect(studio.url, "qwen-vl-ultra", region="beijing").ask([], "?")


# ------------------------------------------------------------------------------------------------- cost


def test_a_call_costs_its_tokens_at_the_listed_price(studio):
    cost = flagship(studio).ask([picture()], "?").cost
    assert cost.currency == "CNY"
    assert cost.amount == pytest.approx((227 * 1.6 + 8 * 4.0) / 1e6)
    assert "2026-01" in cost.source


def test_thoughts_cost_what_output_costs(studio):
    model = flagship(studio, "qwen3-vl-plus")
    plain, thought = model.ask([], "?").cost.amount, model.ask([], "?", thinking=True).cost.amount
    assert thought - plain == pytest.approx(20 * 10.0 / 1e6)


def test_what_the_service_had_cached_costs_less(studio):
    studio.cached = 100
    cost = flagship(studio).ask([picture()], "?").cost
    assert cost.amount == pytest.approx((127 * 1.6 + 100 * 0.32 + 8 * 4.0) / 1e6)


@pytest.mark.parametrize(
    ("tokens", "per_million"), [(32_768, 1.0), (32_769, 1.5), (131_072, 1.5), (131_073, 3.0)]
)
def test_the_whole_input_pays_the_tier_it_falls_into(tokens, per_million):
    assert call_cost(BOOK.api["qwen3-vl-plus"], tokens, 0).amount == pytest.approx(tokens * per_million / 1e6)


def test_beyond_the_list_no_price_is_invented():
    assert call_cost(BOOK.api["qwen3-vl-flash"], 40_000, 10) is None


def test_each_region_has_its_own_prices():
    assert find_price(BOOK, "qwen-vl-max", "beijing").currency == "CNY"
    assert find_price(BOOK, "qwen-vl-max", "singapore").currency == "USD"
    assert find_price(BOOK, "qwen-vl-max", None) is None
    assert find_price(BOOK, "qwen-vl-max-2025-08-13", "beijing") is None


def test_a_file_of_ones_own_prices_goes_first(tmp_path, studio):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[api]]\nname = "qwen-vl-max"\nprovider = "contract"\ncurrency = "USD"\nimage_rule = "qwen-32"\n'
        'max_input = 129024\ndate = "2026-11-01"\ntiers = [{input = 1000.0, output = 0.0}]\n',
        encoding="utf-8",
    )
    cost = flagship(studio, prices=path).ask([], "?").cost
    assert (cost.amount, cost.currency) == (pytest.approx(0.025), "USD")


@pytest.mark.parametrize(
    ("text", "amount"),
    [("0.5", 0.5), ("3CNY", 3.0), ("3 cny", 3.0), ("¥2", 2.0), ("$1", 6.72), ("1 USD", 6.72)],
)
def test_amounts_are_read_in_both_currencies(text, amount):
    assert parse_amount(text, "CNY", BOOK) == pytest.approx(amount)


@pytest.mark.parametrize("text", ["", "0", "-1", "abc", "1e3", "$1USD", "nan", "inf", "1,5", "9" * 13])
def test_an_amount_that_is_none_is_refused(text):
    with pytest.raises(PlanError, match="max-spend"):
        parse_amount(text, "CNY", BOOK)


def test_a_currency_without_a_rate_is_refused():
    with pytest.raises(qvl.errors.CatalogError, match="EUR"):
        parse_amount("1 EUR", "CNY", BOOK)


# ------------------------------------------------------------------------------------------------ the limit


def test_a_call_that_could_break_the_limit_is_not_made(studio):
    model = flagship(studio, max_spend="0.0001")
    with pytest.raises(CapacityError, match=r"could cost .* --max-spend is 0\.0001 CNY"):
        model.ask([picture()], "?", max_new_tokens=100)
    assert studio.seen == []


@pytest.mark.parametrize("name", FLAGSHIPS)
def test_what_is_held_back_is_never_less_than_the_bill(studio, name):
    """Whatever is asked, the bound on the call lies above what the service counts."""
    model = flagship(studio, name)
    held = []
    hold = model.meter.hold
    model.meter.hold = lambda tokens, out: held.append((tokens, out)) or hold(tokens, out)
    questions = ["?", "Was kostet das? 多少钱？", "x " * 500]
    for question in questions:
        model.ask([picture(), picture(700, 900)], question, max_new_tokens=30)
        model.ask([picture(3000, 2000)], question, system="Be short.", max_new_tokens=3)
    for (most_in, most_out), (billed_in, billed_out) in zip(held, studio.billed, strict=True):
        assert most_in >= billed_in
        assert most_out >= billed_out


def test_calls_run_until_the_next_could_break_the_limit(studio):
    studio.answer, studio.completion_tokens = "yes", 100
    model = flagship(studio, max_spend="0.002")
    with pytest.raises(CapacityError) as caught:
        collections.deque(model.ask([], "?", max_new_tokens=100) for _ in range(100))
    assert 0 < len(studio.billed) < 100
    assert model.meter.spent.amount <= 0.002
    assert f"{model.meter.spent.amount:.4f} spent" in str(caught.value)


def test_ask_many_keeps_the_limit_together(studio):
    studio.completion_tokens = 100
    model = flagship(studio, max_spend="0.003", max_concurrency=8)
    with pytest.raises(CapacityError):
        model.ask_many([([], "?")] * 100, max_new_tokens=100)
    assert model.meter.spent.amount <= 0.003
    assert sum(i * 1.6 + o * 4.0 for i, o in studio.billed) / 1e6 == pytest.approx(model.meter.spent.amount)


def test_pages_keep_the_limit_together(studio, tmp_path):
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.png")
        picture(400, 300).save(paths[-1])
    studio.answer, studio.completion_tokens = '<p data-bbox="1 2 30 40">Words.</p>', 200
    model = flagship(studio, max_spend="0.004")
    with pytest.raises(CapacityError):
        model.read(paths, max_new_tokens=200)
    assert 1 <= len(studio.billed) < 6
    assert model.meter.spent.amount <= 0.004


def test_a_refused_request_costs_nothing(studio, monkeypatch):
    model = flagship(studio, max_spend="1")
    monkeypatch.setattr(model.wire, "_key", "sk-other")
    with pytest.raises(BackendError):
        model.ask([], "?", max_new_tokens=10)
    assert model.meter.spent.amount == 0
    assert model.meter._held == pytest.approx(0)


@pytest.mark.parametrize("way", ["left", "broken"])
def test_a_stream_without_counts_costs_all_that_was_held(studio, shared, way):
    if way == "broken":
        shared.play(streams(delta("The"), done=False, cut=True))
    model = flagship(studio, max_spend="1")
    stream = model.stream([], "?", max_new_tokens=1000)
    held = model.meter._held
    next(stream)
    if way == "left":
        stream.close()
    else:
        with pytest.raises(BackendError):
            stream.finish()
    assert model.meter.spent.amount == pytest.approx(held)
    assert model.meter._held == pytest.approx(0)


def test_without_a_limit_on_tokens_the_longest_answer_is_held_back():
    assert longest_output("qwen-vl-max", {}) == 8_192
    assert longest_output("qwen3-vl-plus", {}) == 32_768
    assert longest_output("qwen3-vl-plus", {"enable_thinking": True}) == 32_768 + 81_920
    assert (
        longest_output("qwen3-vl-plus", {"enable_thinking": True, "thinking_budget": 9, "max_tokens": 1})
        == 10
    )


def test_a_limit_without_a_price_is_refused(studio):
    with pytest.raises(PlanError, match=r"virginia.*--prices"):
        connect(studio.url, "qwen-vl-max", region="virginia", max_spend="1")


def test_threads_never_hold_more_than_the_limit_together():
    meter = Meter(BOOK.api["qwen-vl-max"], limit=0.01)
    refused, most = [], []

    def work():
        for _ in range(50):
            try:
                held = meter.hold(100, 1000)
            except CapacityError:
                refused.append(1)
                continue
            most.append(meter._held + meter.spent.amount)
            held.end(call_cost(meter.price, 100, 10))

    threads = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert max(most) <= 0.01 + 1e-12
    assert meter._held == pytest.approx(0)
    assert meter.num_calls + len(refused) == 400


# -------------------------------------------------------------------------------------------------- verbs


def ask(studio, *words):
    return main(["ask", "--endpoint", studio.url, "--model", "qwen-vl-max", "--region", "beijing", *words])


def test_the_verb_prints_the_price_of_the_call(studio, capsys):
    assert ask(studio, "--stats", "?") == 0
    out, err = capsys.readouterr()
    assert out == "The total is 10.36.\n"
    assert "cost 0.000072 CNY by qwen-vl-max" in err


def test_the_price_is_in_the_json_too(studio, capsys):
    assert ask(studio, "--json", "?") == 0
    cost = json.loads(capsys.readouterr().out)["cost"]
    assert cost == {"amount": pytest.approx(72e-6), "currency": "CNY"}


def test_the_verb_refuses_a_call_that_could_break_the_limit(studio, capsys):
    assert ask(studio, "--max-spend", "0.00001", "?") == 2
    assert "--max-spend" in capsys.readouterr().err
    assert studio.seen == []


def test_read_tells_what_it_spent(studio, capsys, tmp_path):
    path = tmp_path / "a.png"
    picture(400, 300).save(path)
    studio.answer = '<p data-bbox="1 2 30 40">Words.</p>'
    words = ["--endpoint", studio.url, "--model", "qwen-vl-max", "--region", "beijing", "--max-spend", "$1"]
    assert main(["read", str(path), *words]) == 0
    assert "in 1 calls" in capsys.readouterr().err
