"""petnb: image classifiers, trained and explained."""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import TryIt
    from .callbacks import EarlyStopping, SaveModel
    from .data import ImageData
    from .explorer import Explorer
    from .fine_tuning import fine_tune, freeze, freeze_to, unfreeze
    from .inference import Predictor, export
    from .interpretation import Interpretation, interpret
    from .learner import Callback, Learner, Recorder, vision_learner
    from .losses import FocalLoss, LabelSmoothing, accuracy, error_rate, macro_accuracy
    from .lr_finder import FinderResult, lr_find, lr_suggest
    from .model import Classifier, create_classifier
    from .onnx_export import export_onnx
    from .optimizers import layer_decay, rates
    from .schedules import cosine, fit_one_cycle, one_cycle, plot_schedules
    from .sources import k_fold
    from .transforms import train_transform, valid_transform

__all__ = [
    "Callback",
    "Classifier",
    "EarlyStopping",
    "Explorer",
    "FinderResult",
    "FocalLoss",
    "ImageData",
    "Interpretation",
    "LabelSmoothing",
    "Learner",
    "Predictor",
    "Recorder",
    "SaveModel",
    "TryIt",
    "accuracy",
    "cosine",
    "create_classifier",
    "error_rate",
    "export",
    "export_onnx",
    "fine_tune",
    "fit_one_cycle",
    "freeze",
    "freeze_to",
    "interpret",
    "k_fold",
    "layer_decay",
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
    "EarlyStopping": "callbacks",
    "Explorer": "explorer",
    "FinderResult": "lr_finder",
    "FocalLoss": "losses",
    "ImageData": "data",
    "Interpretation": "interpretation",
    "LabelSmoothing": "losses",
    "Learner": "learner",
    "Predictor": "inference",
    "Recorder": "learner",
    "SaveModel": "callbacks",
    "TryIt": "app",
    "accuracy": "losses",
    "cosine": "schedules",
    "create_classifier": "model",
    "error_rate": "losses",
    "export": "inference",
    "export_onnx": "onnx_export",
    "fine_tune": "fine_tuning",
    "fit_one_cycle": "schedules",
    "freeze": "fine_tuning",
    "freeze_to": "fine_tuning",
    "interpret": "interpretation",
    "k_fold": "sources",
    "layer_decay": "optimizers",
    "lr_find": "lr_finder",
    "lr_suggest": "lr_finder",
    "macro_accuracy": "losses",
    "one_cycle": "schedules",
    "plot_schedules": "schedules",
    "rates": "optimizers",
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
