"""The golden test of an endpoint: about fifty small questions whose outcome is known for any weights, and some whose
outcome is known for these weights.

    patient = Patient(backend)                        # any Backend
    report = examine(patient)                         # runs the probes
    report.failed, report.to_dict()

What answers is backends' business, what is asked in public tests evaluate's; here are pictures and questions made so
that a fault of the machinery shows, and the comparison with how the same model answered before.
"""

from qvl.doctor.baseline import Baseline
from qvl.doctor.patient import Patient
from qvl.doctor.probe import Finding, Probe
from qvl.doctor.run import Report, examine

__all__ = ["Baseline", "Finding", "Patient", "Probe", "Report", "examine"]
