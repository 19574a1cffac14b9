"""Adapters while their base changes: what a new version reads, takes away and gives back, and what is left of one that is gone."""

import asyncio
from pathlib import Path

import pytest
from fakes import FACTS
from shelving import JOB, NAME, Server, run, with_new_version

from app.errors import NotReady, UnknownModel
from app.settings import ModelSettings
from serve.workers.handover import can_go_on
from serve.workers.messages import LoadAdapter as Load


def test_a_new_version_has_the_adapters_before_it_takes_jobs(tmp_path: Path) -> None:
    async def test() -> None:
        server, version = await with_new_version(tmp_path)
        assert server.start(1) == [Load(NAME, "/tuned")] and not can_go_on(JOB, version)
        furnished = asyncio.ensure_future(server.shelf.furnish(version))
        await asyncio.sleep(0)
        assert not furnished.done()
        server.read(NAME, number=1)
        await furnished
        assert can_go_on(JOB, version) and version.facts_of(NAME).fingerprint == f"fp_{NAME}"
        server.router.install(version)
        assert [facts.name for facts in server.router.adapted_facts()] == [NAME]
        server.router.withdraw("fake")  # then there is nothing on which it could be served
        assert server.router.adapted_facts() == []
        with pytest.raises(UnknownModel, match="is not served here"):
            server.router.facts(NAME)

    run(test())


@pytest.mark.parametrize("installed", [False, True])
def test_a_new_version_takes_an_adapter_away_only_once_it_takes_the_jobs(tmp_path: Path, installed: bool) -> None:
    async def test() -> None:
        server, version = await with_new_version(tmp_path)
        server.start(1)
        server.read(NAME, "it has another base", 1)
        await asyncio.sleep(0)
        assert server.router.facts(NAME).name == NAME and version.problems == {NAME: "it has another base"}
        if not installed:
            server.router.remove(version)
            assert server.router.facts(NAME).name == NAME and NAME in server.detectors
            return
        server.router.install(version)
        with pytest.raises(NotReady, match="could not be loaded again"):
            server.router.fleet(NAME)
        assert NAME not in server.router.adapters and NAME not in server.detectors

    run(test())


def test_the_observer_of_an_adapter_is_its_base_as_it_is_served_now(tmp_path: Path) -> None:
    async def test() -> None:
        server, version = await with_new_version(tmp_path)
        assert server.detectors[NAME].settings.observer == str(tmp_path / "base")
        server.start(1)
        server.read(NAME, number=1)
        await asyncio.sleep(0)
        server.bases["fake"] = ModelSettings(path="/new")
        server.router.install(version)
        assert server.detectors[NAME].settings.observer == "/new"

    run(test())


@pytest.mark.parametrize("installed", [False, True])
def test_a_new_version_gives_back_an_adapter_only_once_it_takes_the_jobs(tmp_path: Path, installed: bool) -> None:
    async def test() -> None:
        server, version = await with_new_version(tmp_path)
        server.router.workers_died(server.router.replicas)
        server.start()
        server.read(NAME, "it is gone")
        server.start(1)
        server.read(NAME, number=1)
        await asyncio.sleep(0)
        if installed:
            server.router.install(version)
            assert server.router.facts(NAME).name == NAME
            return
        server.router.remove(version)
        with pytest.raises(NotReady, match="could not be loaded again"):
            server.router.fleet(NAME)

    run(test())


@pytest.mark.parametrize("reason", ["", "it is gone"])
def test_what_a_worker_that_started_during_a_change_has_read_counts_at_its_end(tmp_path: Path, reason: str) -> None:
    async def test() -> None:
        server = Server(tmp_path, 2)
        server.start(0)
        loading = asyncio.ensure_future(server.shelf.keep(NAME, "/tuned", FACTS.name))
        await asyncio.sleep(0)
        server.start(1)
        server.read(NAME, reason, 1)
        await asyncio.sleep(0)
        server.read(NAME, number=0)
        await loading
        assert (NAME in server.router.adapters) == (not reason)
        assert server.router.fleet("fake").problems == ({NAME: reason} if reason else {})

    run(test())


def test_a_new_version_does_not_wait_for_an_adapter_that_was_unloaded_meanwhile(tmp_path: Path) -> None:
    async def test() -> None:
        server, version = await with_new_version(tmp_path)
        server.start(1)
        furnished = asyncio.ensure_future(server.shelf.furnish(version))
        await asyncio.sleep(0)
        await server.shelf.unload(NAME)
        await asyncio.wait_for(furnished, 10)
        assert not version.adapters and not version.problems

    run(test())


def test_what_a_worker_reads_whose_version_is_gone_is_dropped(tmp_path: Path) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        server.start()
        server.read(NAME, number=7)
        assert server.router.adapters == {} and NAME not in server.detectors

    run(test())
