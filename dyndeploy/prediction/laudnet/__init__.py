"""The LAUDNet paper's latency predictor, as published or with its faults repaired: networks described by shapes only.

It stands apart from the predictor that prices the kernels of graphs (:mod:`dyndeploy.prediction.estimate`).
"""
