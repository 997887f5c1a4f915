"""A run of the command that was killed goes on, and a repetition says whether it is the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import petnb
from petnb.again import NOTES, note, unequal_tensors, what_differs
from petnb.cli import main
from petnb.data import ImageData
from petnb.learner import Learner, vision_learner
from petnb.resume import digest_of_items

SMALL = ["train", "--size", "32", "--epochs", "1", "--fine-tune-epochs", "1"]
OFTEN = ["--checkpoint-every", "2"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(petnb.__file__).parents[1])}
    script = "import sys; from petnb.cli import main; raise SystemExit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", script, *words], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_killed_then_resumed_then_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its second stage, and resumed here; then done again, and compared."""
    monkeypatch.chdir(tmp_path)  # The commit is noted, if one works under git
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "fit-2.safetensors"
    with start(tmp_path, *SMALL, *OFTEN, "--out", "run") as process:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert checkpoint.exists()
    assert not (run / "model.safetensors").exists()
    assert main(["train", "--resume", str(run), *OFTEN]) == 0
    told = capsys.readouterr().out
    assert "goes on after step" in told
    assert "not as in" not in told
    assert (run / NOTES).is_file()
    assert not (run / "checkpoints").exists()  # They have done their duty
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["train", "--resume", str(run)]) == 0
    assert f"{run} is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    again = tmp_path / "again"
    assert main(["train", "--repeat", str(run), "--out", str(again)]) == 0
    assert f"To the bit the model of {run}" in capsys.readouterr().out
    assert unequal_tensors(run / "model.safetensors", again / "model.safetensors") == []


def test_a_run_tells_what_it_was_made_with(tmp_path: Path) -> None:
    """All that a repetition needs: settings, versions, the images' hash, seeds, the commit."""
    learn = trained(0)
    noted = json.loads(note(learn, tmp_path).read_text(encoding="utf-8"))
    known = {"petnb", "python", "torch", "timm", "threads", "processes", "processor", "git commit"}
    assert known | {"images", "seeds", "precisions"} < noted.keys()
    assert noted["images"] == digest_of_items(learn.data)
    assert what_differs(tmp_path, learn) == []


def trained(workers: int) -> Learner:
    """A few steps of everything."""
    data = ImageData.drawn_pets(12, 128, size=32, batch_size=20, workers=workers)
    learn = vision_learner(data, "resnet10t", pretrained=False, show_progress=False,
                           precision="float32", head="fastai")  # fmt: skip
    learn.fit_one_cycle(2, mixup=0.4)
    return learn


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_same_bits_whatever_ran_before_and_whoever_loads() -> None:
    """Other dice, another training and two workers in between change nothing."""
    once = trained(0)
    once.lr_find(n_steps=12)
    random.random(), np.random.rand(3), torch.rand(7)
    again = trained(2)
    pairs = zip(once.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert once.recorder.losses == again.recorder.losses


def test_no_run_to_go_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(tmp_path / "nowhere")]) == 1
    errors = capsys.readouterr().err
    assert "nowhere" in errors
    assert "Traceback" not in errors
