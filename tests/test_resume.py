"""A training that is killed at any moment goes on to the same bits.

Five kills here; `PETNB_KILLS=50 python -m pytest tests/test_resume.py` makes fifty.
"""

import json
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from petnb.data import ImageData
from petnb.learner import Learner, vision_learner
from petnb.resume import checkpoint_path, differences
from petnb.safe_files import previous, read_tensors

CHILD = Path(__file__).with_name("resume_child.py")
KINDS = ("views", "everything", "average", "two fits")
N_STEPS = {"views": 12, "everything": 4, "average": 12, "two fits": 16}
FIXED = [
    ("views", ["step", 9], 0),
    ("everything", ["write", 3], 0),
    ("average", ["validation", 2], 2),
    ("two fits", ["step", 11], 0),
    ("average", ["write", 4], 0),
]


def kills() -> list[tuple[str, list[Any], int]]:
    """(kind, moment, workers of the process that goes on): five, or more at random places."""
    dice = random.Random(7)
    found = list(FIXED)
    while len(found) < int(os.environ.get("PETNB_KILLS", len(FIXED))):
        kind = dice.choice(KINDS)
        moment = dice.choice(["step", "write", "validation"])
        highest = {"step": N_STEPS[kind], "write": N_STEPS[kind] // 2, "validation": 2}[moment]
        found.append((kind, [moment, dice.randint(1, highest)], dice.choice([0, 2])))
    return found


def run(folder: Path, kind: str, kill: list[Any], workers: int = 0) -> int:
    """The exit code of a training in a process of its own."""
    told = json.dumps({"kind": kind, "kill": kill, "workers": workers})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHILD.parent.parent)}
    command = [sys.executable, str(CHILD), str(folder), told]
    return subprocess.run(command, env=environment, check=False).returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trainings that nobody interrupts, made when they are asked for."""

    class Made(dict[str, Path]):
        def __missing__(self, kind: str) -> Path:
            self[kind] = tmp_path_factory.mktemp(kind.replace(" ", "_"))
            assert run(self[kind], kind, []) == 0
            return self[kind]

    return Made()


@pytest.mark.parametrize(("kind", "kill", "workers"), kills())
def test_killed_and_resumed(
    whole: dict[str, Path], tmp_path: Path, kind: str, kill: list[Any], workers: int
) -> None:
    assert run(tmp_path, kind, kill) == -signal.SIGKILL
    assert not (tmp_path / "end.json").exists()
    assert run(tmp_path, kind, [], workers) == 0
    for file in ("end.json", "end.safetensors"):
        assert (tmp_path / file).is_file()
    one, _ = read_tensors(whole[kind] / "end.safetensors")
    two, _ = read_tensors(tmp_path / "end.safetensors")
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert (tmp_path / "end.json").read_text() == (whole[kind] / "end.json").read_text()
    assert not list((tmp_path / "checkpoints").glob("*.part")) or kill[0] == "write"


# -- In one process ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData.drawn_pets(images_per_breed=5, size=64, batch_size=20, workers=0)


def learner(data: ImageData, path: Path, **options: Any) -> Learner:
    return vision_learner(data, path=path, precision="float32", show_progress=False, **options)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(data: ImageData, tmp_path: Path) -> None:
    learner(data, tmp_path).fit_one_cycle(2, checkpoint_every=1)
    path = checkpoint_path(tmp_path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    assert read_tensors(previous(path))[1]["fit"]["step"] == 4
    learn = learner(data, tmp_path)
    with pytest.warns(UserWarning, match="the one before, is used"):
        learn.fit_one_cycle(2, checkpoint_every=1, resume=True)
    assert len(learn.recorder.losses) == 4


def test_a_finished_fit_is_not_done_again(data: ImageData, tmp_path: Path) -> None:
    first = learner(data, tmp_path)
    first.fit_one_cycle(1, checkpoint_every=1)
    again = learner(data, tmp_path)
    again.fit_one_cycle(1, resume=True)
    assert again.n_epochs == 1
    pairs = zip(first.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    again.fit_one_cycle(1, resume=True)
    assert again.n_epochs == 2
    assert checkpoint_path(tmp_path, 2).is_file()


def test_starting_anew_forgets_what_came_later(data: ImageData, tmp_path: Path) -> None:
    learn = learner(data, tmp_path)
    learn.fit(1, checkpoint_every=1)
    learn.fit(1, checkpoint_every=1)
    learner(data, tmp_path).fit(1, 1e-4, checkpoint_every=1)
    assert checkpoint_path(tmp_path, 1).is_file()
    assert not checkpoint_path(tmp_path, 2).exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"n_epochs": 3}, "epochs was 2 and is 3"),
        ({"lr": 1e-2}, r"rates was \[0.001, 0.001, 0.001\]"),
        ({"wd": 0.1}, "weight decay"),
        ({"mixup": 0.4}, "mix was None"),
        ({"accumulate": 40}, "accumulate was 1 and is 40"),
        ({"seed": 1}, "seeds"),
        ({"head": "fastai"}, "fastai head"),
        ({"unfreeze": True}, "what learns"),
    ],
)
def test_another_fit_is_refused(
    data: ImageData, tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    learner(data, tmp_path).fit(2, checkpoint_every=9)
    options = {name: changed.pop(name) for name in ("seed", "head") if name in changed}
    learn = learner(data, tmp_path, **options)
    if changed.pop("unfreeze", False):
        learn.unfreeze()
    with pytest.raises(ValueError, match=told):
        learn.fit(**{"n_epochs": 2, **changed}, resume=True)
    with pytest.raises(ValueError, match="start anew with resume=False"):
        learn.fit(**{"n_epochs": 2, **changed}, resume=True)  # The lock was given back


def test_another_machine_is_a_warning(data: ImageData, tmp_path: Path) -> None:
    learner(data, tmp_path).fit(2, checkpoint_every=9)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.warns(UserWarning, match=f"threads was {threads} and is {threads + 1}"):
            learner(data, tmp_path).fit(2, resume=True)
    finally:
        torch.set_num_threads(threads)


def test_two_trainings_in_one_folder(data: ImageData, tmp_path: Path) -> None:
    lock = f"""
import time
from pathlib import Path
from petnb.resume import locked
lock = locked(Path({str(tmp_path / "checkpoints")!r}))
print("locked", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", lock], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        try:
            with pytest.raises(RuntimeError, match="another training is writing"):
                learner(data, tmp_path).fit(1, checkpoint_every=1)
        finally:
            other.kill()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner(data, tmp_path).fit(1, checkpoint_every=1)  # A dead process holds no lock


def test_differences_are_short_and_name_both() -> None:
    assert differences({"a": list(range(99))}, {"a": 1})[0].startswith("a was [0, 1, 2, 3")
    assert len(differences({"a": list(range(99))}, {"a": 1})[0]) < 90
    assert differences({"a": 1}, {"a": 1, "b": 2}) == ["b was None and is 2"]
