"""Trainings that test_resume.py starts, kills and starts again, each a process of its own.

python tests/resume_child.py, and then on standard input, one a line:
{"folder": ..., "kind": ..., "workers": ..., "kill": [moment, number]}

Answers with an exit code a line. Libraries are imported once: each training is forked from a
process that has computed nothing.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

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


def contents(folder: Path) -> dict[str, str]:
    """A hash of each file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_in_finder(learn: Learner, number: int) -> None:
    """In the finder's n-th step; what the folder held when it began is written beside it."""
    before, calls = json.dumps(contents(learn.path)), iter(range(10_000))
    learn.path.with_suffix(".before.json").write_text(before, encoding="utf-8")

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if next(calls) == number:
            die()
        return F.cross_entropy(logits, targets)

    learn.loss_func = loss


def train(learn: Learner, kind: str, killers: list[Callback], in_finder: int) -> None:
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
        learn.save("head")
        if in_finder:
            kill_in_finder(learn, in_finder)
        learn.lr_find(n_steps=20)
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
    train(learn, kind, killers, number if moment == "finder" else 0)
    learn.save("end")
    rows = [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in learn.recorder.rows
    ]
    told = {"rows": rows, "losses": learn.recorder.losses, "n_steps": learn.n_steps}
    (Path(folder) / "end.json").write_text(json.dumps(told), encoding="utf-8")


def in_a_fork(order: dict[str, Any]) -> int:
    """The exit code of a training; minus the signal that ended it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            main(**order)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for line in sys.stdin:
        print(in_a_fork(json.loads(line)), flush=True)
