"""Build the source distribution and the wheel, look into both, and use the wheel.

    python tools/package.py FOLDER    # leaves both in FOLDER

The wheel is built from the source distribution, that from a copy of the tree, so nothing that
earlier builds left behind is in them. The environment's own setuptools builds; nothing is fetched.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_BEHIND = (".git", ".*_cache", ".hypothesis", ".venv", "__pycache__", ".ipynb_checkpoints",
               "*.egg-info", "build", "dist", "_docs", "_proc", "runs", "models", "shared",
               ".coverage")  # fmt: skip
NEVER = {".jpg", ".jpeg", ".safetensors", ".pth"}  # photographs and weights
MADE = {"PKG-INFO", "setup.cfg"}  # by setuptools, in a source distribution
USE = """
from importlib import import_module, metadata
from pathlib import Path
import petnb
assert Path(petnb.__file__).is_relative_to(Path("wheel").resolve()), petnb.__file__
assert metadata.version("petnb") == petnb.__version__
for path in Path(petnb.__file__).parent.glob("[!_]*.py"):
    import_module(f"petnb.{path.stem}")
from petnb import *
data = ImageData.drawn_pets(images_per_breed=4, pixels=64, size=64, root="pets")
learn = vision_learner(data)
learn.fit_one_cycle(1)
file = learn.export("pets.safetensors")
print(Predictor.load(file).predict(data.items["path"][0]))
"""


def run(*command: str | Path, cwd: Path = ROOT, path: Path | None = None) -> str:
    """Return what a command of this interpreter's environment says; end with it if it fails."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed: python {' '.join(map(str, command))[:200]}")
    return done.stdout


def build(folder: Path) -> tuple[Path, Path, set[str]]:
    """Return the source distribution, the wheel, and the names of the files they come from."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "petnb"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        sources = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
        run("-m", "build", "--no-isolation", "--outdir", folder, tree)
    (archive,), (wheel,) = folder.glob("petnb-*.tar.gz"), folder.glob("petnb-*.whl")
    print(run("-m", "twine", "check", "--strict", archive, wheel).strip())
    return archive, wheel, sources


def difference(what: Path, there: set[str], wanted: set[str]) -> None:
    """End with the names that are missing or too many in an archive."""
    if there != wanted:
        lines = [f"  {name} is missing" for name in sorted(wanted - there)]
        lines += [f"  {name} does not belong there" for name in sorted(there - wanted)]
        sys.exit("\n".join([f"{what.name}:", *lines]))
    print(f"{what.name}: {len(there)} files, {what.stat().st_size / 1e6:.1f} MB")


def inspect(archive: Path, wheel: Path, sources: set[str]) -> None:
    """Compare what the archives hold with what they should."""
    if found := sorted(name for name in sources if Path(name).suffix.lower() in NEVER):
        sys.exit(f"photographs or weights in the tree: {', '.join(found)}")
    with tarfile.open(archive) as opened:
        names = {member.name.partition("/")[2] for member in opened if member.isfile()}
    names = {name for name in names if ".egg-info/" not in name} - MADE
    difference(archive, names, sources)
    with zipfile.ZipFile(wheel) as opened_wheel:
        names = {name for name in opened_wheel.namelist() if ".dist-info/" not in name}
    difference(wheel, names, {name for name in sources if name.startswith("petnb/")})


def use(wheel: Path) -> None:
    """Install the wheel apart, beside nothing of this tree, and train, export and predict."""
    with tempfile.TemporaryDirectory() as name:
        target = Path(name) / "wheel"
        run("-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel)
        print(run("-c", USE, cwd=Path(name), path=target).splitlines()[-1])


def main(folder: str) -> None:
    """Build, inspect and use."""
    out = Path(folder).resolve()
    out.mkdir(parents=True, exist_ok=True)
    archive, wheel, sources = build(out)
    inspect(archive, wheel, sources)
    use(wheel)


if __name__ == "__main__":
    main(*sys.argv[1:])
