"""`python -m qvl.plan.report` is now `python benchmarks/plan_report.py`; works from a checkout until qvl 0.3."""

import importlib.util
import sys
import warnings
from pathlib import Path

_SCRIPT = Path(__file__).parents[3] / "benchmarks" / "plan_report.py"
if not _SCRIPT.exists():
    raise ImportError("the plan report is benchmarks/plan_report.py of the source repository")
warnings.warn(
    "qvl.plan.report is now benchmarks/plan_report.py; the old name goes in qvl 0.3",
    DeprecationWarning,
    stacklevel=2,
)
_spec = importlib.util.spec_from_file_location("plan_report", _SCRIPT)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _module  # dataclasses look their own module up there
_spec.loader.exec_module(_module)
globals().update({name: value for name, value in vars(_module).items() if not name.startswith("__")})

if __name__ == "__main__":
    print(_module.tables(), end="")
