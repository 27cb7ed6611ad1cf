"""The golden test of an endpoint: about fifty small questions whose outcome is known for any weights, and some whose
outcome is known for these weights.

    endpoint = EndpointUnderTest(backend)             # any Backend
    report = examine(endpoint)                         # runs the probes
    report.failed, report.to_dict()

What answers is backends' business, what is asked in public tests evaluate's; here are images and questions made so
that a fault of the machinery shows, and the comparison with how the same model answered before.
"""

from qvl import moved
from qvl.doctor.baseline import Baseline
from qvl.doctor.endpoint import EndpointUnderTest
from qvl.doctor.probe import Finding, Probe
from qvl.doctor.report import Report
from qvl.doctor.run import examine

__all__ = ["Baseline", "EndpointUnderTest", "Finding", "Probe", "Report", "examine"]

__getattr__ = moved.names(__name__)
