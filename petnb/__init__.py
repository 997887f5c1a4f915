"""petnb: image classifiers, trained and explained."""

__version__ = "0.0.1"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import ImageData
    from .explorer import Explorer
    from .fine_tuning import fine_tune, freeze, freeze_to, unfreeze
    from .inference import Predictor, export
    from .interpretation import Interpretation, interpret
    from .learner import (
        Callback,
        Learner,
        Recorder,
        accuracy,
        error_rate,
        macro_accuracy,
        rates,
        vision_learner,
    )
    from .lr_finder import FinderResult, lr_find, lr_suggest
    from .model import Classifier, create_classifier, fastai_head, linear_head
    from .schedules import cosine, fit_one_cycle, one_cycle, plot_schedules
    from .transforms import train_transform, valid_transform

__all__ = [
    "Callback",
    "Classifier",
    "Explorer",
    "FinderResult",
    "ImageData",
    "Interpretation",
    "Learner",
    "Predictor",
    "Recorder",
    "accuracy",
    "cosine",
    "create_classifier",
    "error_rate",
    "export",
    "fastai_head",
    "fine_tune",
    "fit_one_cycle",
    "freeze",
    "freeze_to",
    "interpret",
    "linear_head",
    "lr_find",
    "lr_suggest",
    "macro_accuracy",
    "one_cycle",
    "plot_schedules",
    "rates",
    "train_transform",
    "unfreeze",
    "valid_transform",
    "vision_learner",
]

_homes = {
    "Callback": "learner",
    "Classifier": "model",
    "Explorer": "explorer",
    "FinderResult": "lr_finder",
    "ImageData": "data",
    "Interpretation": "interpretation",
    "Learner": "learner",
    "Predictor": "inference",
    "Recorder": "learner",
    "accuracy": "learner",
    "cosine": "schedules",
    "create_classifier": "model",
    "error_rate": "learner",
    "export": "inference",
    "fastai_head": "model",
    "fine_tune": "fine_tuning",
    "fit_one_cycle": "schedules",
    "freeze": "fine_tuning",
    "freeze_to": "fine_tuning",
    "interpret": "interpretation",
    "linear_head": "model",
    "lr_find": "lr_finder",
    "lr_suggest": "lr_finder",
    "macro_accuracy": "learner",
    "one_cycle": "schedules",
    "plot_schedules": "schedules",
    "rates": "learner",
    "train_transform": "transforms",
    "unfreeze": "fine_tuning",
    "valid_transform": "transforms",
    "vision_learner": "learner",
}


def __getattr__(name: str) -> Any:
    if name in _homes:
        return getattr(import_module(f".{_homes[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
