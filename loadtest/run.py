"""A run on disk: runs/<tool>-<timestamp>.jsonl, a manifest line first (what was measured, where and when), then a line per request."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from loadtest.record import Record


@dataclass(slots=True)
class Run:
    """Each line is flushed, so that a run cut short loses none."""

    path: Path
    file: TextIO

    def add(self, record: Record) -> None:
        self._write(record.line())

    def note(self, facts: dict[str, Any]) -> None:
        """A line that is no request."""
        self._write(json.dumps(facts))

    def _write(self, line: str) -> None:
        self.file.write(line + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def create_run(folder: Path, tool: str, facts: dict[str, Any]) -> Run:
    """`facts` is what the tool knows: url, model card, users, how long. Never overwrites an earlier run."""
    now = datetime.now(UTC)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{tool}-{now:%Y%m%dT%H%M%S%f}Z.jsonl"
    run = Run(path, path.open("x", encoding="utf-8"))
    run.note({"kind": "manifest", "tool": tool, "time": now.isoformat(timespec="seconds"), **facts, **machine()})
    return run


def machine() -> dict[str, Any]:
    """The machine of the load generator; the server's own may be another."""
    return {
        "machine": {
            "system": platform.platform(),
            "processor": _first("/proc/cpuinfo", "model name") or platform.processor(),
            "cpus": os.cpu_count(),
            "memory": _first("/proc/meminfo", "MemTotal"),
        },
        "python": platform.python_version(),
        "client": {name: version(name) for name in ("gevent", "httpx", "locust")},
        "commit": commit(),
    }


def commit() -> str | None:
    """Of this code, with a + where files differ from it; None outside a clone."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return head.stdout.strip() + "+" * bool(changed.stdout) if head.returncode == 0 else None


def _first(path: str, name: str) -> str | None:
    """Value of the first `name : value` line of a /proc file; None on systems that have no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def installed(name: str) -> str | None:
    """The version of a package, for a manifest."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def tell(text: str) -> None:
    """Progress, to whoever runs the tool."""
    sys.stderr.write(f"{text}\n")
