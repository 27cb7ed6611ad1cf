"""The training curve as a picture and a small table: python training/plot_curve.py runs/mini docs/mini_curve.png"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KINDS = ("read1", "field1", "find1", "count1", "glyphs")


def main(run: Path, out: Path) -> None:
    lines = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
    pictures = [line["pictures"] / 1000 for line in lines]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for kind in KINDS:
        glyphs = [line["kinds"].get(kind, {}).get("tower.acc_glyph") for line in lines]
        if kind in ("read1", "field1", "glyphs"):
            left.plot(pictures, [g if g == g else None for g in glyphs], label=kind)
        if kind != "glyphs":
            exact = [
                line["kinds"].get(kind, {}).get("token" if kind == "find1" else "exact") for line in lines
            ]
            right.plot(pictures, exact, label=f"{kind} (tokens)" if kind == "find1" else kind)
    left.set(title="glyphs named by the tower", xlabel="thousand pictures", ylabel="share", ylim=(0, 1))
    right.set(title="answers exact (training pictures)", xlabel="thousand pictures", ylim=(0, 1))
    for axis in (left, right):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=110)
    with out.with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["step", "minutes", "pictures", "lr", *(f"{k} exact" for k in KINDS[:4]), "glyph accuracy"]
        )
        for line in lines[::4]:
            kinds = line["kinds"]
            exact = [kinds.get(k, {}).get("exact", "") for k in KINDS[:4]]
            glyph = kinds.get("glyphs", kinds.get("sheet", {})).get("tower.acc_glyph", "")
            table.writerow(
                [line["step"], line["minutes"], line["pictures"], f"{line['lr']:.2e}", *exact, glyph]
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
