"""What `petnb train` reaches on the Oxford-IIIT Pet photographs, over several seeds.

    python benchmarks/accuracy.py --data FOLDER --out benchmarks/accuracy.jsonl

Each seed's result is appended as soon as it is there; seeds that are in the file already are
skipped, so the command can be stopped and started again. It ends with a Markdown table.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
from rows import add_row, read_rows

from petnb.data import ImageData
from petnb.learner import vision_learner
from petnb.losses import wilson_interval


def one_seed(root: Path, seed: int) -> dict[str, Any]:
    "The stages of `petnb train` with its default settings, without the range test between them."
    data = ImageData.oxford_pets(root, valid="official", seed=seed)
    learn = vision_learner(data, seed=seed)
    result: dict[str, Any] = {"seed": seed, "n_valid": len(data.on_side("valid"))}
    started = time.perf_counter()
    learn.fit_one_cycle(4)
    result["frozen"] = learn.validate() | {"seconds": time.perf_counter() - started}
    learn.unfreeze()
    started = time.perf_counter()
    learn.fit_one_cycle(2, slice(1e-6, 1e-4))
    result["fine_tuned"] = learn.validate() | {"seconds": time.perf_counter() - started}
    return result


def table(results: list[dict[str, Any]]) -> str:
    "Means over seeds with their standard deviation, and the mean's Wilson interval."
    rows = []
    for stage in ("frozen", "fine_tuned"):
        scores = pd.DataFrame([result[stage] for result in results])
        mean, spread = scores.mean(), scores.std(ddof=1)
        low, high = wilson_interval(mean["accuracy"], results[0]["n_valid"])
        rows.append(
            {
                "stage": stage.replace("_", "-"),
                "accuracy": f"{mean['accuracy']:.1%} ± {spread['accuracy']:.1%}",
                "95 % interval": f"{low:.1%} to {high:.1%}",
                "macro accuracy": f"{mean['macro_accuracy']:.1%} ± {spread['macro_accuracy']:.1%}",
                "loss": f"{mean['valid_loss']:.3f}",
            }
        )
    header = "| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]) + "\n"
    return header + "\n".join("| " + " | ".join(row.values()) + " |" for row in rows)


def main() -> None:
    "Run the seeds that are missing, and print the table."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--out", type=Path, required=True, help="one JSON line a seed")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 (default: 5)")
    arguments = parser.parse_args()
    results = read_rows(arguments.out)
    for seed in sorted(set(range(arguments.seeds)) - {result["seed"] for result in results}):
        results.append(one_seed(arguments.data, seed))
        add_row(arguments.out, results[-1])
    print(f"\n{len(results)} seeds, {results[0]['n_valid']} photographs held out\n")
    print(table(results))


if __name__ == "__main__":
    main()
