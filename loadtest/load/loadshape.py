"""Extensions of Locust: how many users run at what time, what its table counts as a request, and how finely it stores times."""

from locust import LoadTestShape  # isort: skip  # first: it makes the standard library cooperative (gevent)

import math
import time

from locust.stats import RequestStats

from loadtest.load.options import Load
from loadtest.load.stages import stage_at
from loadtest.load.users import LitmusUser

MAX_SPAWNS_PER_S = 100.0  # Locust warns above it


class Ladder(LoadTestShape):
    """A closed loop: each stage has its number of users. Time counts from the start of the run, not from when this object was made."""

    abstract = True  # Locust would otherwise use it for every run; the locustfile sets it for --ladder

    def __init__(self, load: Load) -> None:
        super().__init__()
        self.load = load

    def tick(self) -> tuple[int, float] | None:
        session = LitmusUser.session
        if session is None:
            return _users_and_spawn_rate(self.load.plan[0].level)
        stage = stage_at(session.plan, time.perf_counter() - session.began_s)
        if stage is None or session.stopping:
            return None
        if stage != session.stage:
            session.begin_stage(stage)
        return _users_and_spawn_rate(stage.level)


class Sweep(LoadTestShape):
    """An open loop: Locust runs one user, the ArrivalGenerator, until it has sent all arrivals."""

    abstract = True

    def tick(self) -> tuple[int, float] | None:
        return None if LitmusUser.session is not None and LitmusUser.session.stopping else (1, 1.0)


def _users_and_spawn_rate(level: float) -> tuple[int, float]:
    return int(level), min(MAX_SPAWNS_PER_S, level)


class WholeRequestStats(RequestStats):
    """Counts only rows of type e2e as requests. Times within a request, and requests that were shed or left, have rows of their own."""

    def log_request(self, method: str, name: str, response_time: int, content_length: int) -> None:
        if method == "e2e":
            super().log_request(method, name, response_time, content_length)
        else:
            self.entries[(name, method)].log(response_time, content_length)


def three_digits(value: float) -> float:
    """Rounds a time to three significant digits for Locust's percentiles. Its own rounding is off by up to 5%, and by 17% at 3 ms."""
    return value if value == 0 else round(value, 2 - math.floor(math.log10(abs(value))))
