"""Samples whose times follow known constants: for tests of fitting, without measuring."""

from __future__ import annotations

import numpy as np

from dyndeploy.device_calibration.fit import fit_all
from dyndeploy.device_calibration.graphs import FAMILIES, MicroGraph, draw_masks, micro_graph
from dyndeploy.device_calibration.measure import Measurement, Sample, block_rates
from dyndeploy.graphs.inspect import group_of
from dyndeploy.prediction.calibrated import Calibration, Installation
from dyndeploy.prediction.kernels import REORDER, GraphWalker, Kernel

MS_PER_MAC, MS_PER_BYTE, MS_PER_KERNEL = 1 / 100e6, 1 / 10e6, 0.01


def true_ms(kernel: Kernel) -> float:
    return MS_PER_KERNEL + MS_PER_MAC * kernel.macs + MS_PER_BYTE * (kernel.read_bytes + kernel.written_bytes)


def synthetic(graph: MicroGraph, *, slow: float = 1.0, draws: int = 2, noise: float = 0.0) -> Measurement:
    random = np.random.default_rng(graph.seed)
    walker = GraphWalker(graph.model)
    samples = []
    for _ in range(draws):
        kernels = walker.graph(block_rates(graph.model, draw_masks(graph.masks, random))).kernels
        names = [group_of(kernel.name) for kernel in kernels if kernel.kind != REORDER]
        resident = sum(kernel.weight_bytes for kernel in kernels)
        samples += [
            Sample(k, slow * true_ms(k) * float(np.exp(noise * random.standard_normal())), 0.0, resident)
            for k in kernels
            if k.kind == REORDER or names.count(group_of(k.name)) == 1
        ]
    return Measurement(tuple(samples), 0.25 * slow)


def little_calibration(**runtime: object) -> Calibration:
    """A calibration of this machine and installation, fitted to :func:`many`; ``runtime`` changes what it ran with."""
    here = Installation.here()
    assert here.native is not None
    ran = {
        "version": here.runtime_version,
        "native_sha256": here.native["sha256"],
        "instruction_set": here.native["instruction_set"],
    }
    classes = {name: fit.model for name, fit in fit_all(many(), trees=3).items()}
    return Calibration("cpu", 1, here.machine, {**ran, **runtime}, {"samples": 9}, 0.01, 0.3, classes)


def many(count: int = 16, noise: float = 0.0) -> list[tuple[int, Sample]]:
    return [
        (number, sample)
        for number in range(count)
        for sample in synthetic(
            micro_graph(FAMILIES[0 if number % 2 else number // 2 % len(FAMILIES)], number, values=False), noise=noise
        ).samples
    ]
