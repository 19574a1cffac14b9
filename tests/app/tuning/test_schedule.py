"""What is decided from counts: steps, auto, the learning rate, the order and the groups of a batch."""

import pytest

from app.schemas.tuning import Hyperparameters
from app.tuning.dataset import groups, order
from app.tuning.schedule import BASE_RATE, resolved, schedule_of


@pytest.mark.parametrize(
    ("examples", "epochs", "batch", "steps"), [(1, 25, 1, 25), (10, 10, 1, 100), (50, 3, 1, 150), (4000, 3, 8, 1500), (10**5, 3, 32, 9375)]
)
def test_auto_follows_the_number_of_examples(examples: int, epochs: int, batch: int, steps: int) -> None:
    schedule = schedule_of(Hyperparameters(), examples)
    assert (schedule.epochs, schedule.batch, schedule.steps) == (epochs, batch, steps)


def test_what_was_asked_for_is_used_and_shown() -> None:
    asked = Hyperparameters(n_epochs=2, batch_size=100, learning_rate_multiplier=3, lora_rank=4)
    schedule = schedule_of(asked, 10)
    assert (schedule.steps, schedule.batch, schedule.rate) == (2, 10, pytest.approx(3 * BASE_RATE))
    shown = resolved(asked, schedule, "nf4")
    assert (shown.n_epochs, shown.batch_size, shown.lora_alpha, shown.quantize) == (2, 10, 8, "nf4")


def test_the_rate_rises_then_falls() -> None:
    schedule = schedule_of(Hyperparameters(n_epochs=1, batch_size=1), 100)
    rates = [schedule.rate_of(step) for step in range(100)]
    assert max(rates) == pytest.approx(schedule.rate) and rates[0] < rates[2] and rates[-1] < 0.02 * schedule.rate and min(rates) > 0


def test_every_example_is_learnt_once_an_epoch_in_an_order_that_seed_and_epoch_decide() -> None:
    assert sorted(order(1, 0, 20)) == list(range(20)) and order(1, 0, 20) == order(1, 0, 20)
    assert len({tuple(order(seed, epoch, 20)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    schedule = schedule_of(Hyperparameters(n_epochs=1, batch_size=3), 10)
    parts = [order(1, 0, 10)[schedule.place(step)[1]] for step in range(schedule.steps)]
    assert sorted(sum(parts, [])) == list(range(10)) and [schedule.ends_epoch(step) for step in range(4)] == [False] * 3 + [True]


def test_groups_are_filled_up_to_the_longest_and_never_above_the_limit() -> None:
    lengths = [5, 9, 2, 9, 30, 1]
    found = groups(range(6), lengths, 20)
    assert sorted(sum(found, [])) == list(range(6)) and found[0] == [4]
    assert all(len(group) == 1 or len(group) * max(lengths[index] for index in group) <= 20 for group in found)
