"""What a run needs to go on where it stopped, in one file that is whole or not there: adapter, optimizer, random numbers, what was told.

With it the rest of a run computes what it would have computed without the stop, bit for bit on the same machine with as many threads.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from app.errors import SetupError, first_line
from app.ledger.recipe import KEPT, STATE

CHECKPOINTS = "checkpoints"


@dataclass
class Progress:
    """`step` is the next one, from 0. `rows` are those of the file of results: step, losses and accuracies; `pending` that of the last
    step, while its validation has not been done.
    """

    step: int = 0
    trained_tokens: int = 0
    pending: dict[str, float] | None = None
    rows: list[dict[str, float]] = field(default_factory=list)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what is to become `path`, a file or a folder, once it is finished. Leaves nothing of it where that fails."""
    unfinished = path.with_name(f"{path.name}.part")
    try:
        yield unfinished
        if path.is_dir():
            _remove(path)
        unfinished.replace(path)
    except BaseException:
        _remove(unfinished)
        raise


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_state(folder: Path, model: Any, optimizer: torch.optim.Optimizer, progress: Progress, random: dict[str, Any]) -> None:
    """Raises `OSError`."""
    values = {
        "adapter": {name: parameter.detach().cpu() for name, parameter in trained(model).items()},
        "optimizer": optimizer.state_dict(),
        "random": random,
        "progress": asdict(progress),
    }
    with whole(folder / STATE) as unfinished, unfinished.open("wb") as file:
        torch.save(values, file)
        file.flush()
        os.fsync(file.fileno())


def load_state(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> Progress:
    """Put back what was saved; a new run has saved nothing. Raises `SetupError`."""
    file = folder / STATE
    if not file.exists():
        return Progress()
    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in trained(model).items():
                parameter.copy_(values["adapter"][name])
        optimizer.load_state_dict(values["optimizer"])
        set_random_state(values["random"])
        return Progress(**values["progress"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise SetupError(f"the saved state of this run cannot be read: {first_line(error)}") from error


def save_adapter(model: Any, folder: Path) -> None:
    """A folder as peft makes them, whole or not there. Raises `OSError`."""
    with whole(folder) as unfinished:
        _remove(unfinished)  # of a process that was killed
        model.save_pretrained(str(unfinished), save_embedding_layers=False)
        (unfinished / "README.md").unlink(missing_ok=True)  # peft's card, an empty form
        load_file(unfinished / "adapter_model.safetensors")  # what cannot be read is found now


def keep_checkpoint(model: Any, folder: Path, step: int) -> None:
    """The last few stay."""
    checkpoints = folder / CHECKPOINTS
    checkpoints.mkdir(exist_ok=True)
    save_adapter(model, checkpoints / f"step-{step}")
    for old in sorted(checkpoints.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-").removesuffix(".part")))[:-KEPT]:
        _remove(old)


def _remove(path: Path) -> None:
    """A file, or a folder of files."""
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
