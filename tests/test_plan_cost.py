"""Cost: known sums, provider token rules, break-evens that hold, and what the guide got wrong."""

from math import ceil, isinf

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qvl.catalog.prices import price_book
from qvl.errors import CapacityError, PlanError
from qvl.plan.cost import (
    SECONDS_PER_MONTH,
    Server,
    Traffic,
    api_bill,
    break_even,
    break_even_tokens,
    compare,
    image_tokens,
    self_bill,
)
from qvl.plan.workload import Image

BOOK = price_book()
MAX_2025 = BOOK.api_price("qwen-vl-max@2025-07")
MAX_NOW = BOOK.api_price("qwen-vl-max")
PLUS3 = BOOK.api_price("qwen3-vl-plus")
FLASH3 = BOOK.api_price("qwen3-vl-flash")
RULE28, RULE32 = MAX_2025.image_rule, PLUS3.image_rule


def traffic(**changes):
    return Traffic(**{"requests_per_month": 1000, "prompt_tokens": 1000, "answer_tokens": 100, **changes})


def server(**changes):
    base = {"name": "1xh100", "num_devices": 1, "requests_per_second": 2.0, "utilisation": 0.3}
    return Server(**{**base, "rent_per_device_hour": 2.5, "people_per_month": 1000.0, **changes})


# Picture tokens by rule


@pytest.mark.parametrize(
    ("rule", "width", "height", "tokens"),
    [
        (RULE28, 1280, 720, 1196 + 2),
        (RULE28, 640, 480, 391 + 2),
        (RULE32, 1280, 720, 880 + 2),
        (RULE32, 1920, 1080, 2040 + 2),
    ],
)
def test_a_picture_within_the_bound_costs_its_squares_and_two_marks(rule, width, height, tokens):
    assert image_tokens(rule, Image(width, height)).tokens == tokens


def test_a_scan_at_300_dpi_is_cut_to_the_bound_unless_the_switch_is_on():
    scan = Image(2480, 3508)
    cut = image_tokens(RULE28, scan)
    assert cut.uncut == 11_125 + 2
    assert 1_200 < cut.tokens <= 1_280 + 2
    assert image_tokens(RULE28, scan, high_resolution=True).tokens == 11_125 + 2


def test_the_switch_has_a_bound_of_its_own():
    huge = image_tokens(RULE28, Image(10_000, 10_000), high_resolution=True)
    assert huge.tokens <= 16_384 + 2 < huge.uncut


def test_600_pictures_a_yuan_fits_plus_and_not_max():
    # facts: 720p is 1,198 tokens, 556 a yuan at 0.0015 yuan per 1,000 and 278 at 0.003
    tokens = image_tokens(RULE28, Image(1280, 720)).tokens
    assert int(1 / (tokens * 0.0015 / 1000)) == 556
    assert int(1 / (tokens * 0.003 / 1000)) == 278


@settings(max_examples=60, deadline=None)
@given(st.integers(28, 4000), st.integers(28, 4000), st.booleans())
def test_a_picture_never_exceeds_the_bound_nor_what_it_would_be_uncut(width, height, high):
    assume(max(width, height) / min(width, height) < 200)
    for rule in (RULE28, RULE32):
        bound = rule.high_resolution_max_tokens if high else rule.default_max_tokens
        t = image_tokens(rule, Image(width, height), high)
        assert rule.min_tokens + rule.extra <= t.tokens <= bound + rule.extra
        assert t.tokens <= t.uncut


# API bills


def test_a_text_request_is_its_tokens_times_their_prices():
    bill = api_bill(traffic(), MAX_2025)
    assert bill.per_request == pytest.approx(1000 * 3e-6 + 100 * 9e-6)
    assert bill.per_month == pytest.approx(3.9)
    assert bill.per_million_tokens == pytest.approx(3.9e-3 / 1100 * 1e6)


def test_every_picture_of_a_request_is_billed():
    bill = api_bill(traffic(images=(Image(1280, 720, 3), Image(640, 480)), prompt_tokens=0), MAX_2025)
    assert bill.image_tokens == 3 * 1198 + 393 == bill.input_tokens


@pytest.mark.parametrize(("tokens", "price"), [(32_768, 1.0), (32_769, 1.5), (131_072, 1.5), (131_073, 3.0)])
def test_the_whole_request_pays_the_tier_its_input_falls_into(tokens, price):
    bill = api_bill(traffic(prompt_tokens=tokens, answer_tokens=0), PLUS3)
    assert bill.per_request == pytest.approx(tokens * price / 1e6)


def test_cache_hits_pay_the_cache_price_for_their_share_of_the_input():
    bill = api_bill(traffic(cache_hit=0.5), MAX_NOW)
    assert bill.per_request == pytest.approx((500 * 0.32 + 500 * 1.6 + 100 * 4.0) / 1e6)


def test_batched_requests_cost_half_and_get_no_cache_price():
    half = api_bill(traffic(batch=1.0, cache_hit=0.9), MAX_NOW).per_request
    assert half == pytest.approx(api_bill(traffic(), MAX_NOW).per_request / 2)


def test_a_discount_nobody_lists_is_not_given_and_said():
    plain = api_bill(traffic(), MAX_2025)
    hopeful = api_bill(traffic(batch=1.0, cache_hit=1.0), MAX_2025)
    assert hopeful.per_request == plain.per_request
    assert any("no batch price" in n for n in hopeful.notes)
    assert any("no cache price" in n for n in hopeful.notes)


def test_a_cut_picture_is_said_with_both_numbers():
    bill = api_bill(traffic(images=(Image(2480, 3508),)), MAX_2025)
    assert any("11,127" in n and "high-resolution" in n for n in bill.notes)


def test_a_request_longer_than_the_model_takes_is_refused_with_both_numbers():
    with pytest.raises(CapacityError, match=r"130,000 input tokens.*takes 129,024"):
        api_bill(traffic(prompt_tokens=130_000), MAX_NOW)
    with pytest.raises(CapacityError, match="32,768"):
        api_bill(traffic(prompt_tokens=32_769), FLASH3)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"requests_per_month": 0}, "requests a month is 0"),
        ({"requests_per_month": float("nan")}, "requests a month"),
        ({"requests_per_month": float("inf")}, "requests a month"),
        ({"prompt_tokens": -1}, "prompt tokens is -1"),
        ({"answer_tokens": -5}, "answer tokens is -5"),
        ({"cache_hit": 1.5}, "cache-hit is 1.5"),
        ({"batch": -0.1}, "batch is -0.1"),
        ({"prompt_tokens": 0}, "no images, videos or prompt tokens"),
    ],
)
def test_impossible_traffic_is_named(changes, name):
    with pytest.raises(PlanError, match=name):
        traffic(**changes)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20_000), st.integers(0, 5_000), st.floats(0, 1), st.floats(0, 1), st.integers(1, 10**7))
def test_the_bill_rises_with_work_and_falls_with_discounts(prompt, answer, cache, batch, volume):
    base = traffic(prompt_tokens=prompt + 1, answer_tokens=answer, requests_per_month=volume)
    plain = api_bill(base, MAX_NOW)
    more = api_bill(
        traffic(prompt_tokens=prompt + 2, answer_tokens=answer + 1, requests_per_month=volume), MAX_NOW
    )
    less = api_bill(
        traffic(
            prompt_tokens=prompt + 1,
            answer_tokens=answer,
            requests_per_month=volume,
            cache_hit=cache,
            batch=batch,
        ),
        MAX_NOW,
    )
    assert plain.per_month < more.per_month
    assert less.per_month <= plain.per_month * (1 + 1e-12)
    assert less.per_month >= plain.per_month * 0.2 * 0.999  # the deepest discount there is


# Own hardware


def test_rent_is_hours_times_devices():
    assert server(num_devices=4).per_month("rented") == pytest.approx(4 * 2.5 * 730)


def test_owning_is_write_off_and_power_at_full_draw():
    s = server(
        num_devices=8, purchase_price=300_000, months=36, device_watts=700, host_factor=1.8, pue=1.4,
        price_per_kwh=0.12,
    )  # fmt: skip
    assert s.power_per_month == pytest.approx(5.6 * 1.8 * 1.4 * 730 * 0.12)
    assert 1_200 < s.power_per_month < 1_300
    assert s.per_month("owned") == pytest.approx(300_000 / 36 + s.power_per_month)


def test_capacity_is_rate_times_utilisation_times_a_month():
    assert server().capacity_per_month == pytest.approx(2.0 * 0.3 * 2_628_000)
    assert SECONDS_PER_MONTH == 2_628_000


def test_servers_come_in_whole_numbers_and_people_come_once():
    cap = server().capacity_per_month
    one, two = self_bill(cap, server(), "rented"), self_bill(cap * 1.01, server(), "rented")
    assert (one.num_servers, two.num_servers) == (1, 2)
    assert two.hardware == pytest.approx(2 * one.hardware)
    assert two.people == one.people == 1000
    assert one.load == pytest.approx(0.3)
    assert self_bill(1, server(), "rented").num_servers == 1


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_devices": 0}, "number of GPUs is 0"),
        ({"utilisation": 0}, "utilisation is 0"),
        ({"utilisation": 1.2}, "utilisation is 1.2"),
        ({"requests_per_second": 0}, "requests per second is 0"),
        ({"months": 0}, "months of write-off is 0"),
        ({"rent_per_device_hour": -1}, "rent is -1"),
        ({"pue": 0.5}, "PUE is 0.5"),
        ({"price_per_kwh": float("nan")}, "power price is nan"),
    ],
)
def test_an_impossible_server_is_named(changes, name):
    with pytest.raises(PlanError, match=name):
        server(**changes)


# Break-even


def test_a_break_even_within_capacity_is_the_bill_over_the_price():
    e = break_even(0.01, server(), "rented")
    assert e.requests == pytest.approx((2.5 * 730 + 1000) / 0.01)
    assert "from 282,500 requests a month on" in e.describe()


def test_a_break_even_the_hardware_cannot_serve_is_none():
    slow = server(requests_per_second=0.1)
    e = break_even(0.01, slow, "rented")
    assert e.requests is None
    assert e.needed > e.capacity
    assert e.describe().startswith("rented: none")
    assert f"{e.capacity:,.0f}" in e.describe()


def test_a_fleet_can_overtake_where_one_server_with_its_people_cannot():
    s = server(people_per_month=50_000, requests_per_second=1.0)
    e = break_even(0.01, s, "rented")
    assert e.requests is None
    num, volume = e.fleet
    assert num == ceil(50_000 / (0.01 * s.capacity_per_month - 1825))
    assert num > 1
    assert "servers overtake" in e.describe()
    assert volume <= num * s.capacity_per_month


def test_no_fleet_overtakes_when_a_full_server_costs_more_than_its_requests_do():
    e = break_even(0.0001, server(), "rented")
    assert e.fleet is None
    assert "a full server costs more" in e.describe()


def test_a_free_api_is_never_overtaken():
    e = break_even(0.0, server(), "rented")
    assert e.requests is None
    assert isinf(e.needed)


@settings(max_examples=150, deadline=None)
@given(
    price=st.floats(1e-5, 0.1), rate=st.floats(0.01, 50), rent=st.floats(0.1, 20), people=st.floats(0, 30_000)
)
def test_bills_agree_with_the_break_even_on_both_sides_of_it(price, rate, rent, people):
    s = server(requests_per_second=rate, rent_per_device_hour=rent, people_per_month=people)
    e = break_even(price, s, "rented")
    if e.requests is not None:
        above, below = min(e.requests * 1.001, e.capacity), e.requests * 0.999
        if above > e.requests:
            assert self_bill(above, s, "rented").per_month < price * above
        if below >= 1:
            assert self_bill(below, s, "rented").per_month > price * below
    else:  # one server full is still dearer
        cap = s.capacity_per_month
        assert self_bill(cap, s, "rented").per_month >= price * cap * (1 - 1e-9)
    if e.fleet and e.fleet[0] > 1:
        num, _ = e.fleet
        full, one_less = num * s.capacity_per_month, (num - 1) * s.capacity_per_month
        assert self_bill(full, s, "rented").per_month <= price * full * (1 + 1e-9)
        assert self_bill(one_less, s, "rented").per_month >= price * one_less * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-4, 0.1), st.floats(1.0, 3.0))
def test_a_dearer_api_or_faster_server_never_moves_the_break_even_up(price, factor):
    base, dearer = break_even(price, server(), "rented"), break_even(price * factor, server(), "rented")
    faster = break_even(price, server(requests_per_second=2.0 * factor), "rented")
    assert dearer.needed <= base.needed
    assert faster.needed == base.needed
    assert faster.capacity >= base.capacity
    if base.requests is not None:
        assert faster.requests == base.requests
        assert dearer.requests is not None


# Comparison and sensitivity


def usd(amount):
    return BOOK.convert(amount, "CNY", "USD")


def comparison(**changes):
    t = changes.pop("traffic", traffic(requests_per_month=400_000, images=(Image(1280, 720),)))
    return compare(t, MAX_NOW, server(purchase_price=30_000, device_watts=700, **changes), usd, "USD")


def test_the_comparison_prices_both_sides_in_one_currency():
    c = comparison()
    assert c.api_per_request == pytest.approx(usd(c.api.per_request))
    assert [b.side for b in c.bills] == ["rented", "owned"]
    assert c.cheapest in ("api", "rented", "owned")


def test_the_verdict_is_the_smallest_bill_with_both_numbers():
    c = comparison()
    best = min(c.bills, key=lambda b: b.per_month)
    assert f"{c.api_per_month:,.2f}" in c.verdict()
    assert f"{best.per_month:,.2f}" in c.verdict()
    assert c.verdict().startswith("the API" if c.cheapest == "api" else c.cheapest)


def test_a_server_without_any_price_is_refused():
    with pytest.raises(PlanError, match="--rent or --purchase-price"):
        compare(traffic(), MAX_NOW, server(rent_per_device_hour=None), usd, "USD")


def test_swings_are_sorted_by_how_much_they_change_the_ratio():
    widths = [s.width for s in comparison().swings]
    assert widths == sorted(widths, reverse=True)
    assert len(widths) >= 3


def test_halving_the_api_price_doubles_the_ratio():
    c = comparison()
    swing = next(s for s in c.swings if s.name == "API price (times)")
    ratio = min(b.per_month for b in c.bills) / c.api_per_month
    assert swing.ratio_low == pytest.approx(2 * ratio)
    assert swing.ratio_high == pytest.approx(ratio / 2)


def test_speed_is_only_ever_lowered():
    swing = next(s for s in comparison().swings if s.name == "requests per second")
    assert (swing.low, swing.high) == (1.0, 2.0)


def test_utilisation_does_not_matter_while_one_server_idles_and_matters_when_full():
    idle = comparison(traffic=traffic(requests_per_month=1000))
    swing = next(s for s in idle.swings if s.name == "utilisation")
    assert swing.ratio_low == swing.ratio_high
    full = comparison(traffic=traffic(requests_per_month=20_000_000))
    swing = next(s for s in full.swings if s.name == "utilisation")
    assert swing.ratio_low > 1.5 * swing.ratio_high


@pytest.mark.parametrize(
    "changes", [{"months": 240}, {"utilisation": 1.0}, {"utilisation": 0.0015}, {"months": 1}]
)
def test_swings_stay_within_what_an_assumption_can_be(changes):
    assert comparison(**changes).swings


# The guide's own example: facts, section 4.2


def blend(price, rate=7.3):
    """$ per million tokens at 90% input."""
    return (0.9 * price.tiers[0].input + 0.1 * price.tiers[0].output) / rate


@pytest.mark.parametrize(
    ("name", "dollars", "hundred_million", "hardware", "with_people"),
    [
        ("qwen-vl-max@2025-07", 0.493, 49, 16.9, 29.7),
        ("qwen-vl-max", 0.252, 25, 33.1, 58.0),
        ("qwen3-vl-plus", 0.260, 26, 32.0, 56.2),
        ("qwen-vl-plus", 0.126, 13, 66.1, 116.1),
        ("qwen3-vl-flash", 0.039, 4, 214, 375),
    ],
)
def test_the_guides_break_even_is_billions_of_tokens(name, dollars, hundred_million, hardware, with_people):
    price = blend(BOOK.api_price(name))
    assert price == pytest.approx(dollars, abs=0.001)
    assert price * 100 == pytest.approx(hundred_million, abs=0.7)
    assert break_even_tokens(300_000 / 36, price) / 1e9 == pytest.approx(hardware, rel=0.01)
    assert break_even_tokens(300_000 / 36 + 1300 + 5000, price) / 1e9 == pytest.approx(with_people, rel=0.01)


def test_current_prices_at_seven_point_one_yuan_give_the_other_published_column():
    # the facts sheet converts today's list at about 7.1 yuan a dollar, the 2025 price at 7.3
    assert blend(MAX_NOW, 7.1) == pytest.approx(0.259, abs=0.001)
    assert break_even_tokens(300_000 / 36, blend(MAX_NOW, 7.1)) / 1e9 == pytest.approx(32, rel=0.01)


def test_the_guides_volume_costs_170_times_as_much_on_the_server():
    per_million = 300_000 / 36 / 100
    assert per_million == pytest.approx(83, abs=0.5)
    assert per_million / blend(MAX_2025) == pytest.approx(170, rel=0.02)


def test_one_h100_and_one_4090_at_the_2025_price():
    price = blend(MAX_2025)
    assert break_even_tokens(2.50 * 730, price) / 1e9 == pytest.approx(3.7, rel=0.01)
    assert break_even_tokens(0.35 * 730, price) / 1e9 == pytest.approx(0.52, rel=0.01)


def test_the_guides_server_would_have_to_run_at_6430_tokens_a_second():
    tokens = break_even_tokens(300_000 / 36, blend(MAX_2025))
    assert tokens / SECONDS_PER_MONTH == pytest.approx(6430, rel=0.001)


def test_a_price_of_nothing_has_no_break_even():
    with pytest.raises(PlanError, match="no break-even"):
        break_even_tokens(100, 0)
