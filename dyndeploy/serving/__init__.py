"""Bundles on a server: repositories of models for NVIDIA Triton."""

from dyndeploy.serving.config import BACKENDS
from dyndeploy.serving.policy import Measured, Policy, make_policy, read_measured
from dyndeploy.serving.repository import ServedModel, ServingOptions, write_repository

__all__ = [
    "BACKENDS",
    "Measured",
    "Policy",
    "ServedModel",
    "ServingOptions",
    "make_policy",
    "read_measured",
    "write_repository",
]
