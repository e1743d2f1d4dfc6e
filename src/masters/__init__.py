"""Masters: distil a large vision-language model into a compact one.

The Python API. Everything is imported when it is first asked for, so `import masters` is quick and
planning never loads torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masters.curriculum import mask_ratios
    from masters.plan import make_plan
    from masters.recipe import load_recipe
    from masters.rewards.advantages import group_advantages
    from masters.rewards.distillation import distillation_reward
    from masters.run import run_plan
    from masters.teachers.thresholds import layer_thresholds
    from masters.training.losses import jsd

__all__ = [
    "distillation_reward",
    "group_advantages",
    "jsd",
    "layer_thresholds",
    "load_recipe",
    "make_plan",
    "mask_ratios",
    "run_plan",
]

_HOMES = {
    "distillation_reward": "masters.rewards.distillation",
    "group_advantages": "masters.rewards.advantages",
    "jsd": "masters.training.losses",
    "layer_thresholds": "masters.teachers.thresholds",
    "load_recipe": "masters.recipe",
    "make_plan": "masters.plan",
    "mask_ratios": "masters.curriculum",
    "run_plan": "masters.run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'masters' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
