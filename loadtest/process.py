"""A program of Litmus in a fresh process: the JSON lines it prints, and the most memory it had. Knows nothing of what they say."""

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

from loadtest.run import installed

PACKAGES = ("torch", "transformers", "bitsandbytes")


class Failed(Exception):
    """The program did not do what it was asked."""


@dataclass(frozen=True, slots=True)
class Told:
    """`peak_bytes`: the largest resident set it ever had, libraries included, as the kernel kept it."""

    lines: list[dict[str, Any]]
    peak_bytes: int


def call(*words: str) -> Told:
    """`python -m` with these words. Raises `Failed`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([sys.executable, "-m", *words], stdout=out, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        shown, said = out.read().decode(), errors.read().decode(errors="replace")
    if process.returncode:
        raise Failed(ended(words, process.returncode, said))
    return Told([json.loads(line) for line in shown.splitlines() if line.startswith("{")], used.ru_maxrss * 1024)


def ended(words: Sequence[str], code: int, said: str) -> str:
    """The sentence for a program that did not do its work: `said` is what it wrote to stderr."""
    lines = said.strip().splitlines()
    return f"{shlex.join(words)} ended with code {code}: {lines[-1] if lines else 'no word'}"


def facts(module: str, given: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """What a manifest says of how it was made."""
    return {
        "command": shlex.join(["python", "-m", module, *words]),
        "quick": given.quick,
        "versions": {name: installed(name) for name in PACKAGES},
        "options": {name: value if isinstance(value, int | float | list) else str(value) for name, value in vars(given).items()},
    }


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
