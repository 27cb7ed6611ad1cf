"""Devices: names, units, what they can't do."""

import re

import pytest

from qvl.catalog import find_device, parse_hardware
from qvl.catalog.devices import devices
from qvl.errors import CatalogError, PlanError
from qvl.units import GiB


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rtx4090", "rtx4090"),
        ("RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("4090", "rtx4090"),
        ("h100", "h100"),
        ("H100-SXM", "h100"),
        ("A100-80GB", "a100"),
        ("l40s", "l40s"),
        ("m2 ultra", "m2-ultra"),
        ("Apple M4 Max", "m4-max"),
        ("cpu", "cpu-2core"),
    ],
)
def test_names_people_use_find_the_device(name, expected):
    assert find_device(name).name == expected


def test_an_unknown_device_is_answered_with_the_nearest_names():
    with pytest.raises(CatalogError, match=r"rtx4009.*rtx4090"):
        find_device("rtx4009")


@pytest.mark.parametrize(("text", "count"), [("2xl40s", 2), ("8 x h100", 8), ("4×a100", 4), ("l4", 1)])
def test_a_count_may_stand_before_the_name(text, count):
    assert parse_hardware(text).count == count


@pytest.mark.parametrize("text", ["0xh100", "-2xh100", "9999xh100"])
def test_an_impossible_count_is_refused_with_the_number(text):
    with pytest.raises(PlanError, match=text.split("x")[0]):
        parse_hardware(text)


def test_hardware_says_its_name_and_memory():
    pair = parse_hardware("2xrtx4090")
    assert pair.name == "2xrtx4090"
    assert pair.memory_bytes == 48 * GiB


def test_l40s_has_less_than_its_nominal_48():
    assert find_device("l40s").memory_bytes == 46068 * 2**20


def test_a_product_label_is_one_that_kubernetes_takes_and_names_one_device():
    labels = [d.gpu_product.value for d in devices() if d.gpu_product]
    assert len(labels) == len(set(labels))
    for label in labels:
        assert re.fullmatch(r"[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?", label)


def test_old_cards_have_neither_bf16_nor_flash_attention():
    for name in ("v100", "t4"):
        device = find_device(name)
        assert not device.has_bf16
        assert not device.has_flash_attention
        assert device.flops("fp16") > 0
        assert device.flops("bf16") is None


def test_fp8_starts_with_ada():
    assert not find_device("a100").has_fp8
    assert not find_device("rtx3090").has_fp8
    assert find_device("rtx4090").has_fp8
    assert find_device("h100").has_fp8


def test_unified_memory_keeps_a_share_for_the_system():
    device = find_device("m2-ultra")
    assert device.usable_bytes == device.memory_bytes * 3 // 4


def test_units_are_bytes_and_operations():
    device = find_device("h100")
    assert device.bandwidth_bytes_per_s == 3350e9
    assert device.flops("bf16") == 989e12


@pytest.mark.parametrize("device", devices(), ids=lambda d: d.name)
def test_figures_are_of_the_right_size(device):
    """Catches a value put into the wrong column or unit."""
    assert 8 <= device.memory.value <= 1024
    assert 20 <= device.bandwidth.value <= 10_000
    for rate in device.rates.values():
        assert 0.1 <= rate.value <= 20_000
    if device.watts:
        assert 15 <= device.watts.value <= 2000


def test_no_name_leads_to_two_devices():
    for d in devices():
        for name in (d.name, d.title, *d.aliases):
            assert find_device(name) is d, name


def test_a_machine_that_shares_its_memory_is_named_with_its_size():
    found = parse_hardware("m4-max@64GB")
    assert (found.name, found.memory_bytes) == ("m4-max@64gb", 64 * 2**30)
    assert parse_hardware(found.name).device.usable_bytes == found.device.usable_bytes == 48 * 2**30
    assert parse_hardware("cpu-2core@32").memory_bytes == 32 * 2**30
    with pytest.raises(PlanError, match="16 GiB of its own"):
        parse_hardware("t4@64GB")
    for size in ("0GB", "64TB", "much"):
        with pytest.raises(PlanError, match="64GB"):
            parse_hardware(f"m4-max@{size}")


def test_a_device_by_file_has_its_own_figures(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        '{"kind": "gpu", "memory_gib": 48, "gb_per_s": 900, "tops": {"bf16": 100}, "title": "My card"}'
    )
    found = parse_hardware(f"2x{path}")
    assert (found.device.title, found.count, found.memory_bytes) == ("My card", 2, 96 * 2**30)
    assert found.device.flops("bf16") == 100e12
    assert parse_hardware(found.name) == found
    for text in ("{}", "[", '{"kind": "tpu", "memory_gib": 1, "gb_per_s": 1, "tops": {}}',
                 '{"kind": "gpu", "memory_gib": -1, "gb_per_s": 1, "tops": {}}',
                 '{"kind": "gpu", "memory_gib": 1, "gb_per_s": 1, "tops": {"fp3": 1}}',
                 '{"kind": "gpu", "memory_gib": 1, "gb_per_s": 1, "tops": {}, "system_share": 1}'):  # fmt: skip
        path.write_text(text)
        with pytest.raises(CatalogError, match=r"mine\.json"):
            parse_hardware(str(path))
