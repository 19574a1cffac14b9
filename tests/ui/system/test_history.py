from tests.ui.system.conftest import model, state
from ui.system.history import GAP_S, KEPT_S, History, extended, latest, levels, rates, running_of


def history(*samples: tuple[float, int]) -> History:
    """Samples of one model: (time, tokens it has written)."""
    found: History = ()
    for at_s, tokens in samples:
        found = extended(found, state(at_s, models=[model(generated_tokens=tokens)]))
    return found


def written(samples: History) -> list[tuple[float, float | None]]:
    return rates(samples, lambda sample: {name: each.generated_tokens for name, each in sample.models.items()}).get("storyteller", [])


def test_a_rate_is_what_was_done_between_two_samples() -> None:
    assert written(history((1000, 10), (1002, 30), (1006, 30))) == [(-4.0, 10.0), (0.0, 0.0)]
    assert written(history((1000, 10))) == [] == written(())


def test_what_is_old_is_dropped_and_a_new_server_begins_anew() -> None:
    samples = history((1000, 0), (1002, 4), (1001 + KEPT_S, 6))
    assert [sample.at_s for sample in samples] == [1002, 1001 + KEPT_S]
    restarted = extended(samples, state(1003 + KEPT_S, started=1300, models=[model(generated_tokens=1)]))
    assert len(restarted) == 1


def test_a_clock_that_was_set_back_leaves_no_time_backwards() -> None:
    assert [sample.at_s for sample in history((1000, 0), (1002, 1), (1001, 2))] == [1000, 1001]


def test_no_line_is_drawn_over_the_time_in_which_nobody_looked() -> None:
    points = written(history((1000, 0), (1002, 4), (1002 + 2 * GAP_S, 44)))
    assert points == [(-2 * GAP_S, 2.0), (0.0, None), (0.0, 2.0)]


def test_a_process_that_began_anew_has_no_rate_and_an_ended_one_no_level() -> None:
    def uses(cpu_s: float) -> list[dict[str, object]]:
        return [{"process": "worker", "model": "m", "replica": 1, "cpu_s": cpu_s, "resident_bytes": 100}]

    samples = extended(extended((), state(1000, processes=uses(9.0))), state(1002, processes=uses(1.0)))
    assert rates(samples, lambda sample: dict(sample.cpu_s)) == {"m, replica 1": [(0.0, None)]}
    samples = extended(samples, state(1004, processes=[]))
    (points,) = levels(samples, lambda sample: dict(sample.resident_bytes)).values()
    assert points == [(-4.0, 100), (-2.0, 100), (0.0, None)]
    assert latest(points) is None


def test_a_search_in_several_slots_is_one_answer() -> None:
    overview = state(models=[model(engines=[{"replica": 0, "age_s": 0.0, "slots": slots("a", "a", None, "b"), "waiting": [], "texts": 0}])])
    assert running_of(overview.models[0]) == 2


def slots(*requests: str | None) -> list[dict[str, object]]:
    counts = {"prompt_tokens": 1, "cached_tokens": 1, "generated_tokens": 0}
    stages = ["decode" if request else "idle" for request in requests]
    return [{"slot": slot, "stage": stages[slot], "request": request, **counts} for slot, request in enumerate(requests)]
