"""What temperature and threshold of a model file are worth on the Oxford-IIIT Pet photographs.

    python benchmarks/certainty.py --data FOLDER --out benchmarks/certainty.md

The head alone learns from the official split's 672 photographs, as `petnb train --recipe fast`
does it, over several seeds. Both numbers are chosen on the 221 held out and judged by parts
(chapter 07f).
"""

import argparse
from pathlib import Path

import pandas as pd
from machine import processor, versions

from petnb.certainty import WANTED, fit_certainty
from petnb.data import ImageData
from petnb.interpretation import interpret
from petnb.learner import vision_learner
from petnb.model_card import markdown_table
from petnb.recipes import follow

INTRODUCTION = """# What temperature and threshold are worth

Written by `python benchmarks/certainty.py`. {machine}; {versions}.
Packaged EfficientNet-Lite0, 224 pixels, the head alone, {n} photographs held out; wished for are
answers of which {wanted:.0%} are right. Calibration error, loss and the right ones among the
answered are judged on fifths of the photographs by what the other four choose.

"""


def one_seed(root: Path, seed: int) -> tuple[dict[str, str], int]:
    "A row of the table, and how many photographs judged."
    data = ImageData.oxford_pets(root, valid="official", seed=seed)
    learn = follow(vision_learner(data, seed=seed, show_progress=False), "fast")
    certainty = fit_certainty(interp := interpret(learn))
    assert certainty.judged is not None  # There are more than enough photographs
    before, after = certainty.judged.to_dict("records")
    print(f"seed {seed}: {certainty}", flush=True)
    row = {"seed": str(seed), "temperature": f"{certainty.temperature:.2f}"}
    for name in ("loss", "calibration error"):
        row[name] = f"{before[name]:.3f} to {after[name]:.3f}"
    row["right of all"] = f"{before['right']:.1%}"
    row["answered"] = f"{after['answered']:.0%}"
    row["right of these"] = f"{after['right']:.1%}"
    return row, len(interp.targets)


def main() -> None:
    "Measure, and write the page."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--out", type=Path, help="file to write")
    arguments = parser.parse_args()
    found = [one_seed(arguments.data, seed) for seed in range(arguments.seeds)]
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    told = INTRODUCTION.format(machine=processor(), versions=used, n=found[0][1], wanted=WANTED)
    page = told + markdown_table(pd.DataFrame([row for row, _ in found])) + "\n"
    print(page)
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
