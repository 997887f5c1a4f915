"""A training that is killed at any moment goes on to the same bits.

Six kills here; `PETNB_KILLS=50 python -m pytest tests/test_resume.py` makes fifty.
"""

import json
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pytest
import torch
from resume_child import contents

from petnb.data import ImageData
from petnb.learner import Learner, vision_learner
from petnb.resume import checkpoint_path, differences, forget_all
from petnb.safe_files import previous, read_tensors

CHILD = Path(__file__).with_name("resume_child.py")
Run = Callable[..., int]
KINDS = ("views", "everything", "average", "two fits")
N_STEPS = {"views": 12, "everything": 4, "average": 12, "two fits": 16}
FIXED = [
    ("views", ["step", 9], 0),
    ("everything", ["write", 3], 0),
    ("average", ["validation", 2], 2),
    ("two fits", ["step", 11], 0),
    ("average", ["write", 4], 0),
    ("two fits", ["finder", 7], 0),
]


def kills() -> list[tuple[str, list[Any], int]]:
    """(kind, moment, workers of the process that goes on): six, or more at random places."""
    dice = random.Random(7)
    found = list(FIXED)
    while len(found) < int(os.environ.get("PETNB_KILLS", len(FIXED))):
        kind = dice.choice(KINDS)
        moments = ["step", "write", "validation", *(["finder"] if kind == "two fits" else [])]
        moment = dice.choice(moments)
        highest = {"step": N_STEPS[kind], "write": N_STEPS[kind] // 2, "validation": 2}
        highest["finder"] = 19
        found.append((kind, [moment, dice.randint(1, highest[moment])], dice.choice([0, 2])))
    return found


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Trains in a process of its own, and answers with its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHILD.parent.parent)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(CHILD)], env=environment, **pipes) as parent:
        orders, codes = cast(IO[str], parent.stdin), cast(IO[str], parent.stdout)

        def one(folder: Path, kind: str, kill: list[Any], workers: int = 0) -> int:
            order = {"folder": str(folder), "kind": kind, "kill": kill, "workers": workers}
            print(json.dumps(order), file=orders, flush=True)
            return int(codes.readline())

        yield one
        orders.close()


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trainings that nobody interrupts, made when they are asked for."""

    class Made(dict[str, Path]):
        def __missing__(self, kind: str) -> Path:
            self[kind] = tmp_path_factory.mktemp(kind.replace(" ", "_"))
            assert run(self[kind], kind, []) == 0
            return self[kind]

    return Made()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork and no kill -9 here")
@pytest.mark.parametrize(("kind", "kill", "workers"), kills())
def test_killed_and_resumed(
    run: Run, whole: dict[str, Path], tmp_path: Path, kind: str, kill: list[Any], workers: int
) -> None:
    assert run(tmp_path, kind, kill) == -signal.SIGKILL
    assert not (tmp_path / "end.json").exists()
    if kill[0] == "finder":
        before = tmp_path.with_suffix(".before.json").read_text(encoding="utf-8")
        assert {"head.safetensors", "fit-1.safetensors"} < json.loads(before).keys()
        assert contents(tmp_path) == json.loads(before)
    assert run(tmp_path, kind, [], workers) == 0
    one, _ = read_tensors(whole[kind] / "end.safetensors")
    two, _ = read_tensors(tmp_path / "end.safetensors")
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert (tmp_path / "end.json").read_text() == (whole[kind] / "end.json").read_text()
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    fits = [f"fit-{number}{what}.safetensors" for number in (1, 2) for what in ("", ".previous")]
    assert left <= {".lock", *fits}


# -- In one process ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData.drawn_pets(images_per_breed=5, size=64, batch_size=20, workers=0)


def learner(data: ImageData, path: Path, **options: Any) -> Learner:
    options.setdefault("precision", "float32")
    return vision_learner(data, path=path, show_progress=False, **options)


@pytest.fixture(scope="module")
def finished(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a learner that had two epochs, with checkpoints."""
    path = tmp_path_factory.mktemp("finished")
    learner(data, path).fit(2, checkpoint_every=9)
    return path


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
        ({"precision": "bfloat16"}, "precision was float32 and is bfloat16"),
    ],
)
def test_another_fit_is_refused(
    data: ImageData, finished: Path, changed: dict[str, Any], told: str
) -> None:
    options = {name: changed[name] for name in ("seed", "head", "precision") if name in changed}
    learn = learner(data, finished, **options)
    if changed.get("unfreeze"):
        learn.unfreeze()
    other = {name: changed[name] for name in changed.keys() - options.keys() - {"unfreeze"}}
    before = contents(finished)
    with pytest.raises(ValueError, match=told):
        learn.fit(**{"n_epochs": 2, **other}, resume=True)
    with pytest.raises(ValueError, match="start anew with resume=False"):
        learn.fit(**{"n_epochs": 2, **other}, resume=True)  # The lock was given back
    assert contents(finished) == before


def test_a_checkpoint_carries_all_that_decides_the_bits(data: ImageData, finished: Path) -> None:
    """Said in words, so that a difference can be; and no file beside it is needed."""
    _, header = read_tensors(checkpoint_path(finished, 1))
    assert header["conditions"]["classes"] == data.vocab
    told = {"architecture", "augmentation", "groups", "images", "seeds", "what learns"}
    assert told | {"precision"} < header["conditions"].keys()
    versions = {"torch", "torchvision", "timm", "numpy", "pillow"}
    assert versions | {"threads", "processor", "processes"} < header["machine"].keys()
    assert header["machine"]["threads"] == torch.get_num_threads()
    assert "fixed" in header  # The precisions that were decided
    rows = [state["rows"] for state in header["callbacks"] if "rows" in state]
    assert [len(history) for history in rows] == [2]


def test_another_machine_is_a_warning(data: ImageData, finished: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.warns(UserWarning, match=f"threads was {threads} and is {threads + 1}"):
            learner(data, finished).fit(2, resume=True)
    finally:
        torch.set_num_threads(threads)


def test_forgotten_checkpoints_leave_what_is_not_theirs(data: ImageData, tmp_path: Path) -> None:
    learn, place = learner(data, tmp_path), tmp_path / "checkpoints"
    forget_all(tmp_path)  # There is nothing, and nothing is made
    assert not place.exists()
    learn.fit(1, checkpoint_every=1)
    learn.save("end")
    (place / ".fit-1.safetensors.4711.part").write_bytes(b"half")
    (place / "mine.txt").touch()
    forget_all(tmp_path)
    assert [path.name for path in place.iterdir()] == ["mine.txt"]
    assert (tmp_path / "end.safetensors").is_file()


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
