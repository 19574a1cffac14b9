"""Runs a module of Litmus in a fresh process and returns the JSON lines that it prints. Does not know what the lines mean.

Also: the manifest facts and the Markdown table that the studies share.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from loadtest.run import installed_version

PACKAGES = ("torch", "transformers", "bitsandbytes")


class ProgramFailed(Exception):
    """The program ended with an exit code other than 0; the message ends with the last line of its stderr."""


def run_module(*args: str) -> list[dict[str, Any]]:
    """Runs `python -m` with these arguments and waits for it. Raises `ProgramFailed`."""
    ended = subprocess.run([sys.executable, "-m", *args], capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode:
        raise ProgramFailed(exit_message(args, ended.returncode, ended.stderr))
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


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
