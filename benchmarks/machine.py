"""What every measured number depends on."""

import platform
import sys
from pathlib import Path

import timm
import torch


def versions() -> dict[str, str]:
    """Of the libraries, and the number of threads."""
    return {"torch": torch.__version__, "timm": timm.__version__, "python": sys.version.split()[0],
            "threads": str(torch.get_num_threads())}  # fmt: skip


def processor() -> str:
    """Number of cores and name."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    return f"{len(names)} x {names[0]}, {platform.system()}"
