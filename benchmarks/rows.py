"""What a benchmark has measured: a file with a JSON object a line, which only grows."""

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that a file holds; none if it is not there."""
    return (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Keep one more."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
