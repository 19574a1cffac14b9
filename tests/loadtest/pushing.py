"""Runs the locustfile. Locust makes its whole process cooperative, so it runs in one of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class Pushed:
    """What a run of Locust left behind."""

    code: int
    said: str
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
        return [row for row in self.rows if not row["warm_up"]]


def push(url: str, folder: Path, *words: str) -> Pushed:
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
    done = subprocess.run([*command, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return Pushed(done.returncode, done.stdout + done.stderr, folder)
