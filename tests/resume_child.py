"""A training that test_resume.py starts, kills and starts again.

python tests/resume_child.py FOLDER '{"kind": ..., "workers": ..., "kill": [moment, number]}'
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from petnb.callbacks import EarlyStopping, SaveModel, WeightAverage
from petnb.data import ImageData
from petnb.learner import Callback, Fit, Learner, vision_learner


def die() -> None:
    """As from `kill -9`: nothing of ours runs afterwards."""
    os.kill(os.getpid(), signal.SIGKILL)


class KillAtStep(Callback):
    """After a step, before its checkpoint is written."""

    order = 98

    def __init__(self, number: int) -> None:
        self.number = number

    def after_step(self, fit: Fit) -> None:
        """Count the learner's steps, over all its fits."""
        if fit.learn.n_steps == self.number:
            die()


class KillInValidation(KillAtStep):
    """Between an epoch's last step and its validation."""

    def after_step(self, fit: Fit) -> None:
        """Nothing."""

    def before_validate(self, fit: Fit) -> None:
        """Count the epochs."""
        if fit.learn.n_epochs == self.number:
            die()


def kill_in_write(number: int) -> None:
    """In the middle of the n-th write of a file: half of it is on the disk."""
    import petnb.safe_files as safe_files

    write, counted = safe_files.replace_file, [0]

    def cut_short(path: Path, content: bytes, keep: bool = True) -> None:
        counted[0] += 1
        if counted[0] == number:
            path.with_name(f".{path.name}.{os.getpid()}.part").write_bytes(content[::2])
            die()
        write(path, content, keep)

    safe_files.replace_file = cut_short


def train(learn: Learner, kind: str, killers: list[Callback]) -> None:
    """Each kind has something else to remember."""
    options: dict[str, Any] = {"checkpoint_every": 2, "resume": True}
    if kind == "views":
        learn.fit_one_cycle(3, views=2, callbacks=killers, **options)
    elif kind == "everything":
        learn.unfreeze()
        learn.fit_one_cycle(2, slice(1e-5, 1e-3), accumulate=16, callbacks=killers, **options)
    elif kind == "average":
        watching = [WeightAverage(0.9), EarlyStopping(patience=2), SaveModel("best"), *killers]
        learn.fit(3, 3e-3, mixup=0.4, callbacks=watching, **options)
    else:
        learn.fit_one_cycle(2, callbacks=killers, **options)
        learn.lr_find()
        learn.fit_one_cycle(2, 1e-3, callbacks=killers, clip=1.0, **options)


def main(folder: str, workers: int, kind: str, kill: list[Any]) -> None:
    """Train, and write what came of it."""
    moment, number = kill or ["never", 0]
    data = ImageData.drawn_pets(images_per_breed=4, size=64, batch_size=8, workers=workers)
    learn = vision_learner(data, path=folder, precision="float32", show_progress=False)
    if moment == "write":
        kill_in_write(number)
    killers: list[Callback] = [
        made(number)
        for name, made in (("step", KillAtStep), ("validation", KillInValidation))
        if name == moment
    ]
    train(learn, kind, killers)
    learn.save("end")
    rows = [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in learn.recorder.rows
    ]
    told = {"rows": rows, "losses": learn.recorder.losses, "n_steps": learn.n_steps}
    (Path(folder) / "end.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
