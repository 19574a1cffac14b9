"""The open loop: sends each request at its planned arrival time, whether or not earlier requests have been answered.

Each arrival is a greenlet that sends one request. An arrival of a conversation continues one that waits for its next turn, if there is one.
"""

from locust import User, task  # isort: skip  # first: it makes the standard library cooperative (gevent)

import random
import time
from typing import ClassVar

import gevent  # type: ignore[import-untyped]
from gevent.pool import Group  # type: ignore[import-untyped]
from locust.exception import StopUser

from loadtest.load.session import LoadSession
from loadtest.load.stages import Stage, arrival_times
from loadtest.load.users import LitmusUser


class ArrivalGenerator(User):
    """The only user that Locust runs in an open loop. It creates an instance of one of `user_classes`, drawn by weight, per arrival."""

    abstract = True  # Locust must not start it by itself: the locustfile puts it in place of the other users for an open loop
    fixed_count = 1
    user_classes: ClassVar[list[type[LitmusUser]]] = []

    @task
    def run_plan(self) -> None:
        session = LitmusUser.session
        if session is None:
            raise StopUser
        self.greenlets, self.idle_users = Group(), list[LitmusUser]()
        try:
            for stage in session.load.plan:
                if not session.stopping:
                    self._run_stage(session, stage)
        finally:
            self.greenlets.kill()
            session.stopping = True
        raise StopUser

    def _run_stage(self, session: LoadSession, stage: Stage) -> None:
        """Sends the stage's requests, then waits until they are answered, so that the next stage starts on an idle server."""
        rng = random.Random(f"{session.load.seed}/kinds/{stage.number}")
        session.begin_stage(stage)
        for after_s in arrival_times(stage, session.load.seed):
            planned_s = session.stage_began_s + after_s
            gevent.sleep(max(0.0, planned_s - time.perf_counter()))
            if session.stopping:
                break
            (user_class,) = rng.choices(self.user_classes, [user_class.weight for user_class in self.user_classes])
            self.greenlets.spawn(self._send_arrival, user_class, planned_s)
        self.greenlets.join(timeout=session.load.drain_s)
        self.greenlets.kill()

    def _send_arrival(self, user_class: type[LitmusUser], planned_s: float) -> None:
        """Sends one request as an idle user of this class, or as a new one."""
        user = next((user for user in self.idle_users if type(user) is user_class), None)
        if user is None:
            user = user_class(self.environment)
            user.initialize(next(LitmusUser.user_numbers))
        else:
            self.idle_users.remove(user)
        user.send_request(planned_s)
        if user.is_mid_conversation:
            self.idle_users.append(user)
