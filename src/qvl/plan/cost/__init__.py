"""What image traffic costs: a hosted API, rented GPUs, owned GPUs, and where one overtakes the other.

Arithmetic over dated prices (`catalog.prices`) and a rate of requests that the caller got from `plan.speed`
or measured. It knows nothing of models, memory or how fast anything is.
"""

from qvl.plan.cost.api import ApiBill, ImageTokens, api_bill, image_tokens, video_tokens
from qvl.plan.cost.compare import Comparison, Moved, Swing, compare
from qvl.plan.cost.server import BreakEven, SelfBill, Server, Side, break_even, break_even_tokens, self_bill
from qvl.plan.cost.traffic import HOURS_PER_MONTH, MILLION, SECONDS_PER_MONTH, Traffic

__all__ = [
    "HOURS_PER_MONTH", "MILLION", "SECONDS_PER_MONTH", "ApiBill", "BreakEven", "Comparison", "ImageTokens", "Moved",
    "SelfBill", "Server", "Side", "Swing", "Traffic", "api_bill", "break_even", "break_even_tokens", "compare",
    "image_tokens", "self_bill", "video_tokens",
]  # fmt: skip
