"""A cache with room for four of sixteen answers, on the compiled kernel: requests are set back, go on, and are answered as without need."""

import random

import pytest
from driving import answers_of, run_all
from inprocess import LocalModel
from precisions.conftest import BYTES

from app.engine.events import Failed, SetBack
from app.engine.request import Generate, SamplingParams
from app.models.loading import create_engine

ANSWERS, ROOM, CONTEXT = 16, 4, 130  # ROOM: contexts, of three pages each


def jobs_of(model: LocalModel) -> list[Generate]:
    """Greedy and sampled, with an adapter and without."""
    rng = random.Random(1)
    return [
        Generate(
            f"{index}",
            tuple(rng.randrange(300, 700) for _ in range(rng.randrange(20, 40))),
            90,
            SamplingParams(temperature=1.1 * (index % 4 > 0), seed=index),
            ignore_eos=True,
            adapter=f"{model.name}-tuned" if index % 8 == 7 else None,
        )
        for index in range(ANSWERS)
    ]


@pytest.mark.parametrize("model", ["bfloat16", "int4", "gguf", BYTES], indirect=True)  # float32: tests/app/engine/test_room.py
def test_sixteen_long_answers_in_room_for_four_are_all_given_as_if_there_were_room(steady: LocalModel) -> None:
    fields = {"slots": ANSWERS, "context": CONTEXT, "cache_tokens": ROOM * CONTEXT, "observer": None, "adapters": {}}
    engine, _ = create_engine(steady.settings.model_copy(update=fields))
    name = f"{steady.name}-tuned"
    engine.add_adapter(engine.reader.read(name, steady.settings.adapters[name]))
    jobs = jobs_of(steady)
    events = run_all(engine, jobs, 0)
    assert not any(isinstance(event, Failed) for event in events)
    assert sum(isinstance(event, SetBack) for event in events) >= 2
    whole = run_all(steady.engine, jobs, 0)
    assert not any(isinstance(event, SetBack) for event in whole)
    assert answers_of(events) == answers_of(whole)
