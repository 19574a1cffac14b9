"""Load on any server of OpenAI's wire, by Locust. `make load`, or `locust -f loadtest/load/locustfile.py` for its web page.

A closed loop of users, a ladder of them (--ladder), or arrivals that wait for nobody (--rates). Locust's table has a row for each
measure; runs/load-*.jsonl has every request, runs/server-*.jsonl what the server said meanwhile. Exit codes: 1 where a request failed,
2 where nothing could be measured, 3 where less than --goodput came in time.
"""

import locust.stats  # isort: skip  # first: it makes the standard library cooperative (gevent)

import inspect
import logging
import sys
import time
from dataclasses import asdict, replace
from typing import Any

import gevent  # type: ignore[import-untyped]
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import Runner

from loadtest.load import goodput, loadshape
from loadtest.load.arrivals import Street
from loadtest.load.monitor import Watch
from loadtest.load.options import Load, add_options, read_options
from loadtest.load.probe import Abilities, Unusable, card_of, probe
from loadtest.load.session import Push
from loadtest.load.stages import Stage
from loadtest.load.transport import Host
from loadtest.load.users import ChatUser, LeavingUser, LitmusUser, MixedUser, ScoreUser, TalkUser
from loadtest.run import create_run

__all__ = ["ChatUser", "LeavingUser", "MixedUser", "ScoreUser", "TalkUser"]  # what Locust finds here

log = logging.getLogger(__name__)
URL = "http://127.0.0.1:8000"
SAMPLE_S = 1.0


@events.init_command_line_parser.add_listener
def options(parser: LocustArgumentParser) -> None:
    add_options(parser)


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """What cannot be run ends here, with exit code 2. Locust's web page may start before the server does; a run without it may not."""
    given: Any = environment.parsed_options
    try:
        if given.master or given.worker or given.processes:
            raise ValueError("one process offers the whole load: --master, --worker and --processes would each offer it again")
        load = read_options(given)
        environment.host = (environment.host or URL).rstrip("/")
        if given.headless:
            card_of(Host(environment.host), load.model)
    except (ValueError, Unusable) as error:
        log.error("%s", error)
        sys.exit(2)
    locust.stats.bucket_response_time = loadshape.three_digits  # type: ignore[assignment]
    environment.stats = loadshape.Requests()
    environment.stop_timeout = environment.stop_timeout or load.drain_s
    if load.opened:
        Street.kinds = [user for user in environment.user_classes if issubclass(user, LitmusUser)]
        environment.user_classes = [Street]
        environment.shape_class = loadshape.Sweep()
    elif load.plan[0].seconds is not None:
        environment.shape_class = loadshape.Ladder(load)
    if environment.shape_class is not None:
        environment.shape_class.runner = environment.runner


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    given: Any = environment.parsed_options
    try:
        load = read_options(given)
        host = Host((environment.host or URL).rstrip("/"))
        abilities = probe(host, load.model, load.extra)
        _choose(environment, abilities)
    except (ValueError, Unusable) as error:
        log.error("%s", error)
        environment.process_exit_code = 2
        gevent.spawn(_runner(environment).quit)
        return
    inspect.stack()  # Locust asks for it when the run ends, and the first time holds all streams up for 30 ms
    for words in abilities.missing:
        log.warning("%s: %s", host.url, words)
    facts = _facts(environment, load, host, abilities)
    run, began_s = create_run(load.out, "load", facts), time.perf_counter()
    push = Push(load, host, abilities, run, events.request.fire, began_s, _first(environment, load), began_s)
    if abilities.sources:
        push.watch = Watch(host, abilities.sources, create_run(load.out, "server", {"run": run.path.name, **facts}), began_s)
    LitmusUser.push = push
    gevent.spawn(_sample, push)


@events.test_stopping.add_listener
def stop(**_: Any) -> None:
    if LitmusUser.push is not None:
        LitmusUser.push.over = True


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    push, LitmusUser.push = LitmusUser.push, None
    if push is None:
        return
    push.close()
    plan, slo = push.plan, push.load.slo
    sys.stdout.write(f"\n{goodput.table(push.records, plan, slo)}\n\nEach request: {push.run.path}\n\n")
    counted = [record for record in push.records if not record.warm_up]
    missed = goodput.missed(push.records, plan, slo)
    if not counted:
        log.error("Nothing was measured: %d requests, all in the warm-up (--warm-up)", len(push.records))
        environment.process_exit_code = 2
    elif missed:
        log.error("Less than %s of the chats came in time: %s", f"{slo.share:.1%}", "; ".join(missed))
        if all(record.outcome != "failed" for record in counted):
            environment.process_exit_code = 3


def _choose(environment: Environment, abilities: Abilities) -> None:
    """Users who ask for what the server does not have stay at home. Raises `Unusable` where that leaves nobody."""
    users: list[Any] = Street.kinds if Street in environment.user_classes else environment.user_classes
    able = [user for user in users if user.can(abilities)]
    if not able:
        raise Unusable(f"The server has nothing that the chosen users ask for ({'; '.join(abilities.missing)})")
    users[:] = able


def _first(environment: Environment, load: Load) -> Stage:
    """Of a load without stages the number of users may come from Locust's page."""
    return load.plan[0] if environment.shape_class else replace(load.plan[0], level=_runner(environment).target_user_count)


def _sample(push: Push) -> None:
    while not push.closed:
        push.listen()
        gevent.sleep(SAMPLE_S)


def _runner(environment: Environment) -> Runner:
    assert environment.runner is not None
    return environment.runner


def _facts(environment: Environment, load: Load, host: Host, abilities: Abilities) -> dict[str, Any]:
    """What the numbers belong to. Prompts come from the seed and are not kept."""
    given: Any = environment.parsed_options
    return {
        "url": host.url,
        "model": abilities.card,
        "quantization": load.quantization or abilities.quantization,
        "users": _runner(environment).target_user_count,
        "classes": [user.__name__ for user in Street.kinds or environment.user_classes],
        "options": {**asdict(load), "out": str(load.out), "run_time_s": given.run_time},
        "server": {"facts": abilities.facts, "sources": abilities.sources, "missing": abilities.missing},
    }
