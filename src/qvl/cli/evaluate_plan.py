"""`qvl eval plan`: how many items a difference takes, or what a number of items can show."""

from __future__ import annotations

from qvl.cli.evaluate_compare import parse_share
from qvl.cli.options import JsonOption, command, option
from qvl.cli.tables import print_json
from qvl.errors import PlanError
from qvl.evaluate.statistics import detectable, needed_items, needed_unpaired, power_of


@command
def run(
    discordant: str = option("10%", "The share of items on which the two runs differ.", metavar="10%|0.1"),
    detect: str | None = option(
        None, "The true difference to find (default: the one that -n finds).", metavar="1pt|0.01"
    ),
    num: int | None = option(
        None, "The number of items (default: as many as --detect needs).", "-n", "--num"
    ),
    power: float = option(0.8, "The probability of finding it.", min=0.01, max=0.999),
    alpha: float = option(0.05, "The level of the two-sided test.", min=1e-6, max=0.5),
    score: str = option("70%", "The score, for the comparison without pairing.", metavar="70%|0.7"),
    as_json: JsonOption = False,
) -> int:
    """How many items a paired comparison needs, or what a number of items can show."""
    changed, level = parse_share(discordant, "discordant"), parse_share(score, "score")
    if detect is None and num is None:
        raise PlanError("give the difference to detect (--detect 1pt), the number of items (-n 500), or both")
    found = {"discordant": changed, "power": power, "alpha": alpha, "num": num}
    lines = []
    if detect is not None:
        difference = parse_share(detect, "detect")
        found |= {"detect": difference, "needed": needed_items(changed, difference, power, alpha)}
        lines.append(
            f"{found['needed']:,} items find a difference of {difference * 100:g} points in {power:.0%} of such "
            f"comparisons, when {changed:.1%} of the answers change (paired, two-sided {alpha:g})"
        )
        if difference < level:
            found["needed_unpaired"] = needed_unpaired(level, difference, power, alpha)
            lines.append(
                f"without pairing, at a score of {level:.0%}: {found['needed_unpaired']:,} items on each side"
            )
        if num is not None:
            found["power_of_num"] = power_of(num, changed, difference, alpha)
            lines.append(f"{num:,} items find it in {found['power_of_num']:.0%}")
    if num is not None:
        if num < 1:
            raise PlanError(f"-n {num}: at least 1")
        found["detectable"] = detectable(num, changed, power, alpha)
        least = found["detectable"]
        lines.append(
            f"{num:,} items find no difference that {changed:.1%} of changed answers can make"
            if least is None
            else f"{num:,} items find a difference of {least * 100:.2g} points or more"
        )
    if as_json:
        print_json(found)
    else:
        print("\n".join(lines))
    return 0
