"""Load-tests any server with OpenAI's API, with Locust. `make load`, or `locust -f loadtest/load/locustfile.py` for its web page.

A closed loop of users, with several stages by --ladder, or an open loop of arrivals by --rates. Locust's table has a row for each measure,
runs/load-*.jsonl has every request, runs/server-*.jsonl the samples of the server. Exit codes: 1 if a request failed, 2 if nothing could be
measured, 3 if the goodput of a stage is below --goodput.
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
from loadtest.load.arrivals import ArrivalGenerator
from loadtest.load.monitor import ServerMonitor
from loadtest.load.options import Load, add_options, read_options
from loadtest.load.probe import Capabilities, UnusableServer, card_of, probe
from loadtest.load.session import LoadSession
from loadtest.load.stages import Stage
from loadtest.load.transport import Host
from loadtest.load.users import ChatUser, LeavingUser, LitmusUser, MixedUser, ScoreUser, SeveralTurnsUser
from loadtest.run import create_run

__all__ = ["ChatUser", "LeavingUser", "MixedUser", "ScoreUser", "SeveralTurnsUser"]  # Locust runs the users of this module

log = logging.getLogger(__name__)
DEFAULT_URL = "http://127.0.0.1:8000"


@events.init_command_line_parser.add_listener
def register_options(parser: LocustArgumentParser) -> None:
    add_options(parser)


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Checks the options and sets Locust up for them. Exits with code 2 if they cannot be run, or if a headless run finds no server.

    With Locust's web page the server may start later.
    """
    args: Any = environment.parsed_options
    try:
        if args.master or args.worker or args.processes:
            raise ValueError("leave out --master, --worker and --processes: each process would send the whole load again")
        load = read_options(args)
        environment.host = (environment.host or DEFAULT_URL).rstrip("/")
        if args.headless:
            card_of(Host(environment.host), load.model)
    except (ValueError, UnusableServer) as error:
        log.error("%s", error)
        sys.exit(2)
    locust.stats.bucket_response_time = loadshape.three_digits  # type: ignore[assignment]
    environment.stats = loadshape.WholeRequestStats()
    environment.stop_timeout = environment.stop_timeout or load.drain_s
    if load.is_open_loop:
        ArrivalGenerator.user_classes = [user for user in environment.user_classes if issubclass(user, LitmusUser)]
        environment.user_classes = [ArrivalGenerator]
        environment.shape_class = loadshape.Sweep()
    elif load.plan[0].seconds is not None:
        environment.shape_class = loadshape.Ladder(load)
    if environment.shape_class is not None:
        environment.shape_class.runner = environment.runner


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """Probes the server, opens the run files and sets `LitmusUser.session`. Ends the run with exit code 2 if nothing can be measured."""
    args: Any = environment.parsed_options
    try:
        load = read_options(args)
        host = Host((environment.host or DEFAULT_URL).rstrip("/"))
        capabilities = probe(host, load.model, load.extra)
        _select_users(environment, capabilities)
    except (ValueError, UnusableServer) as error:
        log.error("%s", error)
        environment.process_exit_code = 2
        gevent.spawn(_runner(environment).quit)
        return
    inspect.stack()  # Locust calls it at the end of the run, and its first call would delay all streams by 30 ms
    for message in capabilities.missing:
        log.warning("%s: %s", host.url, message)
    facts = _manifest(environment, load, host, capabilities)
    run, began_s = create_run(load.out, "load", facts), time.perf_counter()
    session = LoadSession(load, host, capabilities, run, events.request.fire, began_s, _first_stage(environment, load), began_s)
    if capabilities.sources:
        server_run = create_run(load.out, "server", {"run": run.path.name, **facts})
        session.monitor = ServerMonitor(host, capabilities.sources, server_run, began_s)
    LitmusUser.session = session
    session.start_sampling()


@events.test_stopping.add_listener
def stop(**_: Any) -> None:
    if LitmusUser.session is not None:
        LitmusUser.session.stopping = True


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    """Prints the table and sets the exit code."""
    session, LitmusUser.session = LitmusUser.session, None
    if session is None:
        return
    session.close()
    plan, slo = session.plan, session.load.slo
    sys.stdout.write(f"\n{goodput.table(session.records, plan, slo)}\n\nEach request: {session.run.path}\n\n")
    counted = [record for record in session.records if not record.warm_up]
    missed = goodput.missed_stages(session.records, plan, slo)
    if not counted:
        log.error(
            "Nothing was measured: %d requests, all of them in the warm-up. Run longer, or with a shorter --warm-up", len(session.records)
        )
        environment.process_exit_code = 2
    elif missed:
        log.error("The goodput is below %s: %s", f"{slo.share:.1%}", "; ".join(missed))
        if all(record.outcome != "failed" for record in counted):
            environment.process_exit_code = 3


def _select_users(environment: Environment, capabilities: Capabilities) -> None:
    """Removes the users whose requests the server does not support. Raises `UnusableServer` if no user is left."""
    users: list[Any] = ArrivalGenerator.user_classes if ArrivalGenerator in environment.user_classes else environment.user_classes
    supported = [user for user in users if user.is_supported(capabilities)]
    if not supported:
        raise UnusableServer(f"The server supports none of the requests of the chosen users ({'; '.join(capabilities.missing)})")
    users[:] = supported


def _first_stage(environment: Environment, load: Load) -> Stage:
    """In a load without stages the number of users comes from Locust, whose web page may have changed it."""
    return load.plan[0] if environment.shape_class else replace(load.plan[0], level=_runner(environment).target_user_count)


def _runner(environment: Environment) -> Runner:
    assert environment.runner is not None
    return environment.runner


def _manifest(environment: Environment, load: Load, host: Host, capabilities: Capabilities) -> dict[str, Any]:
    """The facts of the run's manifest. Prompts are not in it: the seed determines them."""
    args: Any = environment.parsed_options
    return {
        "url": host.url,
        "model": capabilities.card,
        "quantization": load.quantization or capabilities.quantization,
        "users": _runner(environment).target_user_count,
        "classes": [user.__name__ for user in ArrivalGenerator.user_classes or environment.user_classes],
        "options": {**asdict(load), "out": str(load.out), "run_time_s": args.run_time},
        "server": {"facts": capabilities.facts, "sources": capabilities.sources, "missing": capabilities.missing},
    }
