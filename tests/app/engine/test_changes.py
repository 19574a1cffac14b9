"""Biases, bans and penalties as the device applies them, against the sampler's."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine import changes
from app.engine.changes import ROW_FORMAT, RowChanges, answer_changes, change_logits, write_changes
from app.engine.request import SamplingParams
from app.engine.sampler import SamplerRow, changes_logits, process_logits

VOCAB = 40
TOKENS = st.integers(0, VOCAB - 1)
ENDS = frozenset({3, 4, VOCAB + 5})
PENALTY = st.sampled_from([0.0, 0.0, 0.7, -0.3, 2.0])
PARAMS = st.builds(
    SamplingParams,
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.8]),
    presence_penalty=PENALTY,
    frequency_penalty=PENALTY,
    logit_bias=st.dictionaries(st.integers(-1, VOCAB), st.floats(-100, 100, width=16), max_size=4).map(
        lambda biases: tuple(biases.items())
    ),
    bad_words=st.lists(TOKENS.map(lambda token: (token,)), max_size=3).map(tuple),
    min_tokens=st.integers(0, 12),
)
ROW = st.tuples(PARAMS, st.lists(TOKENS, min_size=1, max_size=9), st.lists(TOKENS, min_size=1, max_size=9))


def apply(logits: torch.Tensor, rows: list[RowChanges | None], newest: list[int]) -> torch.Tensor:
    buffer = torch.zeros(len(rows) + 1, ROW_FORMAT.itemsize, dtype=torch.uint8)
    buffer.random_(generator=torch.Generator().manual_seed(0))  # what an earlier step has left
    write_changes(rows, buffer)
    return change_logits(logits, buffer[: len(rows)], torch.tensor(newest))


@given(st.lists(ROW, min_size=1, max_size=4), st.data())
@settings(max_examples=60)
def test_they_are_the_samplers(rows: list[tuple[SamplingParams, list[int], list[int]]], data: st.DataObject) -> None:
    logits = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(len(rows))).bfloat16()
    numbers, newest = list[RowChanges | None](), list[int]()
    for params, prompt, answer in rows:
        asked = answer_changes(params, len(prompt), ENDS, VOCAB)
        assert asked is not None
        is_known = data.draw(st.booleans())  # whether the host knows the last token already
        for known in sorted(data.draw(st.sets(st.integers(0, len(answer) - 1)))):  # earlier steps
            asked.read([*prompt, *answer[:known]], known)
        numbers.append(asked.read([*prompt, *answer[: len(answer) - (not is_known)]], len(answer)))
        newest.append(-1 if is_known else answer[-1])
    expected = process_logits(logits, [SamplerRow(params, [*prompt, *answer], len(prompt), ENDS) for params, prompt, answer in rows])
    assert torch.equal(apply(logits, numbers, newest), expected.float())


def test_every_parameter_is_one_that_the_device_draws_by_or_changes_logits_by() -> None:
    changing = {
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "logit_bias": ((1, 1.0),),
        "bad_words": ((1,),),
        "min_tokens": 2,
        "allowed_tokens": (1,),
    }
    drawing = {"temperature", "top_k", "top_p", "min_p", "seed"}
    assert {field.name for field in fields(SamplingParams)} == drawing | changing.keys()
    assert not changes_logits(SamplingParams(), 0)
    assert all(changes_logits(SamplingParams(**{name: value}), 1) for name, value in changing.items())


def test_a_row_without_changes_stays_as_it_is_beside_others() -> None:
    logits = torch.randn(3, VOCAB)
    asked = answer_changes(SamplingParams(frequency_penalty=1.0), 1, ENDS, VOCAB)
    assert asked is not None
    found = apply(logits, [None, asked.read([1, 2, 2], 2), None], [5, -1, -1])
    assert torch.equal(found[[0, 2]], logits[[0, 2]]) and found[1, 2] == logits[1, 2] - 2


@pytest.mark.parametrize("fields", [{"bad_words": ((1, 2),)}, {"bad_words": ((),)}, {"logit_bias": ((1, 1.0), (2, 1.0), (5, 1.0))}])
def test_what_the_device_does_not_do(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "BIASED_TOKENS", 2)
    assert answer_changes(SamplingParams(**fields), 1, ENDS, VOCAB) is None


def test_more_different_tokens_than_a_row_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "HISTORY_TOKENS", 4)
    asked = answer_changes(SamplingParams(repetition_penalty=1.1), 3, ENDS, VOCAB)
    assert asked is not None
    assert asked.read([1, 2, 1, 3, 4, 4], 3) is not None
    assert asked.read([1, 2, 1, 3, 4, 4, 5], 4) is None and asked.read([1, 2, 1, 3, 4, 4, 5, 1], 5) is None
    of_answer = answer_changes(SamplingParams(presence_penalty=1.0), 5, ENDS, VOCAB)
    assert of_answer is not None and of_answer.read([1, 2, 3, 4, 5, 6], 1) is not None  # prompts have none of this penalty
