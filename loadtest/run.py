"""Writes a run to runs/<tool>-<timestamp>.jsonl: first a manifest line (what was measured, where and when), then one line per request."""

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
    """An open run file. Each line is flushed at once, so an interrupted run keeps all lines written before."""

    path: Path
    file: TextIO

    def add(self, record: Record) -> None:
        self._write(record.to_json())

    def note(self, facts: dict[str, Any]) -> None:
        """Writes a line that is not a request: a manifest, a sample, a row of a study."""
        self._write(json.dumps(facts))

    def _write(self, line: str) -> None:
        self.file.write(line + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def create_run(folder: Path, tool: str, facts: dict[str, Any]) -> Run:
    """Creates the run file and writes its manifest: `facts` of the tool (url, model card, options), the time and the machine.

    Raises FileExistsError rather than overwrite an earlier run.
    """
    now = datetime.now(UTC)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{tool}-{now:%Y%m%dT%H%M%S%f}Z.jsonl"
    run = Run(path, path.open("x", encoding="utf-8"))
    run.note({"kind": "manifest", "tool": tool, "time": now.isoformat(timespec="seconds"), **facts, **machine_facts()})
    return run


def machine_facts() -> dict[str, Any]:
    """Describes the machine that runs the load generator; the server may run on another."""
    return {
        "machine": {
            "system": platform.platform(),
            "processor": _proc_value("/proc/cpuinfo", "model name") or platform.processor(),
            "cpus": os.cpu_count(),
            "memory": _proc_value("/proc/meminfo", "MemTotal"),
        },
        "python": platform.python_version(),
        "client": {name: version(name) for name in ("gevent", "httpx", "locust")},
        "commit": git_commit(),
    }


def git_commit() -> str | None:
    """Hash of the checked-out commit, with a `+` if tracked files differ from it; None outside a clone or without git."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return head.stdout.strip() + "+" * bool(changed.stdout) if head.returncode == 0 else None


def _proc_value(path: str, name: str) -> str | None:
    """Value of the first `name : value` line of a /proc file; None on systems that have no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def installed_version(name: str) -> str | None:
    """Version of an installed package, for a manifest; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def report_progress(text: str) -> None:
    """Writes a line to stderr for the person who runs the tool."""
    sys.stderr.write(f"{text}\n")
