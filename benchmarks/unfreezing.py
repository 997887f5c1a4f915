"""Unfreezing on real photographs: batch-norm statistics kept or drifting, one rate or a slice.

    PETNB_PHOTOS=... python benchmarks/unfreezing.py benchmarks/unfreezing.jsonl

A 2 x 2 over five seeds on the official split (672 photographs to learn from, 221 held out) at
160 pixels: the head alone for four epochs by 1cycle, then everything for two, as in the article
that petnb follows. Each run is appended to the file as soon as it is done, and not repeated.
"""

import os
import sys
from pathlib import Path
from typing import Any

from machine import processor, versions
from rows import add_row, read_rows

from petnb.data import ImageData
from petnb.learner import vision_learner

SIZE, HEAD_EPOCHS, BODY_EPOCHS = 160, 4, 2
RATES: dict[str, Any] = {"one rate 1e-4": 1e-4, "slice(1e-6, 1e-4)": slice(1e-6, 1e-4)}


def run(statistics: str, rate: str, seed: int) -> dict[str, Any]:
    """One learner, head first, then everything."""
    data = ImageData.oxford_pets(os.environ["PETNB_PHOTOS"], valid="official", size=SIZE, seed=seed)
    learn = vision_learner(data, train_bn=statistics == "drift", seed=seed, show_progress=False)
    learn.fit_one_cycle(HEAD_EPOCHS)
    head = learn.validate()
    learn.unfreeze()
    learn.fit_one_cycle(BODY_EPOCHS, RATES[rate])
    return {"statistics": statistics, "rate": rate, "seed": seed, "head": head,
            "unfrozen": learn.validate(),
            "machine": {**versions(), "processor": processor()}}  # fmt: skip


def main(path: Path) -> None:
    """Do what the file lacks."""
    done = read_rows(path)
    for seed in range(5):
        for statistics in ("stay", "drift"):
            for rate in RATES:
                key = {"statistics": statistics, "rate": rate, "seed": seed}
                if any(key.items() <= row.items() for row in done):
                    continue
                row = run(**key)
                add_row(path, row)
                print(key, row["head"], row["unfrozen"], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
