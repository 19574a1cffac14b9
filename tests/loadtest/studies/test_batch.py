"""The study of chats beside a batch: what it sends, and how it sums up. The server is tested elsewhere."""

import json

import pytest
from pydantic import BaseModel

from app.schemas import CompletionRequest, ScoreRequest
from loadtest.studies.batch import COLUMNS, COMPLETIONS, QUICK, SCORES, batch_lines, table


@pytest.mark.parametrize(("endpoint", "schema"), [(COMPLETIONS, CompletionRequest), (SCORES, ScoreRequest)])
def test_lines_are_those_of_a_batch_and_no_two_are_alike(endpoint: str, schema: type[BaseModel]) -> None:
    lines = [json.loads(line) for line in batch_lines(QUICK, 0, endpoint)]
    assert len({line["custom_id"] for line in lines}) == len({json.dumps(line["body"]) for line in lines}) == QUICK.lines
    assert {(line["method"], line["url"]) for line in lines} == {("POST", endpoint)}
    schema.model_validate(lines[0]["body"])
    assert batch_lines(QUICK, 0, endpoint)[0] != batch_lines(QUICK, 1, endpoint)[0]


def row(kind: str, turn: int, tpot_ms: list[float | None], lines_per_s: float = 0.0) -> dict[str, object]:
    return {"kind": kind, "turn": turn, "tpot_ms": tpot_ms, "ttft_ms": [50.0] * len(tpot_ms), "lines_per_s": lines_per_s}


def test_each_batch_is_compared_with_the_chats_just_before_it() -> None:
    alone = [row("alone, before a", 0, [10.0, None]), row("alone, before b", 0, [20.0])]
    beside = [row("beside a", 0, [15.0], 2.0), row("beside b", 0, [25.0], 3.0), row("beside a", 1, [15.0], 4.0)]
    cells = [line.split("|") for line in table([alone[0], beside[0], alone[1], beside[1], beside[2]]).splitlines()[2:]]
    assert [(line[1].strip(), line[2].strip(), line[5].strip(), line[8].strip()) for line in cells] == [
        ("alone, before a", "2", "", ""),
        ("beside a", "2", "1.50", "3.0"),
        ("alone, before b", "1", "", ""),
        ("beside b", "1", "1.25", "3.0"),
    ]
    assert len(cells[0]) == len(COLUMNS) + 2
