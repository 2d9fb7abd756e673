"""Lamella teaches a pre-trained model new classes, task after task; each task adds one thin low-rank layer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lamella.common.version import __version__

if TYPE_CHECKING:
    from lamella.backbones import Backbone as Backbone
    from lamella.backbones import load_backbone as load_backbone
    from lamella.data.scenario import Scenario as Scenario
    from lamella.data.scenario import Task as Task
    from lamella.data.scenario import class_incremental as class_incremental
    from lamella.data.scenario import domain_incremental as domain_incremental
    from lamella.data.scenario import task_incremental as task_incremental
    from lamella.data.sources.load import load_source as load_source
    from lamella.learner.config.document import load_config as load_config
    from lamella.learner.learner import Learner as Learner
    from lamella.methods import METHODS as METHODS
    from lamella.methods import Method as Method
    from lamella.training.fit import Fit as Fit
    from lamella.training.recipe import LoRA as LoRA
    from lamella.training.recipe import Training as Training

# Each public name is imported when it is first used, so that `import lamella` and `lamella --help` stay quick.
_HOMES = {
    "METHODS": "lamella.methods",
    "Backbone": "lamella.backbones",
    "Fit": "lamella.training.fit",
    "LoRA": "lamella.training.recipe",
    "Learner": "lamella.learner.learner",
    "Method": "lamella.methods",
    "Scenario": "lamella.data.scenario",
    "Task": "lamella.data.scenario",
    "Training": "lamella.training.recipe",
    "class_incremental": "lamella.data.scenario",
    "domain_incremental": "lamella.data.scenario",
    "load_backbone": "lamella.backbones",
    "load_config": "lamella.learner.config.document",
    "load_source": "lamella.data.sources.load",
    "task_incremental": "lamella.data.scenario",
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lamella' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
