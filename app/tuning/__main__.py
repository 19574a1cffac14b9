"""`python -m app.tuning examine|train FOLDER`: one run, as FOLDER/run.json has it. Started by a worker; tells on standard output.

Takes what the processor has left, as the run says: priority and threads. Ends with the process that started it. A stop signal
makes `train` save its state and end.
"""

import argparse
import fcntl
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from app.errors import LitmusError
from app.ledger.recipe import FINISHED, RUN_FILE, Run
from app.ledger.room import says_full_disk
from app.settings import prepare_environment
from app.tuning.channel import Channel, Tell

log = logging.getLogger(__name__)

LOOK_S = 0.5
LOCK, LOCK_S = "lock", 60.0  # how long the process is waited for that had the run before
BUSY = 75


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m app.tuning", description="one fine-tuning run, as a worker of `python -m jobs` starts it"
    )
    parser.add_argument("command", choices=["examine", "train"], help="examine: checks the files; train: begins, or goes on")
    parser.add_argument("folder", type=Path, help=f"the run's, with its {RUN_FILE}")
    args = parser.parse_args(argv)
    if not (args.folder / RUN_FILE).is_file():
        parser.error(f"{args.folder} is no folder of a run: it has no {RUN_FILE}")
    return args


def main(command: str, folder: Path) -> int:
    tell, parent = Channel(), os.getppid()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    signal.signal(signal.SIGINT, lambda number, frame: stopping.set())
    run = Run.read(folder)
    os.nice(max(0, run.nice - os.nice(0)))
    logging.basicConfig(level="WARNING")
    logging.getLogger("bitsandbytes").setLevel("ERROR")  # it misses a package that is not wanted
    warnings.simplefilter("ignore", FutureWarning)
    try:
        with says_full_disk(), (folder / LOCK).open("w") as file:
            if not _lock(file.fileno()):
                return BUSY
            (_examine if command == "examine" else _train)(run, folder, tell, stopping.is_set)
    except LitmusError as error:
        tell("failed", {"code": error.code, "message": error.message, "param": error.param})
    return 0


def _examine(run: Run, folder: Path, tell: Tell, stop: Callable[[], bool]) -> None:
    """Without torch, which transformers would import wherever it finds it, for some seconds."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    from app.tuning.dataset import Dataset
    from app.tuning.examine import TRAINING, examine
    from app.tuning.schedule import quantize_of, resolved, schedule_of

    recipe = run.recipe
    quantize = quantize_of(recipe)
    if not examine(run, folder, tell):
        return
    training = Dataset(folder, TRAINING)
    schedule = schedule_of(recipe.hyperparameters, len(training))
    used = resolved(recipe.hyperparameters, schedule, quantize)
    tell("examined", {"hyperparameters": used.model_dump(), "examples": len(training), "tokens": training.tokens, "steps": schedule.steps})


def _train(run: Run, folder: Path, tell: Tell, stop: Callable[[], bool]) -> None:
    if (folder / FINISHED).exists():
        tell("done", {"trained_tokens": int((folder / FINISHED).read_text())})
        return
    import torch
    import transformers

    from app.tuning.base import load_base, with_adapter
    from app.tuning.dataset import Dataset
    from app.tuning.examine import TRAINING, VALIDATION
    from app.tuning.room import GROUP_TOKENS, check_room
    from app.tuning.schedule import quantize_of, schedule_of
    from app.tuning.trainer import Data, Stopped, Trainer

    torch.set_num_threads(run.threads)
    transformers.utils.logging.disable_progress_bar()
    recipe, training = run.recipe, Dataset(folder, TRAINING)
    validation = Dataset(folder, VALIDATION) if run.validation_file else None
    longest = max(training.longest, 0 if validation is None else validation.longest)
    check_room(recipe, longest)
    if stop():
        return
    model = with_adapter(load_base(recipe, quantize_of(recipe)), recipe)
    data = Data(training, validation, max(GROUP_TOKENS, longest))
    try:
        Trainer(recipe, schedule_of(recipe.hyperparameters, len(training)), model, data, folder).run(tell, stop, told=run.told)
    except Stopped:
        tell("stopped", {})


def _lock(descriptor: int) -> bool:
    """One process at a time has a run: the one before may still be saving."""
    end = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_S)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)


if __name__ == "__main__":
    prepare_environment()
    args = parse_args(sys.argv[1:])
    sys.exit(main(args.command, args.folder))
