"""Several processes learn as one: real processes, on this machine, on tiny drawings."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from petnb.cli import main
from petnb.data import ImageData
from petnb.distributed import Processes, buckets, moving_statistics, take_device
from petnb.learner import read_header, vision_learner
from petnb.model import batch_norms
from petnb.transforms import EpochBatches

HERE = Path(__file__).resolve().parent
Found = list[dict[str, Any]]
MEETS = pytest.mark.skipif(os.name == "nt", reason="PyTorch for Windows lacks libuv, to meet by")
LONG = pytest.mark.skipif("PETNB_LONG" not in os.environ, reason="PETNB_LONG is not set")
FITS = ["fresh views", "kept features", "late body", "balanced", "balanced, kept", "batch norm"]


def started(n_processes: int, folder: Path, drawings: Path) -> Found:
    """What each of several processes wrote down."""
    folder.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(n_processes),
                "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # fmt: skip
    script = [str(HERE / "together.py"), str(folder), str(drawings)]
    command = [sys.executable, *(torchrun if n_processes > 1 else []), *script]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("rank-*.json"))]
    assert len(texts) == n_processes
    return [json.loads(text) for text in texts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    return started(1, folder / "1", folder / "drawings")[0]


@pytest.fixture(
    scope="module",
    params=[pytest.param(2, marks=MEETS), pytest.param(3, marks=[MEETS, LONG])],
)
def several(request: pytest.FixtureRequest, folder: Path, alone: dict[str, Any]) -> Found:
    return started(request.param, folder / str(request.param), folder / "drawings")


# -- The same steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITS[:-1])
def test_losses_are_those_of_one_process(fit: str, alone: dict[str, Any], several: Found) -> None:
    one, other = alone[fit], several[0][fit]
    assert other["images"] == one["images"]
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-4)
    np.testing.assert_allclose(other["norms"], one["norms"], rtol=1e-3)
    two, rows = pd.DataFrame(other["rows"]), pd.DataFrame(one["rows"])
    pd.testing.assert_frame_equal(two, rows, rtol=1e-4)


@pytest.mark.parametrize("fit", FITS)
def test_all_processes_end_with_the_same_weights_and_history(fit: str, several: Found) -> None:
    first, *others = [found[fit] for found in several]
    for other in others:
        for what in ("weights", "losses", "rows"):
            assert other[what] == first[what]


def test_a_head_with_batch_norm_learns_differently(alone: dict[str, Any], several: Found) -> None:
    """Each process normalises with its own part of the batch: this is said, not hidden."""
    one, other = (found["batch norm"]["losses"] for found in (alone, several[0]))
    assert not np.allclose(one, other, rtol=1e-3)
    assert np.isfinite(other).all()


@pytest.mark.parametrize("train_bn", [False, True])
def test_on_cuda_batch_norms_that_learn_see_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, train_bn: bool
) -> None:
    """As `prepare` makes them for cards; no card is needed to see it."""
    data = ImageData.drawn_pets(5, 64, batch_size=11, workers=0)
    learn = vision_learner(data, "resnet10t", pretrained=False, train_bn=train_bn, head="fastai")
    n_head, n_body = (len([*batch_norms(part)]) for part in (learn.model.head, learn.model.body))
    learn.device = torch.device("cuda")
    monkeypatch.setattr("petnb.distributed.gathered", lambda _, rows, counts: rows)
    monkeypatch.setattr("petnb.distributed.sum_in_place", lambda *_: None)
    Processes(0, 2).prepare(learn)
    kinds = [type(norm) for norm in batch_norms(learn.model)]
    assert kinds.count(torch.nn.SyncBatchNorm) == n_head + (n_body if train_bn else 0)
    assert len(kinds) == n_head + n_body
    assert moving_statistics(learn.model.train()) == []  # Nothing is left to be averaged


def test_gradients_are_weighted_by_images(several: Found) -> None:
    """torch's wrapper agrees where both have equally many images, and only there."""
    if len(several) != 2:
        pytest.skip("compared in two processes")
    even, uneven = several[0]["gradient"]["16"], several[0]["gradient"]["17"]
    assert even["ours"] < 1e-6
    assert even["torch's"] < 1e-6
    assert uneven["ours"] < 1e-6
    assert uneven["torch's"] > 1e-3


# -- Nothing lost, nothing twice -----------------------------------------------------------------


def test_each_image_is_decoded_once_an_epoch(alone: dict[str, Any], several: Found) -> None:
    for what in ("asked", "valid"):
        asked = [tuple(key) for found in several for key in found["fresh views"][what]]
        expected = [tuple(key) for key in alone["fresh views"][what]]
        assert Counter(asked) == Counter(expected)
        assert all(found["fresh views"][what] for found in several)


def test_balanced_epochs_are_shared_out_as_well(alone: dict[str, Any], several: Found) -> None:
    asked = [tuple(key) for found in several for key in found["balanced"]["asked"]]
    assert Counter(asked) == Counter(tuple(key) for key in alone["balanced"]["asked"])
    assert max(Counter(asked).values()) == 1  # An image may come twice, but in another view
    assert len({image for _, image in asked}) < len(asked) / 2


def test_kept_features_are_computed_and_held_in_parts(
    alone: dict[str, Any], several: Found
) -> None:
    asked = [tuple(key) for found in several for key in found["kept features"]["asked"]]
    expected = [tuple(key) for key in alone["kept features"]["asked"]]
    assert Counter(asked) == Counter(expected)
    assert max(Counter(expected).values()) == 1  # Three epochs, and each image once
    held = [found["kept features"]["bytes"] for found in several]
    whole = alone["kept features"]["bytes"]
    assert sum(held) == pytest.approx(whole, rel=0.01)
    assert max(held) < 1.5 * whole / len(several)


def test_predictions_come_in_the_order_of_the_items(alone: dict[str, Any], several: Found) -> None:
    one = alone["interpretation"]
    for found in several:
        other = found["interpretation"]
        for what in ("targets", "paths", "accuracy"):
            assert other[what] == one[what]
        np.testing.assert_allclose(other["probs"], one["probs"], rtol=1e-4, atol=1e-6)


def test_the_finder_sees_the_same_curve_and_restores(alone: dict[str, Any], several: Found) -> None:
    n = 11  # Beyond, the rate is over 0.05 and rounding errors grow with each step
    for found in several:
        assert found["finder"]["restored"]
        assert found["finder"]["losses"] == several[0]["finder"]["losses"]
        losses, expected = (one["finder"]["losses"][:n] for one in (found, alone))
        np.testing.assert_allclose(losses, expected, rtol=1e-3)


@pytest.mark.parametrize("n_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("shuffle", [True, False])
def test_parts_are_a_partition(n_processes: int, shuffle: bool) -> None:
    for n_images in (1, 2, 7, 64, 101):
        for batch_size in (1, 3, 10, 200):
            batches = EpochBatches(n_images, batch_size, shuffle, 42)
            parts = [batches.parts(3, (rank, n_processes)) for rank in range(n_processes)]
            for number, whole in enumerate(batches.whole(3)):
                pieces = [part[number] for part in parts]
                assert np.concatenate(pieces).tolist() == whole.tolist()
                sizes = [len(piece) for piece in pieces]
                assert max(sizes) - min(sizes) <= 1


def test_loaders_skip_a_part_without_images() -> None:
    batches = EpochBatches(3, 2, False, 42)
    batches.share = (2, 3)
    assert list(batches) == []
    batches.share = (0, 3)
    assert list(batches) == [[(0, 0)], [(0, 2)]]


# -- Who does what -------------------------------------------------------------------------------


def test_one_process_writes(folder: Path, several: Found) -> None:
    place = folder / str(len(several))
    history = pd.read_csv(place / "history.csv")
    assert len(history) == 2  # One row an epoch, not one an epoch and a process
    kept = {path.name for path in (place / "models").iterdir()}
    assert kept == {"best.safetensors", "best.previous.safetensors"}
    assert read_header(place / "models" / "best.safetensors")["format"] >= 1


def test_other_data_is_noticed_by_all(several: Found) -> None:
    if len(several) != 2:
        pytest.skip("tried in two processes")
    for found in several:
        assert "processes [1] have other images" in found["other data"]


def test_too_small_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a batch of 3 images .* for 4 processes: .* is 3"):
        Processes(0, 4).check(EpochBatches(9, 3, True, 42))
    Processes(0, 4).check(EpochBatches(9, 5, True, 42))
    Processes().check(EpochBatches(0, 3, True, 42))


def test_buckets_keep_kinds_apart_and_lose_nothing() -> None:
    kinds = [torch.float32, torch.float32, torch.float64, torch.float32]
    tensors = [torch.zeros(100, dtype=kind) for kind in kinds]
    groups = list(buckets(tensors, 10_000))
    assert [len(group) for group in groups] == [2, 1, 1]
    assert [id(t) for group in groups for t in group] == [id(t) for t in tensors]


# -- When one is lost ----------------------------------------------------------------------------


def test_a_fit_that_was_broken_off_goes_on_to_the_same_bits(several: Found) -> None:
    """With features that were kept, of which the new learner has none."""
    if len(several) != 2:
        pytest.skip("broken off in two processes")
    for found in several:
        assert found["resumed fit"] == found["long fit"]


@MEETS
def test_the_command_says_what_is_wrong_in_several_processes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(["train", "--data", str(tmp_path / "nowhere"), "--processes", "2"])
    seen = capfd.readouterr()
    assert code == 1
    assert "nowhere" in seen.err
    assert re.search("process [01] of 2 ended with code 1, so the run is over", seen.err)


# Precision is given: measured, it depends on what else the machine does, and the losses on it.
SMALL = ["--size", "32", "--epochs", "1", "--fine-tune-epochs", "1", "--workers", "0",
         "--precision", "float32", "--checkpoint-every", "2"]  # fmt: skip
TWO = ["--processes", "2"]


def losses(run: Path) -> pd.DataFrame:
    """A run's history but for the seconds."""
    return pd.read_csv(run / "history.csv").drop(columns="seconds")


def kill_one_after(sign: Path) -> None:
    """End one of this process's children, without a word, once a file is there."""
    while not sign.exists():
        time.sleep(0.01)
    child = next(one for one in multiprocessing.active_children() if one.pid is not None)
    os.kill(child.pid or 0, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_a_run_in_several_processes_is_resumed_and_repeated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed in its second stage, and gone on with in two; done again in two, to the bit."""
    run, again = tmp_path / "run", tmp_path / "again"
    sign = run / "checkpoints" / "fit-2.safetensors"
    ctrl_c = signal.getsignal(signal.SIGINT)
    threading.Thread(target=kill_one_after, args=[sign], daemon=True).start()
    assert main(["train", *SMALL, *TWO, "--out", str(run)]) == 1
    assert re.search("process [01] of 2 ended by SIGKILL, so the run is ov", capfd.readouterr().err)
    assert signal.getsignal(signal.SIGINT) is ctrl_c  # The engine had taken it
    assert sign.is_file()
    assert not (run / "result.json").exists()
    assert main(["train", "--resume", str(run), *TWO]) == 0
    assert "not as in" not in capfd.readouterr().out
    assert not (run / "checkpoints").exists()
    assert main(["--json", "train", "--repeat", str(run), "--out", str(again), *TWO]) == 0
    told = capfd.readouterr()
    assert "not as in" not in told.err
    assert json.loads(told.out)["unequal_tensors"] == []
    pd.testing.assert_frame_equal(losses(again), losses(run))


@MEETS
@LONG
def test_the_command_trains_in_several_processes(tmp_path: Path) -> None:
    """The same run folder, written once, with the same history but for the seconds."""
    for n_processes in ("1", "2"):
        out = tmp_path / n_processes
        assert main(["train", *SMALL, "--out", str(out), "--processes", n_processes]) == 0
        assert (out / "model.safetensors").is_file()
    pd.testing.assert_frame_equal(losses(tmp_path / "2"), losses(tmp_path / "1"), rtol=1e-3)


def test_a_process_takes_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    threads = torch.get_num_threads()
    try:
        take_device(0, 10**6)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
