"""The open loop: people come from the street when they come, and nobody waits for those before them.

Each arrival is a greenlet of its own, asks once and is gone; one who converses takes up a conversation that waits for its next turn,
where there is one.
"""

from locust import User, task  # isort: skip  # first: it makes the standard library cooperative (gevent)

import random
import time
from typing import ClassVar

import gevent  # type: ignore[import-untyped]
from gevent.pool import Group  # type: ignore[import-untyped]
from locust.exception import StopUser

from loadtest.load.session import Push
from loadtest.load.stages import Stage, arrivals
from loadtest.load.users import LitmusUser


class Street(User):
    """Not a person but where they come from: users of `kinds`, by their weights."""

    abstract = True  # an open loop takes it in place of the others
    fixed_count = 1
    kinds: ClassVar[list[type[LitmusUser]]] = []

    @task
    def offer(self) -> None:
        push = LitmusUser.push
        if push is None:
            raise StopUser
        self.crowd, self.away = Group(), list[LitmusUser]()
        try:
            for stage in push.load.plan:
                if not push.over:
                    self._offer(push, stage)
        finally:
            self.crowd.kill()
            push.over = True
        raise StopUser

    def _offer(self, push: Push, stage: Stage) -> None:
        """The stage's arrivals, then what is under way: a stage does not suffer from the one before it."""
        draw = random.Random(f"{push.load.seed}/kinds/{stage.number}")
        push.enter(stage)
        for after_s in arrivals(stage, push.load.seed):
            planned_s = push.stage_s + after_s
            gevent.sleep(max(0.0, planned_s - time.perf_counter()))
            if push.over:
                break
            (kind,) = draw.choices(self.kinds, [kind.weight for kind in self.kinds])
            self.crowd.spawn(self._arrive, kind, planned_s)
        self.crowd.join(timeout=push.load.drain_s)
        self.crowd.kill()

    def _arrive(self, kind: type[LitmusUser], planned_s: float) -> None:
        user = next((user for user in self.away if type(user) is kind), None)
        if user is None:
            user = kind(self.environment)
            user.appear(next(LitmusUser.numbers))
        else:
            self.away.remove(user)
        user.step(planned_s)
        if user.returns:
            self.away.append(user)
