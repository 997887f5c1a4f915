"""What else takes time: importing, asking for help, and looking for a learning rate.

    PETNB_PHOTOS=... FASTAI_PYTHON=... python benchmarks/costs.py          # writes costs.md

Each import is a process of its own, the third of three, so that files are in memory already.
Without FASTAI_PYTHON (see speed.py) fastai's columns say that they were not measured.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import machine

HERE = Path(__file__).resolve().parent
TABLE = HERE / "costs.md"
NAMES = "from petnb import ImageData, vision_learner"


def seconds(*command: str) -> float:
    """Of a process, from start to end: the median of three, after one to warm up."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    found = []
    for _ in range(4):
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def imports() -> list[tuple[str, str, str]]:
    """What, petnb's seconds, fastai's seconds."""
    fastai = os.environ.get("FASTAI_PYTHON")
    rows = [("python alone", "pass", "pass"),
            ("the package", "import petnb", "import fastai"),
            ("all names", "from petnb import *", "from fastai.vision.all import *"),
            ("its first use", NAMES, "from fastai.vision.all import vision_learner")]  # fmt: skip
    found = []
    for name, mine, theirs in rows:
        other = f"{seconds(fastai, '-c', theirs):.2f}" if fastai else "not measured"
        found.append((name, f"{seconds(sys.executable, '-c', mine):.2f}", other))
    helped = seconds(sys.executable, "-m", "petnb.cli", "--help")
    return [*found, ("`petnb --help`", f"{helped:.2f}", "has no command")]


def finder() -> list[str]:
    """Seconds of an epoch of the head, of one of everything, and of the finder before each."""
    from petnb import ImageData, vision_learner

    data = ImageData.oxford_pets(
        os.environ["PETNB_PHOTOS"], valid="official", size=224, batch_size=64, seed=0
    )
    learn = vision_learner(data, seed=0, show_progress=False)
    lines = []
    for name, rate in (("head", 3e-3), ("everything", slice(1e-6, 1e-4))):
        learn.fit_one_cycle(1, rate)
        start = time.perf_counter()
        learn.fit_one_cycle(1, rate)
        epoch = time.perf_counter() - start
        start = time.perf_counter()
        found = learn.lr_find()
        spent = time.perf_counter() - start
        lines.append(f"| {name} | {epoch:.1f} | {spent:.1f} | {len(found.lrs)} |")
        learn.unfreeze()
    return lines


def main() -> None:
    """Measure and write."""
    lines = [f"# Other costs\n\n{(__doc__ or '').strip()}\n\n## Imports, in seconds\n",
             "| | petnb | fastai |", "|---|---|---|"]  # fmt: skip
    lines += [f"| {name} | {mine} | {theirs} |" for name, mine, theirs in imports()]
    lines += ["\n## The finder, in seconds, on 672 photographs\n",
              "| what learns | one epoch, with its check | the finder | its steps |",
              "|---|---|---|---|", *finder()]  # fmt: skip
    lines.append(f"\nMachine: {machine.processor()}. Versions: {machine.versions()}.")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
