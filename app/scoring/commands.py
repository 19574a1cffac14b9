"""What the commands share: the choices of a model's precision, numbers with a least value, a window's length, which files may be written,
and how a command ends.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import get_args

from app.errors import LitmusError, SetupError
from app.scoring.sources import is_same_file
from app.settings import ModelSettings

CHOICES = {name: get_args(ModelSettings.model_fields[name].annotation) for name in ("quantize", "dtype")}
EXIT_FAILED = 3  # some texts have no score; 2: nothing could be done
EXIT_INTERRUPTED = 130  # the exit code that shells give for Ctrl-C
LEAST_TOKENS = 32  # of a context, and of a window
DEFAULT_WINDOW: int = ModelSettings.model_fields["text_window"].default


def at_least(least: int) -> Callable[[str], int]:
    """The `type` of an argument."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is too few; give {least} or more")
        return int(text)

    return number


def add_text_window(parser: argparse.ArgumentParser) -> None:
    words = f"tokens; longer texts are scored in windows; default: {DEFAULT_WINDOW:,}, or what the model holds"
    parser.add_argument("--text-window", type=at_least(LEAST_TOKENS), metavar="TOKENS", help=words)


def window_settings(asked: int | None) -> dict[str, int]:
    """The settings `context` and `text_window`; the latter is set where it was asked for (`say_if_cut`)."""
    return {"context": DEFAULT_WINDOW} if asked is None else {"context": asked, "text_window": asked}


def say_if_cut(settings: ModelSettings, window: int) -> None:
    """On standard error, where a `window` of fewer tokens is read than was asked for."""
    if "text_window" in settings.model_fields_set and window < settings.text_window:
        name, asked = settings.served_name, settings.text_window
        sys.stderr.write(f"--text-window {asked}: {name} holds {window} tokens, so longer texts are read in windows of {window}\n")


def check_written(outputs: Mapping[str, Path], inputs: Iterable[Path]) -> None:
    """Raises `SetupError` for an output, by its option, that is one of the files to read, or another output."""
    read, named = list(inputs), list(outputs.items())
    for number, (option, path) in enumerate(named):
        if any(is_same_file(path, each) for each in read):
            raise SetupError(f"{option}: {path} is one of the files to read; name another file to write")
        for before, other in named[:number]:
            if is_same_file(path, other):
                raise SetupError(f"{option}: {path} is the file of {before}, too; name another file to write")


def exit_code(run: Callable[[], tuple[str, int]], written: Path) -> int:
    """Prints the sentence that `run` returns with the exit code, or that of a `LitmusError`. After Ctrl-C it says how to go on, by the
    file that is `written` line by line.
    """
    try:
        sentence, code = run()
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        kept = f"the scores so far are in {written}; run the same command to resume" if written.exists() else "nothing was scored yet"
        sys.stderr.write(f"stopped; {kept}\n")
        return EXIT_INTERRUPTED
    sys.stdout.write(f"{sentence}\n")
    return code
