"""The guide's benchmarks by name. A new one is a file with one record and a row here."""

from __future__ import annotations

from importlib import import_module

from qvl.evaluate.benchmarks.record import Benchmark, unknown

BENCHMARKS = {
    "docvqa": "docvqa:DOCVQA",
    "infovqa": "docvqa:INFOVQA",
    "textvqa": "textvqa:TEXTVQA",
    "chartqa": "chartqa:CHARTQA",
    "ocrbench": "ocrbench:OCRBENCH",
    "ocrbench_v2": "ocrbench_v2:OCRBENCH_V2",
    "mathvista": "mathvista:MATHVISTA",
    "mmmu": "mmmu:MMMU",
    "mmmu_pro": "mmmu:MMMU_PRO",
    "videomme": "videomme:VIDEOMME",
    "lvbench": "lvbench:LVBENCH",
    "charades_sta": "charades:CHARADES",
    "aitz": "aitz:AITZ",
    "android_control": "aitz:ANDROID_CONTROL",
    "screenspot": "screenspot:SCREENSPOT",
    "screenspot_v2": "screenspot:SCREENSPOT_V2",
    "screenspot_pro": "screenspot:SCREENSPOT_PRO",
    "refcoco": "refcoco:REFCOCO",
    "kreta": "kreta:KRETA",
    "cc_ocr": "cc_ocr:CC_OCR",
    "omnidocbench": "omnidocbench:OMNIDOCBENCH",
}


def benchmark(name: str) -> Benchmark:
    """By its name; `mmmu-pro` is `mmmu_pro`. Raises: QvlError that lists the names."""
    place = BENCHMARKS.get(name.lower().replace("-", "_"))
    if place is None:
        raise unknown(name, BENCHMARKS)
    module, _, attribute = place.partition(":")
    found = getattr(import_module(f"qvl.evaluate.benchmarks.{module}"), attribute)
    assert isinstance(found, Benchmark)
    return found
