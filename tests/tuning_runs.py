"""Runs of a tiny model in this process."""

import json
from pathlib import Path
from typing import Any

from app.ledger.recipe import Recipe
from app.schemas.tuning import Hyperparameters

WORDS = ("the fox ran home", "a crow sat still", "the old king slept", "rain fell at night", "a boat went out", "she sang a song")


class Told:
    """What a run tells, by kind."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, kind: str, values: dict[str, Any]) -> None:
        self.messages.append((kind, json.loads(json.dumps(values))))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [values for each, values in self.messages if each == kind]


def recipe(folder: Path, **asked: Any) -> Recipe:
    values = {"quantize": "none", "dtype": "float32", "device": "cpu", "context": 128, "seed": 3, "name": "ft:tiny::x"}
    return Recipe(model="tiny", path=str(folder), hyperparameters=Hyperparameters(**asked), **values)  # type: ignore[arg-type]


def jsonl(path: Path, *lines: Any) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def talk(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}
