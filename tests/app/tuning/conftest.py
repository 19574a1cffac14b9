"""Runs of a tiny model in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tuning_runs import WORDS, Told, jsonl, recipe, talk

from app.ledger.recipe import Run
from app.tuning.examine import examine


@pytest.fixture(scope="session")
def examined(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Callable[..., tuple[Run, Path]]:
    """Makes a run whose files have been checked."""

    def make(lines: int = 6, **asked: Any) -> tuple[Run, Path]:
        folder = tmp_path_factory.mktemp("run")
        training = jsonl(folder / "t.jsonl", *[talk("say it", WORDS[n % 6] + "." * (n // 6)) for n in range(lines)])
        validation = jsonl(folder / "v.jsonl", talk("say it", WORDS[0]), {"text": WORDS[1]})
        run = Run(recipe=recipe(tiny_folder, **asked), training_file=training, validation_file=validation, threads=1)
        told = Told()
        assert examine(run, folder, told), told.messages
        return run, folder

    return make
