"""Which tokens of a request a lane holds, and who has which lane."""

from app.engine.lanes import Lane, Lanes
from app.engine.request import Generate
from app.engine.slot import Slot


def slot_of(id: str, prompt: tuple[int, ...], owner: str | None = None) -> Slot:
    slot = Slot(0)
    slot.admit(Generate(id, prompt, 10, owner=owner, private=owner is not None), 1, lambda ids: "x" * len(ids))
    return slot


def test_a_lane_forgets_what_was_not_kept_and_never_has_the_last_token() -> None:
    lane = Lane(range(1), [1, 2, 3, 8, 9])
    assert lane.keep([1, 2, 3, 4]) == 1 and lane.tokens == [1, 2, 3]
    lane.tokens += [4, 5]
    assert lane.keep([1, 2, 3, 4, 5]) == 1 and lane.tokens == [1, 2, 3, 4]
    assert lane.keep([1, 2, 3, 4, 5, 6, 7]) == 3


def test_a_request_gets_the_lane_that_begins_alike() -> None:
    lanes = Lanes(2, 3)
    one, other = lanes.of(slot_of("a", (1, 2, 3, 4))), lanes.of(slot_of("b", (5, 6, 7, 8)))
    assert one is not None and other is not None and {one.pages, other.pages} == {range(3), range(3, 6)}
    assert lanes.of(slot_of("a", (1, 2, 3, 4))) is one and lanes.of(slot_of("c", (1,))) is None
    one.tokens, other.tokens = [1, 2, 3], [5, 6, 7]
    lanes.release("a")
    lanes.release("b")
    again = slot_of("d", (5, 6, 7, 8, 9))
    assert lanes.of(again) is other and other.keep(again.tokens) == 2
    lanes.clear()
    assert one.tokens == other.tokens == [] and len(lanes._free) == 2


def test_a_lane_of_another_owner_is_empty() -> None:
    lanes = Lanes(1, 3)
    lane = lanes.of(slot_of("a", (1, 2, 3, 4), "alice"))
    assert lane is not None
    lane.tokens = [1, 2, 3]
    lanes.release("a")
    assert lanes.of(slot_of("b", (1, 2, 3, 4), "bob")) is lane and lane.tokens == []
