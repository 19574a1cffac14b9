"""How many tokens are drafted, from made-up chances and durations."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from drafting import free_rows

from app.engine.acceptance import Acceptance, FirstGuess
from app.engine.budget import StepBudget
from app.engine.costs import RowCosts
from app.engine.counts import MAX_ROWS, DrawCosts, Draws, draft_counts
from app.engine.drafts import MAX_TOKENS, Drafter, Source
from app.engine.events import Delta
from app.engine.request import BeamSearchParams, Generate, SamplingParams
from app.engine.slot import Slot
from app.models.loading import create_engine
from app.settings import ModelSettings

SURE, LIKELY, RARE = [1.0] * 6, [0.9, 0.8, 0.7, 0.6], [0.2, 0.05]


def costing(step_s: Callable[[int], float], most_rows: int = 200) -> StepBudget:
    budget = StepBudget(512, 1.9)
    for rows in (1, 2, 4, 8, 16, 32, 64, most_rows):
        budget.record(rows, 0, 0, step_s(rows))
    return budget


def free(rows: int) -> float:
    return 0.01


def by_row(rows: int) -> float:
    """As on a CPU: the first row costs as much as five more."""
    return 0.004 + 0.001 * rows


def proportional(rows: int) -> float:
    return 0.001 * rows


@pytest.mark.parametrize(
    ("step_s", "slots", "chances", "expected"),
    [
        (free, 1, [LIKELY], [4]),
        (free, 1, [RARE], [2]),  # whatever is not run is lost
        (by_row, 1, [LIKELY], [4]),
        (by_row, 1, [RARE], [0]),  # a fifth of a token for a fifth of a step more
        (by_row, 1, [[0.5, 0.25, 0.12, 0.06]], [1]),
        (by_row, 1, [[]], [0]),
        (by_row, 2, [LIKELY, RARE], [4, 0]),
        (by_row, 4, [SURE, SURE, [], []], [4, 3, 0, 0]),  # as many as make the step 1.9 times as long
        (by_row, 32, [[0.85, 0.7]] * 32, [0] * 32),  # 32 rows share the first one's cost: only what is nearly sure pays
        (by_row, 32, [SURE, *[LIKELY] * 31], [6, *[0] * 31]),
        (proportional, 1, [LIKELY], [0]),
        (free, 8, [SURE] * 40, [2] * 24 + [1] * 16),  # at most MAX_ROWS in all
    ],
)
def test_as_many_are_drafted_as_make_the_tokens_per_second_most(
    step_s: Callable[[int], float], slots: int, chances: Sequence[Sequence[float]], expected: list[int]
) -> None:
    assert MAX_ROWS == 64
    assert draft_counts(chances, slots, costing(step_s)).tokens == expected


@pytest.mark.parametrize(
    ("step_s", "draw_s", "slots", "chances", "draws", "expected"),
    [
        (free, 0.001, 1, [LIKELY], [Draws(0)], [4]),
        (free, 0.009, 1, [LIKELY], [Draws(0)], [0]),  # a draw takes nearly as long as a step
        (free, 0.004, 1, [LIKELY], [Draws(0)], [3]),
        (free, 0.004, 1, [[1.0, *LIKELY]], [Draws(1)], [2]),  # the first is forced, so that a step without draws gives two
        (free, 0.009, 1, [[1.0, *LIKELY]], [Draws(1)], [1]),
        (free, 0.004, 1, [LIKELY], [None], [4]),  # found in the text: no draws
        (free, 0.004, 4, [LIKELY] * 4, [Draws(0)] * 4, [1] * 4),  # one forward draws for all; with a second the step would be too long
        (by_row, 0.001, 32, [LIKELY] * 32, [Draws(0)] * 32, [0] * 32),
        (free, 0.002, 1, [LIKELY], [Draws(0, 200)], [0]),  # too much is to be read before the first draw
    ],
)
def test_what_draws_cost_counts(
    step_s: Callable[[int], float],
    draw_s: float,
    slots: int,
    chances: Sequence[Sequence[float]],
    draws: Sequence[Draws | None],
    expected: list[int],
) -> None:
    costs = RowCosts()
    for rows in (1, 64, 128, 256):
        costs.record(rows, draw_s * max(1.0, rows / 10))
    assert draft_counts(chances, slots, costing(step_s), DrawCosts(costs, draws)).tokens == expected


def test_what_is_saved_is_measured_against_steps_that_give_as_many_tokens() -> None:
    counts = draft_counts([SURE], 2, costing(by_row))
    assert counts.tokens == [5] and counts.saved_s == pytest.approx(7 / 2 * by_row(2) - by_row(7))
    assert draft_counts([RARE], 2, costing(by_row)).saved_s == 0.0


def test_nothing_is_drafted_before_a_step_was_measured() -> None:
    assert draft_counts([SURE], 1, StepBudget(512, 1.9)).tokens == [0]


def slot_of(job: Generate, answer: Sequence[int] = ()) -> Slot:
    slot = Slot(0)
    slot.admit(job, 1, lambda ids: "x" * len(ids))
    slot.tokens += answer
    slot.length = len(slot.tokens) - 1
    return slot


def drafter_of(step_s: Callable[[int], float] = free, end_token: int = 99) -> Drafter:
    return Drafter(costing(step_s), {}, lambda _: frozenset({end_token}))


REPEATING = (1, 2, 3, 4, 5, 6, 7, 8) * 3


def test_a_draft_is_what_the_text_repeats() -> None:
    slot = slot_of(Generate("a", REPEATING, 90), [1, 2])
    (draft,) = drafter_of().draft([slot]).values()
    assert draft.tokens == ((3, 4, 5, 6, 7, 8, 1, 2) * 4)[:MAX_TOKENS] and draft.choices == ()


def test_a_draft_leaves_room_for_the_token_behind_it() -> None:
    (draft,) = drafter_of().draft([slot_of(Generate("a", REPEATING, 6), [1, 2])]).values()
    assert draft.tokens == (3, 4, 5)
    assert drafter_of().draft([slot_of(Generate("a", REPEATING, 3), [1, 2])]) == {}


def test_a_draft_ends_before_an_end_token() -> None:
    (draft,) = drafter_of(end_token=5).draft([slot_of(Generate("a", REPEATING, 50), [1, 2])]).values()
    assert draft.tokens == (3, 4)


def test_searches_and_what_repeats_nothing_are_not_drafted_and_neither_is_anything_when_drafts_are_off() -> None:
    search = slot_of(Generate("a", REPEATING, 50, search=BeamSearchParams(1)), [1, 2])
    search.group = (search,)
    drafter, repeating = drafter_of(), slot_of(Generate("b", REPEATING, 50))
    assert drafter.draft([search]) == {} and drafter.draft([slot_of(Generate("c", (1, 2, 3, 4), 50))]) == {}
    assert drafter.draft([repeating]) != {}
    drafter.is_on = False
    assert drafter.draft([repeating]) == {}


def test_a_slot_counts_its_drafts(tiny_folder: Path) -> None:
    engine, _ = create_engine(ModelSettings(path=str(tiny_folder), device="cpu", slots=1))
    engine.submit(Generate("a", REPEATING, 60, SamplingParams(temperature=0.0, logit_bias=((7, 50.0),)), ignore_eos=True))
    drafted = accepted = 0
    while not engine.idle:
        with free_rows():
            events = engine.step()
        for delta in (event for event in events if isinstance(event, Delta)):
            drafted, accepted = drafted + delta.drafted, accepted + delta.accepted
            (slot,) = engine.scheduler.slots
            assert (slot.drafted, slot.accepted) == (drafted, accepted)
            assert slot.report().drafted_tokens == (drafted if delta.finish is None else 0)
    assert drafted >= accepted > 20


def test_drafts_follow_what_was_kept() -> None:
    """The text repeats what came before, and each time another token follows: soon nothing is drafted."""
    drafter, slot = drafter_of(by_row), slot_of(Generate("a", REPEATING[:16], 5000))
    drafted = []
    for token in range(10_000, 10_100):
        draft = drafter.draft([slot]).get(slot)
        drafted.append(0 if draft is None else len(draft.tokens))
        drafter.record("a", [token])
        slot.tokens += [token, *REPEATING[:8]]
        slot.length = len(slot.tokens) - 1
    assert drafted[0] > 0 and not any(drafted[-30:])
    drafter.forget("a")
    assert not drafter._sources


def test_tokens_of_steps_that_look_for_nothing_are_compared_with_what_was_expected_in_their_place() -> None:
    """Steps that are launched ahead."""
    in_one, in_four = Acceptance(FirstGuess()), Acceptance(FirstGuess())
    whole, single = (Source(Generate("a", REPEATING, 50), acceptance) for acceptance in (in_one, in_four))
    expected, _ = whole.expect(REPEATING, (), 6)
    assert single.expect(REPEATING, (), 6)[0] == expected
    sampled = [*expected[:3], expected[3] + 1]
    whole.record(sampled)
    for token in sampled:
        single.record([token])
    assert in_four.chances(2, 30) == in_one.chances(2, 30) != Acceptance(FirstGuess()).chances(2, 30)
    single.record([expected[4]])  # behind another token nothing was expected
    assert in_four.chances(2, 30) == in_one.chances(2, 30)
