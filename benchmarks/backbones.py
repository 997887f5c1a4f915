"""What backbones cost: time, memory and size of eight of timm's, on one core.

    nice -n 19 python benchmarks/backbones.py          # measures what is missing, then the table
    nice -n 19 python benchmarks/backbones.py table    # only the table

Weights are random, which changes neither time nor memory nor size; of accuracy nothing is measured
here. Each measurement is a process of its own and one line of backbones.jsonl. It can be stopped
and started again: lines that are there are not measured again. Backbones take turns, and the
quickest of their rounds counts, since all else is disturbance. Times are those that the processor
spent on the process, so that other work on the machine disturbs them little.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from rows import add_row, read_rows

HERE = Path(__file__).resolve().parent
ROWS, TABLE = HERE / "backbones.jsonl", HERE / "backbones.md"
BACKBONES = (
    "mobilenetv4_conv_small",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "resnet18",
    "resnet34",
    "resnet50",
    "convnext_tiny",
    "vit_small_patch16_224",
)
SIZE, BATCH, N_CLASSES = 224, 16, 37
ROUNDS = 3
INTRODUCTION = """# What backbones cost

Written by `python benchmarks/backbones.py`. {machine}, of which one core was used; {versions}.
{size} pixels, {n_classes} classes, plain PyTorch in the layout channels_last, without the shortcuts
of chapters 02c and 02d. Weights are random: they change no cost, and of accuracy nothing is
measured here.

Times are milliseconds of processor time an image, in batches of {batch}; an *answer* is one image
alone. A *step* is forward, backward and AdamW, with everything unfrozen. *Memory* is the most that
the process took in its first step in float32, beyond Python and the libraries. Other work was on
the machine. {disturbance}

{table}
"""
COLUMNS = {
    "parameters": ("million parameters", 1e6, 1),
    "multiply_adds": ("billion multiply-adds", 1e9, 2),
    "file": ("file, MB", 1e6, 0),
    "memory": ("memory of a step, MB", 1e6, 0),
    "answer_float32": ("answer, ms", 1e-3, 0),
    "forward_float32": ("forward, ms", 1e-3, 0),
    "forward_bfloat16": ("forward, bfloat16", 1e-3, 0),
    "step_float32": ("step, ms", 1e-3, 0),
    "step_bfloat16": ("step, bfloat16", 1e-3, 0),
}


def memory() -> int:
    """Bytes that this process has had at once, at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def seconds(do: Callable[[], Any], repeats: int = 2) -> float:
    """Processor time of a call, the best of some, after one that warms up."""
    do()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        do()
        found.append(time.process_time() - start)
    return min(found)


def sizes(model: Any, images: Any) -> dict[str, float]:
    """Parameters, multiply-adds of one image, and bytes of a file."""
    import torch
    from safetensors.torch import save
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(images[:1])
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": counter.get_total_flops() / 2,
        "file": len(save({name: t.contiguous() for name, t in model.state_dict().items()})),
    }


def measure(backbone: str) -> dict[str, float]:
    """All costs of one backbone, in this process."""
    import torch

    from petnb.model import create_classifier

    torch.set_num_threads(1)
    before = memory()
    model = create_classifier(backbone, N_CLASSES, pretrained=False)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    targets = torch.arange(BATCH) % N_CLASSES

    def forward(n_images: int) -> None:
        with torch.inference_mode():
            model(images[:n_images])

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()

    model.train()
    step()
    found = {"memory": float(memory() - before), **sizes(model.eval(), images)}
    for name in ("float32", "bfloat16"):
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
            model.eval()
            found[f"answer_{name}"] = seconds(lambda: forward(1), repeats=5)
            found[f"forward_{name}"] = seconds(lambda: forward(BATCH)) / BATCH
            model.train()
            found[f"step_{name}"] = seconds(step) / BATCH
    return found


def measured() -> pd.DataFrame:
    """The lines that are there."""
    return pd.DataFrame(read_rows(ROWS))


def run() -> None:
    """Measure what is missing, each in a process of its own."""
    for number in range(ROUNDS):
        for backbone in BACKBONES:
            rows = measured()
            if len(rows) and ((rows["backbone"] == backbone) & (rows["round"] == number)).any():
                continue
            command = [sys.executable, __file__, "one", "--backbone", backbone]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            output = subprocess.run(
                command, check=True, capture_output=True, text=True, env=environment
            ).stdout
            row = {"backbone": backbone, "round": number, **json.loads(output.splitlines()[-1])}
            add_row(ROWS, row)
            print(row, flush=True)


def best() -> pd.DataFrame:
    """One row a backbone, the cheapest round of each cost, the quickest step first."""
    return measured().drop(columns="round").groupby("backbone").min().sort_values("step_float32")


def disturbance() -> str:
    """How many rounds there were, and how much they differ."""
    rows = measured()
    counts = rows["backbone"].value_counts()
    times = rows.groupby("backbone")[["forward_float32", "step_float32"]]
    again = (times.max() / times.min())[counts.reindex(times.groups) > 1].stack()
    if again.empty:
        return "Each backbone was measured in one round: differences of a quarter mean nothing."
    return (
        f"The best of at least {counts.min()} rounds counts; the slowest round took\n"
        f"{again.median():.2f} times as long as the best (median), {again.max():.2f} times at most."
    )


def write_table() -> None:
    """The page in Markdown."""
    from machine import processor, versions

    from petnb.model_card import markdown_table

    costs, table = best(), pd.DataFrame()
    for name, (title, unit, digits) in COLUMNS.items():
        table[title] = [f"{value / unit:.{digits}f}" for value in costs[name]]
    table.insert(0, "backbone", costs.index)
    used = {key: value for key, value in versions().items() if key != "threads"}
    page = INTRODUCTION.format(
        machine=processor(), versions=", ".join(f"{key} {value}" for key, value in used.items()),
        size=SIZE, batch=BATCH, n_classes=N_CLASSES, disturbance=disturbance(),
        table=markdown_table(table),
    )  # fmt: skip
    TABLE.write_text(page, encoding="utf-8")
    print(page)


def main() -> None:
    """Measure, or write the table, or measure one backbone and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", default="run", choices=["run", "table", "one"])
    parser.add_argument("--backbone", choices=BACKBONES, help="of `one`")
    arguments = parser.parse_args()
    if arguments.what == "one":
        print(json.dumps(measure(arguments.backbone)))
        return
    if arguments.what == "run":
        run()
    write_table()


if __name__ == "__main__":
    main()
