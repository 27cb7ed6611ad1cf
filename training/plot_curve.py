"""The training curve as a table and a picture of all of it: python training/plot_curve.py runs/mini docs/mini_curve

Lines of the run that go on from the table's end are added to docs/mini_curve.csv, every fourth; the picture is drawn
from the table, since a run's own log holds only what was trained since it began.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KINDS = ("read1", "field1", "find1", "count1")
COLUMNS = ["step", "minutes", "pictures", "lr", *(f"{k} exact" for k in KINDS), "glyph accuracy"]


def rows_of(run: Path, after: int) -> list[list[object]]:
    lines = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
    rows: list[list[object]] = []
    for line in [line for line in lines if line["step"] > after][::4]:
        kinds = line["kinds"]
        exact = [kinds.get(k, {}).get("exact", "") for k in KINDS]
        glyph = kinds.get("glyphs", kinds.get("sheet", {})).get("tower.acc_glyph", "")
        rows.append([line["step"], line["minutes"], line["pictures"], f"{line['lr']:.2e}", *exact, glyph])
    return rows


def draw(table: Path, out: Path) -> None:
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    pictures = [int(row["pictures"]) / 1000 for row in rows]

    def column(name: str) -> list[float]:
        return [float(row[name]) if row[name] else float("nan") for row in rows]

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    left.plot(pictures, column("glyph accuracy"), color="tab:red")
    # find is exact only to the pixel; its score asks for an IoU of 0.5
    for kind in ("read1", "field1", "count1"):
        right.plot(pictures, column(f"{kind} exact"), label=kind)
    right.legend(fontsize=8)
    left.set(title="glyphs named by the tower", ylabel="share")
    right.set(title="answers exact (training pictures)")
    for axis in (left, right):
        axis.set(xlabel="thousand pictures", ylim=(0, 1))
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def main(run: Path, out: Path) -> None:
    table = out.with_suffix(".csv")
    last = 0
    if table.exists():
        with table.open(newline="") as file:
            last = max((int(row["step"]) for row in csv.DictReader(file)), default=0)
    else:
        table.write_text(",".join(COLUMNS) + "\n")
    with table.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows_of(run, last))
    draw(table, out.with_suffix(".png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
