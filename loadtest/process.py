"""Runs a module of Litmus in a fresh process: returns the JSON lines that it prints and its peak memory. Does not know what the lines mean.

Also: the manifest facts and the Markdown table that the studies share.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.run import installed_version

PACKAGES = ("torch", "transformers", "bitsandbytes")


class ProgramFailed(Exception):
    """The program ended with an exit code other than 0; the message ends with the last line of its stderr."""


@dataclass(frozen=True, slots=True)
class ProgramOutput:
    """`peak_bytes`: the peak resident memory of the process, libraries included, as the kernel counts it (`ru_maxrss`)."""

    lines: list[dict[str, Any]]
    peak_bytes: int


def run_module(*args: str) -> ProgramOutput:
    """Runs `python -m` with these arguments and waits for it. Raises `ProgramFailed`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([sys.executable, "-m", *args], stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        stdout, stderr = out.read().decode(), errors.read().decode(errors="replace")
    if process.returncode:
        raise ProgramFailed(exit_message(args, process.returncode, stderr))
    # ru_maxrss is in KiB on Linux
    return ProgramOutput([json.loads(line) for line in stdout.splitlines() if line.startswith("{")], usage.ru_maxrss * 1024)


def exit_message(args: Sequence[str], code: int, stderr: str) -> str:
    """The error message for a program that ended with `code`: its arguments and the last line of its stderr."""
    lines = stderr.strip().splitlines()
    return f"{shlex.join(args)} ended with code {code}: {lines[-1] if lines else 'it wrote nothing to stderr'}"


def manifest_facts(module: str, args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """The part of a manifest that says how to repeat the run: command line, options and package versions."""
    return {
        "command": shlex.join(["python", "-m", module, *argv]),
        "quick": args.quick,
        "versions": {name: installed_version(name) for name in PACKAGES},
        "options": {name: value if isinstance(value, int | float | list) else str(value) for name, value in vars(args).items()},
    }


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
