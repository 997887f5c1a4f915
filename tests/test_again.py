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
from petnb.cli import main

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
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in its second stage, and resumed here; then done again, and compared."""
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


def test_no_run_to_go_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(tmp_path / "nowhere")]) == 1
    errors = capsys.readouterr().err
    assert "nowhere" in errors
    assert "Traceback" not in errors
