"""Planning: what to run dynamically, and how, on a device that is known by its calibration."""

from dyndeploy.planning.measured import choose_measured, measure_plans
from dyndeploy.planning.plan import Plan, load_plan
from dyndeploy.planning.search import PlanSettings, plan_network, uniform_plans

__all__ = [
    "Plan",
    "PlanSettings",
    "choose_measured",
    "load_plan",
    "measure_plans",
    "plan_network",
    "uniform_plans",
]
