"""Prices: every record sourced and dated, a user's file on top, and no verdict on old ones."""

from datetime import date

import pytest

from qvl.catalog.devices import find_device
from qvl.catalog.figures import read_json
from qvl.catalog.prices import age_warnings, price_book, require_fresh
from qvl.errors import CatalogError, ConfigError, PlanError

TODAY = date(2026, 11, 23)
BOOK = price_book()
EVERY = [*BOOK.api.values(), *BOOK.rent, *BOOK.purchase, *BOOK.exchange.values()]


@pytest.mark.parametrize("price", EVERY, ids=lambda p: p.label)
def test_every_price_has_a_source_a_kind_and_a_date_before_today(price):
    assert price.source.title
    assert price.source.kind in ("official", "measured", "derived", "third_party")
    assert price.age_days(TODAY) >= 0
    assert price.date in price.cite()


def test_every_source_in_the_file_is_used():
    raw = read_json("prices.json")
    used = {r["source"] for t in ("exchange", "api", "rent", "purchase") for r in raw[t]}
    used |= {r["source"] for t in ("image_rules", "assumptions") for r in raw[t].values()}
    used |= {r["video"]["source"] for r in raw["image_rules"].values() if "video" in r}
    assert set(raw["sources"]) == used


@pytest.mark.parametrize("record", BOOK.rent + BOOK.purchase, ids=lambda r: r.label)
def test_priced_devices_carry_the_catalogue_name(record):
    assert find_device(record.device).name == record.device


def test_each_device_has_at_most_one_tier_in_use():
    used = [r.device for r in BOOK.rent if r.used]
    assert len(used) == len(set(used))


def test_the_listed_max_price_is_1_6_and_4_yuan_a_million_with_a_fifth_for_cached_input():
    tier = BOOK.api_price("qwen-vl-max").tiers[0]
    assert (tier.input, tier.output, tier.cached_input, tier.batch_input) == (1.6, 4.0, 0.32, 0.8)


def test_plus_has_three_tiers_that_rise_with_the_length_of_the_input():
    tiers = BOOK.api_price("Qwen/Qwen3-VL-Plus").tiers
    assert [(t.up_to, t.input) for t in tiers] == [(32768, 1.0), (131072, 1.5), (262144, 3.0)]


def test_a_month_counts_from_its_first_day():
    rent = BOOK.rent_price("h100", "specialist")
    assert rent.date == "2026-05"
    assert rent.age_days(date(2026, 5, 11)) == 10


def test_the_typical_rent_is_the_sources_median_or_else_the_middle():
    assert BOOK.rent_price("l40s").typical == 1.46
    assert BOOK.rent_price("h100").typical == pytest.approx(3.09)  # RunPod secure, 2.89 PCIe to 3.29 SXM


def test_a_price_without_a_default_tier_is_none_and_an_unknown_tier_lists_the_known():
    assert BOOK.rent_price("rtx5090") is None  # a spot price alone
    with pytest.raises(CatalogError, match="specialist"):
        BOOK.rent_price("h100", "cheap")


def test_unknown_model_names_the_nearest():
    with pytest.raises(CatalogError, match="qwen-vl-max"):
        BOOK.api_price("qwen-vl-maxi")


def test_conversion_goes_both_ways_and_refuses_a_currency_without_a_rate():
    assert BOOK.convert(6.72, "CNY", "USD") == pytest.approx(1.0)
    assert BOOK.convert(BOOK.convert(5, "USD", "CNY"), "CNY", "USD") == pytest.approx(5)
    with pytest.raises(CatalogError, match="EUR"):
        BOOK.convert(1, "EUR", "USD")


def test_a_stale_price_refuses_a_verdict_and_says_its_age():
    old = BOOK.api_price("qwen-vl-max@2025-07")
    with pytest.raises(PlanError, match=r"qwen-vl-max@2025-07 is 510 days old.*--allow-stale"):
        require_fresh([old], TODAY)


def test_allow_stale_still_warns():
    old = BOOK.api_price("qwen-vl-max@2025-07")
    assert len(require_fresh([old, old], TODAY, allow_stale=True)) == 1


def test_a_larger_max_age_lets_it_pass_without_a_warning():
    assert require_fresh([BOOK.api_price("qwen-vl-max@2025-07")], TODAY, max_age_days=600) == ()


def test_the_limit_itself_is_still_fresh():
    l40s = BOOK.rent_price("l40s")
    assert age_warnings([l40s], TODAY, l40s.age_days(TODAY)) == ()
    assert len(age_warnings([l40s], TODAY, l40s.age_days(TODAY) - 1)) == 1


def test_a_price_from_the_future_and_a_negative_max_age_are_refused():
    with pytest.raises(PlanError, match="after today"):
        BOOK.rent_price("h100").age_days(date(2020, 1, 1))
    with pytest.raises(PlanError, match="-1"):
        require_fresh([], TODAY, max_age_days=-1)


MINE = """
[[api]]
name = "qwen-vl-max"
provider = "our contract"
currency = "cny"
image_rule = "qwen-32"
max_input = 129024
date = 2026-11-20
tiers = [{ input = 1.2, output = 3.0 }]

[[rent]]
device = "h100"
tier = "contract"
low = 1.9
high = 1.9
currency = "USD"
used = true
date = "2026-11"
"""


@pytest.fixture
def mine(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


def test_a_users_file_replaces_by_key_and_leaves_the_rest(mine):
    book = price_book(mine(MINE))
    assert book.api_price("qwen-vl-max").tiers[0].input == 1.2
    assert book.api_price("qwen-vl-max").source.title == "mine.toml"
    assert book.api_price("qwen3-vl-plus") == BOOK.api_price("qwen3-vl-plus")
    assert book.rent_price("h100").typical == 1.9
    assert book.rent_price("h100", "specialist").typical == 3.0
    assert require_fresh([book.api_price("qwen-vl-max"), book.rent_price("h100")], TODAY) == ()


TIER = "{{ up_to = {}, input = 1, output = 1 }}"
BROKEN = {
    "no TOML": ("x = = 1", "not TOML"),
    "unknown table": ("[[gpus]]\na = 1", "unknown tables gpus"),
    "unknown key": (MINE.replace("provider", "vendor"), "missing provider; unknown vendor"),
    "no date": (MINE.replace("date = 2026-11-20\n", ""), "give its date"),
    "negative price": (MINE.replace("input = 1.2", "input = -1.2"), r"input = -1.2"),
    "text for a price": (MINE.replace("low = 1.9", 'low = "cheap"'), "low = 'cheap'"),
    "range upside down": (MINE.replace("low = 1.9", "low = 2.9"), "out of order"),
    "unknown rule": (MINE.replace("qwen-32", "qwen-99"), "known: .*qwen-28"),
    "unknown source": (MINE + 'source = "blog"\n', r"add \[sources.blog\]"),
    "tiers that fall": (
        MINE.replace("tiers = [", f"tiers = [{TIER.format(9)}, {TIER.format(5)}, "),
        "tiers must rise",
    ),
    "a boolean for a count": (MINE.replace("129024", "true"), "whole number"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_price_file_is_one_helpful_error(name, mine):
    text, message = BROKEN[name]
    with pytest.raises(ConfigError, match=message):
        price_book(mine(text))


def test_a_missing_file_and_a_date_that_is_none_are_errors(mine, tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        price_book(tmp_path / "none.toml")
    book = price_book(mine(MINE.replace('"2026-11"', '"soon"')))
    with pytest.raises(ConfigError, match="'soon' is not a date"):
        book.rent_price("h100").age_days(TODAY)


def test_assumptions_are_marked_and_positive():
    for assumption in BOOK.assumptions.values():
        assert assumption.value > 0
        assert assumption.source.title
