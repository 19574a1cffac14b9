"""When a draft model reads a request, with a tiny model and made-up durations."""

from pathlib import Path

import pytest

from app.engine.draftmodel import DraftModel
from app.engine.drafts import Drafter
from app.engine.proposer import READY_TOKENS, Proposer
from app.engine.request import Generate, SamplingParams
from app.engine.slot import Slot
from app.engine.test_drafts import by_row, costing, slot_of
from app.models.loading import create_engine
from app.settings import ModelSettings

PROMPT = tuple(range(3, 93))


@pytest.fixture
def model(tiny_folder: Path) -> DraftModel:
    return DraftModel(create_engine(ModelSettings(path=str(tiny_folder), device="cpu", slots=2))[0].performer, 300)


def drafting(model: DraftModel, draw_s: float) -> tuple[Drafter, Proposer]:
    """Steps take 5 ms with one row, and a forward of the draft model `draw_s` for each ten tokens."""
    drafter = Drafter(costing(by_row), {}, lambda _: frozenset())
    drafter.add_model(model)
    model.costs.record = lambda *_: None  # type: ignore[method-assign]
    model.costs.step_s = lambda rows: draw_s * max(1.0, rows / 10)  # type: ignore[method-assign]
    assert drafter.proposer is not None
    return drafter, drafter.proposer


def step(drafter: Drafter, slot: Slot) -> int:
    """A decode step of one slot, whose answer repeats nothing; returns how many tokens were drafted."""
    draft = drafter.draft([slot]).get(slot)
    assert slot.request is not None
    token = 299 - slot.generated
    drafter.record(slot.request.id, [token])
    slot.tokens.append(token)
    slot.length += 1
    return 0 if draft is None else len(draft.tokens)


def request(**fields: object) -> Slot:
    return slot_of(Generate("a", PROMPT, 30, SamplingParams(temperature=0.0), **fields))  # type: ignore[arg-type]


def test_a_prompt_is_read_once_drafts_would_have_saved_as_much_time(model: DraftModel) -> None:
    drafter, proposer = drafting(model, 0.0005)
    slot = request()
    drafted = [step(drafter, slot) for _ in range(20)]
    assert 3 < drafted.index(max(drafted)) < 15  # to read takes 4.5 ms, and a step with drafts would save about 1 ms
    assert proposer._readers["a"].unread <= READY_TOKENS


def test_nothing_is_read_where_draws_save_nothing(model: DraftModel) -> None:
    drafter, proposer = drafting(model, 0.004)
    slot = request()
    assert sum(step(drafter, slot) for _ in range(25)) == 0
    assert proposer._readers["a"].lane.tokens == []


def test_what_is_never_kept_is_soon_not_drawn(model: DraftModel) -> None:
    drafter, proposer = drafting(model, 0.0001)
    slot = request()
    drafted = [step(drafter, slot) for _ in range(29)]
    assert max(drafted) > 0 and drafted[-5:] == [0] * 5
    assert proposer._acceptance.chance < 0.4


def test_adapters_and_texts_beyond_its_context_are_left_out(model: DraftModel) -> None:
    drafter, proposer = drafting(model, 0.0001)
    assert drafter.draft([request(adapter="tuned")]) == {} and not proposer._readers
    long = slot_of(Generate("b", tuple(range(3, 203)), 30))
    assert drafter.draft([long]) == {} and not proposer._readers


def test_a_text_that_has_grown_beyond_its_context_leaves_its_lane_to_others(model: DraftModel) -> None:
    drafter, proposer = drafting(model, 0.0001)
    slots = [slot_of(Generate(name, PROMPT, 90)) for name in "ab"]  # as many as there are lanes
    drafter.draft(slots)
    later = slot_of(Generate("c", PROMPT, 30))
    assert model.lanes.of(later) is None and set(proposer._readers) == {"a", "b"}
    slots[0].tokens += range(3, 3 + model.context - len(PROMPT))
    drafter.draft(slots)
    assert set(proposer._readers) == {"b"} and model.lanes.of(later) is not None
