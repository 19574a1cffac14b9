"""What the commands that score texts share: the choices of a model's precision, and how a command ends."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from app.errors import LitmusError
from app.settings import ModelSettings

CHOICES = {name: get_args(ModelSettings.model_fields[name].annotation) for name in ("quantize", "dtype")}
EXIT_INTERRUPTED = 130  # the exit code that shells give for Ctrl-C


def exit_code(run: Callable[[], str], written: Path) -> int:
    """Prints the sentence that `run` returns, or that of a `LitmusError`. After Ctrl-C it says how to go on, by the file that is `written`
    line by line.
    """
    try:
        sys.stdout.write(f"{run()}\n")
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        kept = f"the scores so far are in {written}; run the same command to resume" if written.exists() else "nothing was scored yet"
        sys.stderr.write(f"stopped; {kept}\n")
        return EXIT_INTERRUPTED
    return 0
