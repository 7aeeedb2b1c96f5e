"""Calibration: micro-benchmarks of a device and the cost model fitted to them."""

from dyndeploy.device_calibration.calibrate import calibrate
from dyndeploy.device_calibration.measure import Measurement, Sample, measure

__all__ = ["Measurement", "Sample", "calibrate", "measure"]
