"""Watches the processes of the server from the API process: workers that died or hang, and a main process that is gone."""

import asyncio
import contextlib
import itertools
import logging
import os

import psutil

from serve.workers.fleet import Replica
from serve.workers.router import Router

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.2
HANG_ROUNDS = 40  # rounds without a beat, after which a worker counts as stopped. Rounds, not seconds: this process may be stopped, too
SIBLINGS_REFRESH_ROUNDS = 25  # rounds between two readings of the process table


async def watch(router: Router) -> None:
    """Run as long as the server: let the jobs of a worker that died or hangs go on elsewhere, let no slot be free while jobs wait for a
    replica that loads, and end all processes when the main process is gone.
    """
    parent = psutil.Process(os.getppid())
    siblings = _children(parent)
    for round_number in itertools.count(1):
        await asyncio.sleep(WATCH_INTERVAL_S)
        router.workers_died([replica for replica in router.replicas if _is_lost(router, replica)])
        for fleet in router.fleets:
            router.fill(fleet)
        router.fail_stranded()
        if not router.draining and os.getppid() != parent.pid:
            log.error("the main process is gone; ending all processes of this server")
            _kill_all(siblings)  # among them this process, and the one that holds the queues and a copy of the listening socket
        if round_number % SIBLINGS_REFRESH_ROUNDS == 0:  # rarely, as it reads the whole of /proc
            siblings = _children(parent) or siblings


def _is_lost(router: Router, replica: Replica) -> bool:
    """Whether the replica's worker is dead. Kills one that gives no sign of life: LitServe starts another."""
    worker = replica.worker
    if worker is None:
        return False
    if _is_dead(worker):
        level = logging.DEBUG if router.draining else logging.ERROR
        log.log(level, "worker %d of %s died with %d jobs in flight", worker.pid, replica.model, replica.load)
        return True
    replica.silent_rounds += 1
    if replica.silent_rounds <= HANG_ROUNDS:
        return False
    log.error("worker %d of %s has given no sign of life for %d s; it is killed", worker.pid, replica.model, _seconds(HANG_ROUNDS))
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.kill()
    return True


def _seconds(rounds: int) -> int:
    return round(rounds * WATCH_INTERVAL_S)


def _is_dead(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _kill_all(processes: list[psutil.Process]) -> None:
    """This process last: their order is that of their numbers, which start anew at the largest that the system has."""
    for process in sorted(processes, key=lambda process: process.pid == os.getpid()):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children()
    return []
