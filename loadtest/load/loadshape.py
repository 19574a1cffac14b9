"""Locust's own parts, shaped for this load: how many users run when, and what its table counts as a request."""

from locust import LoadTestShape  # isort: skip  # first: it makes the standard library cooperative (gevent)

import math
import time

from locust.stats import RequestStats

from loadtest.load.options import Load
from loadtest.load.stages import stage_at
from loadtest.load.users import LitmusUser

FASTEST = 100.0  # users a second; Locust warns beyond it


class Ladder(LoadTestShape):
    """A closed loop with a number of users for each stage. Time runs from the beginning of the run, not of this object."""

    abstract = True  # Locust takes any other shape it sees, whether a ladder was asked for or not

    def __init__(self, load: Load) -> None:
        super().__init__()
        self.load = load

    def tick(self) -> tuple[int, float] | None:
        push = LitmusUser.push
        if push is None:
            return _users(self.load.plan[0].level)
        stage = stage_at(push.plan, time.perf_counter() - push.began_s)
        if stage is None or push.over:
            return None
        if stage != push.stage:
            push.enter(stage)
        return _users(stage.level)


class Sweep(LoadTestShape):
    """An open loop: the one user that sends all others, until it is done."""

    abstract = True

    def tick(self) -> tuple[int, float] | None:
        return None if LitmusUser.push is not None and LitmusUser.push.over else (1, 1.0)


def _users(level: float) -> tuple[int, float]:
    return int(level), min(FASTEST, level)


class Requests(RequestStats):
    """Times within a request, and requests that were shed or left, have rows of their own and are not counted as further requests."""

    def log_request(self, method: str, name: str, response_time: int, content_length: int) -> None:
        if method == "e2e":
            super().log_request(method, name, response_time, content_length)
        else:
            self.entries[(name, method)].log(response_time, content_length)


def three_digits(value: float) -> float:
    """How finely Locust keeps times for its percentiles; its own two digits are off by up to 5%, and by 17% at 3 ms."""
    return value if value == 0 else round(value, 2 - math.floor(math.log10(abs(value))))
