"""A run of the command that was killed goes on, and a repetition says whether it is the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import petnb
from petnb.again import NOTES, unequal_tensors

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


def finish(folder: Path, *words: str) -> str:
    """What the command prints; it must end well."""
    told, errors = (process := start(folder, *words)).communicate(timeout=300)
    assert process.returncode == 0, errors
    return told


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_killed_then_resumed_then_repeated(tmp_path: Path) -> None:
    """Killed in its second stage, and resumed; then done again, and compared."""
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "fit-2.safetensors"
    with start(tmp_path, *SMALL, *OFTEN, "--out", "run") as process:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert checkpoint.exists()
    assert not (run / "model.safetensors").exists()
    told = finish(tmp_path, "train", "--resume", "run", *OFTEN)
    assert "goes on after step" in told
    assert "not as in" not in told
    told = finish(tmp_path, "train", "--repeat", "run", "--out", "again")
    assert "To the bit the model of run" in told
    assert unequal_tensors(run / "model.safetensors", tmp_path / "again/model.safetensors") == []
    assert (run / NOTES).is_file()


def test_no_run_to_go_on_with(tmp_path: Path) -> None:
    _, errors = (process := start(tmp_path, "train", "--resume", "nowhere")).communicate()
    assert process.returncode not in (0, None)
    assert "nowhere" in errors
    assert "Traceback" not in errors
