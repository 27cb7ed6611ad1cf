"""The table of all benchmarks in docs/evaluate_benchmarks.md, from their records."""

from __future__ import annotations

from qvl.evaluate.benchmarks import BENCHMARKS, benchmark


def main() -> None:
    print("| name | what | rule | what is wrong with the official one | layout seen in |")
    print("|---|---|---|---|---|")
    for name in BENCHMARKS:
        bench = benchmark(name)
        seen = bench.files.seen or "unverified"
        rule = bench.scorer.about.replace("|", "\\|")
        cells = (
            f"`{name}`",
            bench.title.partition(":")[0],
            " ".join(rule.split()),
            "; ".join(bench.faults) or "-",
            seen,
        )
        print("| " + " | ".join(c.replace("\n", " ") for c in cells) + " |")


if __name__ == "__main__":
    main()
