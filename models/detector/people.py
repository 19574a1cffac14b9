"""Recorded scores and statistics of people's prose of more kinds than `detect/` has, by the default model. No text is kept.

`python -m models.detector.pool` wrote them; `models/detector/prose.py` says where the texts come from.
"""

import gzip
import json
from pathlib import Path

from app.scoring.sample import ScoreRow
from models.detector.prose import POOL

PATH = Path(__file__).with_name("people.jsonl.gz")


def read_people(path: Path = PATH) -> list[ScoreRow]:
    """Whole texts and their beginnings, of the kinds that no machine border is less strict than."""
    return [row for row in _read(path) if row.domain in POOL]


def read_whole(path: Path = PATH) -> list[ScoreRow]:
    """Whole texts of all kinds."""
    return [row for row in _read(path) if not row.beginning]


def _read(path: Path) -> list[ScoreRow]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [ScoreRow(False, **json.loads(line)) for line in file]
