"""Planning: what to run dynamically, and how, on a device that is known by its calibration."""

from dyndeploy.planning.plan import Plan, load_plan
from dyndeploy.planning.search import PlanSettings, plan_network

__all__ = ["Plan", "PlanSettings", "load_plan", "plan_network"]
