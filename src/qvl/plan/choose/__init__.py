"""Which model, precision, engine and hardware meet a requirement, in which order, and what rules the others out."""

from qvl.plan.choose.ranking import Choice, RuledOut, choose

__all__ = ["Choice", "RuledOut", "choose"]
