"""Runs the locustfile in a process of its own, because Locust (gevent) patches the whole process it runs in."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class LocustRun:
    """A finished run of Locust: exit code, stdout and stderr, and the folder with its runs/."""

    code: int
    output: str
    folder: Path

    def lines(self, tool: str = "load") -> list[dict[str, Any]]:
        (path,) = self.folder.glob(f"runs/{tool}-*.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]

    @property
    def manifest(self) -> dict[str, Any]:
        return self.lines()[0]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.lines()[1:]

    @property
    def counted(self) -> list[dict[str, Any]]:
        """The rows outside the warm-up."""
        return [row for row in self.rows if not row["warm_up"]]


def run_locust(url: str, folder: Path, *args: str) -> LocustRun:
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(ROOT / "loadtest/load/locustfile.py"),
        "--headless",
        "--only-summary",
        "--host",
        url,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([*command, *args], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return LocustRun(result.returncode, result.stdout + result.stderr, folder)
