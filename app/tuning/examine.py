"""Checks the files of a run line by line, and writes their sequences into its folder.

One wrong line, and the run fails before it begins.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from app.ledger.recipe import Run
from app.models.context import context_of, wanted_context
from app.models.source import source_of
from app.tokenizer import Tokenizer
from app.tuning.channel import Tell
from app.tuning.dataset import Writer
from app.tuning.encoding import Encoder, Sequence
from app.tuning.examples import WrongLine, parse

TRAINING, VALIDATION = "training", "validation"
MAX_LISTED = 100  # wrong lines that are told of one by one
MAX_WRONG = 10_000  # after which the rest of a file is not read
MAX_LINE_BYTES = 8_000_000
GONE = "the content of the {} file is gone from the server's disk; upload it again"
BOM = b"\xef\xbb\xbf"


def examine(run: Run, folder: Path, tell: Tell) -> bool:
    """Whether the files are right."""
    largest = context_of("model.path", source_of(run.recipe.path))
    context = wanted_context(run.recipe.context, largest)
    encoder = Encoder(Tokenizer(run.recipe.path, run.recipe.chat_template), context, "model.context" if context < largest else None)
    files = [(TRAINING, run.training_file), *([] if run.validation_file is None else [(VALIDATION, run.validation_file)])]
    for name, path in files:
        check = Check(name, encoder, tell)
        try:
            with open(path, "rb") as file:
                check.read(file)
        except FileNotFoundError:
            tell("failed", {"code": "input_unavailable", "message": GONE.format(name), "param": f"{name}_file"})
            return False
        if problem := check.problem():
            tell("failed", {"code": f"invalid_{name}_file", "message": problem, "param": f"{name}_file"})
            return False
        check.writer.save(folder, name)
    return True


class Check:
    """Reads one file. `writer` has its sequences."""

    def __init__(self, name: str, encoder: Encoder, tell: Tell) -> None:
        self.name, self.writer = name, Writer()
        self._encoder, self._tell = encoder, tell
        self.lines = self.wrong = 0
        self._first = ""

    def read(self, file: BinaryIO) -> None:
        for number, line in lines(file):
            self.lines += 1
            try:
                for sequence in self._sequences(line):
                    self.writer.add(sequence)
            except WrongLine as wrong:
                self._note(number, wrong.message)
            if self.wrong >= MAX_WRONG:
                return

    def _sequences(self, line: bytes | None) -> list[Sequence]:
        """Raises `WrongLine`, also for what nobody foresaw: a template may fail in any way, and no line is to end the process."""
        if line is None:
            raise WrongLine(f"the line is longer than {MAX_LINE_BYTES} bytes")
        try:
            return self._encoder.sequences(parse(line))
        except WrongLine:
            raise
        except Exception as error:
            raise WrongLine(f"it cannot be tokenized ({type(error).__name__})") from error

    def _note(self, number: int, message: str) -> None:
        self.wrong += 1
        self._first = self._first or f"line {number}: {message}"
        if self.wrong <= MAX_LISTED:
            self._tell("event", {"level": "error", "message": f"{self.name} file, line {number}: {message}", "line": number})
        elif self.wrong == MAX_LISTED + 1:
            self._tell("event", {"level": "error", "message": f"{self.name} file: further lines are wrong, too; these are not listed"})

    def problem(self) -> str | None:
        if not self.lines:
            return f"the {self.name} file has no lines; write one example a line"
        if not self.wrong:
            return None
        count = (
            f"{self.wrong} lines or more are" if self.wrong >= MAX_WRONG else "1 line is" if self.wrong == 1 else f"{self.wrong} lines are"
        )
        return f"{count} wrong in the {self.name} file; {self._first}"


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Every line that is not empty with its number, from 1; None for one that is too long, of which no more than that is held."""
    number = 0
    while piece := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        is_whole = piece.endswith(b"\n") or len(piece) <= MAX_LINE_BYTES
        while not is_whole:
            rest = file.readline(MAX_LINE_BYTES)
            is_whole = not rest or rest.endswith(b"\n")
            piece = b""
        if not piece:
            yield number, None
        elif text := piece.removeprefix(BOM if number == 1 else b"").strip():
            yield number, text
