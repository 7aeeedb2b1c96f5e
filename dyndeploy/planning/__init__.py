"""Planning: what to run dynamically, and which exits to keep, on a device that is predicted."""

from __future__ import annotations

import os

from dyndeploy import files
from dyndeploy.planning.exits import ExitChoice, ExitPlan, ExitVerdict, is_exit_plan, plan_exits
from dyndeploy.planning.measured import choose_measured, measure_plans
from dyndeploy.planning.plan import Plan
from dyndeploy.planning.search import PlanSettings, plan_network, uniform_plans
from dyndeploy.planning.sources import DevicePrices, device_prices

__all__ = [
    "DevicePrices",
    "ExitChoice",
    "ExitPlan",
    "ExitVerdict",
    "Plan",
    "PlanSettings",
    "choose_measured",
    "device_prices",
    "load_plan",
    "measure_plans",
    "plan_exits",
    "plan_network",
    "uniform_plans",
]


def load_plan(path: str | os.PathLike[str]) -> Plan | ExitPlan:
    """Read a plan of either kind; raises ``InputError`` if it is missing, foreign or damaged."""
    value = files.read_json(path)
    return ExitPlan.from_json(value) if is_exit_plan(value) else Plan.from_json(value, str(path))
