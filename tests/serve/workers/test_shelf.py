"""Adapters of a running server: which orders their workers get, what is served meanwhile, and what is there after a restart."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FACTS
from shelving import JOB, NAME, PID, Server, run

from app.engine.facts import AdapterFacts
from app.engine.request import Generate
from app.errors import Conflict, Forbidden, InvalidRequest, NotFound, NotReady, StorageFull, UnknownModel
from app.settings import QueueSettings
from serve.routes.state import readiness_of
from serve.workers.fleet import Fleet, Replica
from serve.workers.handover import can_go_on
from serve.workers.messages import LoadAdapter as Load
from serve.workers.messages import UnloadAdapter as Unload

LOADING = {"status": "loading", "models": {"fake": "ready"}, "progress": None}


def test_a_kept_adapter_is_served_and_again_after_a_restart(tmp_path: Path) -> None:
    async def first() -> None:
        server = Server(tmp_path)
        outbox = server.start()
        assert await server.during(server.shelf.keep(NAME, "/tuned", FACTS.name), 0) is None
        assert outbox == [Load(NAME, "/tuned")]
        facts = server.router.facts(NAME)
        assert (facts.name, facts.parent, facts.adapter, facts.observer, facts.fingerprint) == (NAME, "fake", NAME, "fake", f"fp_{NAME}")
        assert server.router.fleet(NAME) is server.router.fleet(None) and server.router.facts("fake").parent is None
        assert server.detectors[NAME].settings.path == f"/{NAME}" and list(server.router.models) == ["fake"]
        assert json.loads(server.file.read_text()) == {NAME: {"path": "/tuned", "model": "fake"}}

    async def second() -> None:
        server = Server(tmp_path)
        with pytest.raises(NotReady, match="with its base 'fake'"):
            server.router.fleet(NAME)
        outbox = server.start()
        assert outbox == [Load(NAME, "/tuned")] and readiness_of(server.router).model_dump() == LOADING
        with pytest.raises(NotReady, match="is being loaded; GET /ready says when"):
            server.router.fleet(NAME)
        server.read(NAME)
        await asyncio.sleep(0)
        assert server.router.facts(NAME).parent == "fake" and server.router.ready
        assert await server.during(server.shelf.unload(NAME)) is None
        assert outbox[1:] == [Unload(NAME)] and json.loads(server.file.read_text()) == {}

    run(first())
    run(second())


@pytest.mark.parametrize("outcome", ["it is broken", "hangs", "unloaded", "its base is loaded on demand", "its base is gone"])
def test_an_adapter_that_is_not_served_again_keeps_no_server_from_being_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    monkeypatch.setattr("serve.workers.shelf.LOAD_S", 0.01)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/adapters.json").write_text(json.dumps({NAME: {"path": "/tuned", "model": "fake"}}))

    async def test() -> None:
        server = Server(tmp_path)
        server.start()
        assert not server.router.ready
        if outcome == "hangs":
            while not server.router.ready:
                await asyncio.sleep(0.01)
        elif outcome == "unloaded":
            await server.shelf.unload(NAME)
        elif outcome == "its base is loaded on demand":
            server.router.fleet("fake").wake = lambda: None
        elif outcome == "its base is gone":
            server.router.withdraw("fake")
        else:
            server.read(NAME, outcome)
            await asyncio.sleep(0)
            server.router.workers_died(server.router.replicas)
            server.start()  # the next worker tries it again, and nobody waits for that
        assert server.router.ready

    run(test())


def test_a_result_is_kept_for_a_base_that_is_not_loaded_at_the_moment(tmp_path: Path) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        await server.shelf.keep(NAME, "/tuned", FACTS.name)
        assert NAME not in server.router.adapters and server.file.exists()
        with pytest.raises(NotReady, match="with its base 'fake'"):
            server.router.fleet(NAME)
        assert isinstance(await server.during(server.shelf.load("other", str(tmp_path / "allowed/x"))), NotReady)
        assert server.start() == [Load(NAME, "/tuned")]

    run(test())


def test_a_result_is_kept_for_a_base_that_is_not_served_at_the_moment(tmp_path: Path) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        fleet = server.router.withdraw(FACTS.name)
        assert await server.during(server.shelf.keep(NAME, "/tuned", FACTS.name)) is None
        assert json.loads(server.file.read_text()) == {NAME: {"path": "/tuned", "model": "fake"}}
        with pytest.raises(UnknownModel, match="its base 'fake' is no model of this server") as caught:
            server.router.fleet(NAME)
        assert (caught.value.status, caught.value.code) == (404, "model_not_found") and not server.router.awaits_adapters
        server.router.install(fleet)
        assert server.start() == [Load(NAME, "/tuned")]
        server.read(NAME)
        await asyncio.sleep(0)
        assert server.router.facts(NAME).adapter == NAME

    run(test())


def test_an_adapter_without_a_base_in_the_settings_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/adapters.json").write_text(json.dumps({NAME: {"path": "/tuned", "model": "other"}}))
    with pytest.raises(UnknownModel, match="its base 'other' is no model of this server"):
        Server(tmp_path).router.fleet(NAME)


def test_an_adapter_that_cannot_be_served_is_refused_and_not_remembered(tmp_path: Path) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        outbox = server.start()
        error = await server.during(server.shelf.keep(NAME, "/tuned", FACTS.name), 0, reason="it has use_dora")
        assert isinstance(error, InvalidRequest) and (error.message, error.param) == ("it has use_dora", "lora_path")
        assert (
            outbox == [Load(NAME, "/tuned"), Unload(NAME)]
            and json.loads(server.file.read_text()) == {}
            and NAME not in server.router.adapters
        )
        assert server.start() == []
        assert await server.during(server.shelf.keep(NAME, "/better", FACTS.name), 0) is None

    run(test())


def test_only_names_and_paths_that_may_be_had_are_loaded(tmp_path: Path) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        server.start()
        allowed = str(tmp_path / "allowed/tuned")
        assert await server.during(server.shelf.load(NAME, allowed), 0) is None
        server.router.aliases = {"gpt-4o": "fake"}
        errors = {
            "has already been loaded": (NAME, allowed, None),
            "is another name of 'fake'": ("gpt-4o", allowed, None),
            "is a model of this server": ("fake", allowed, None),
            "lora_name has to match": ("a b", allowed, None),
            "not in a folder that is allowed": ("other", str(tmp_path / "secret"), None),
            "'nobody' is not served here": ("other", allowed, "nobody"),
            "is an adapter itself; its base is 'fake'": ("other", allowed, NAME),
        }
        for message, arguments in errors.items():
            error = await server.during(server.shelf.load(*arguments))
            assert error is not None and message in error.message

    run(test())


@pytest.mark.parametrize(
    ("path", "allowed"), [("allowed/a", True), ("jobs/ft-1", True), ("elsewhere", False), ("jobs/../elsewhere", False)]
)
def test_an_adapter_may_lie_with_the_models_or_the_jobs(tmp_path: Path, path: str, allowed: bool) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        server.start()
        error = await server.during(server.shelf.load(NAME, f"{tmp_path}/{path}"), 0)
        assert (error is None) == allowed and (allowed or isinstance(error, Forbidden))

    run(test())


def test_every_worker_of_the_base_reads_it_and_one_that_starts_later_before_its_jobs(tmp_path: Path) -> None:
    async def test() -> None:
        server = Server(tmp_path, 2)
        boxes = [server.start(0), server.start(1)]
        loading = asyncio.ensure_future(server.shelf.keep(NAME, "/tuned", FACTS.name))
        await asyncio.sleep(0)
        server.read(NAME, number=0)
        await asyncio.sleep(0)
        assert boxes == [[Load(NAME, "/tuned")]] * 2 and not loading.done()
        server.read(NAME, number=1)
        await loading
        async with server.router.open([JOB], NAME):
            server.router.workers_died(server.router.replicas)
            outbox = server.start(1)
            assert outbox[:2] == [Load(NAME, "/tuned"), JOB]
        server.read(NAME, number=1, pid=PID + 1)  # of the worker that died
        assert (1, NAME) in server.shelf._loading
        server.read(NAME, number=1)
        assert not server.shelf._loading

    run(test())


def test_a_worker_that_cannot_load_it_again_says_why_to_administrators_only(tmp_path: Path) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        server.start()
        await server.during(server.shelf.keep(NAME, "/tuned", FACTS.name), 0)
        server.router.workers_died(server.router.replicas)
        server.start()
        server.read(NAME, "/tuned: it is gone")
        await asyncio.sleep(0)
        with pytest.raises(NotReady, match="could not be loaded again") as caught:
            server.router.fleet(NAME)
        assert "/tuned" not in caught.value.message and caught.value.code == "adapter_not_loaded"
        assert server.router.fleet("fake").problems == {NAME: "/tuned: it is gone"} and NAME not in server.detectors
        server.router.workers_died(server.router.replicas)
        server.start()
        server.read(NAME)
        await asyncio.sleep(0)
        assert server.router.facts(NAME).adapter == NAME and not server.router.fleet("fake").problems

    run(test())


def test_unloading_waits_for_what_it_has_and_takes_nothing_new(tmp_path: Path) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        outbox = server.start()
        await server.during(server.shelf.load(NAME, str(tmp_path / "allowed/tuned")), 0)
        async with server.router.open([JOB], NAME), server.router.open([Generate("base", (1,), 3)]):
            unloading = asyncio.ensure_future(server.shelf.unload(NAME))
            await asyncio.sleep(0.06)
            assert not unloading.done() and Unload(NAME) not in outbox
            with pytest.raises(UnknownModel, match="was unloaded"):
                server.router.fleet(NAME)
            assert isinstance(await server.during(server.shelf.load(NAME, str(tmp_path / "allowed/tuned"))), Conflict)
            server.router.fail(server.router.unfinished(server.router.fleet(None))[:1], NotReady("done"))
            await unloading
        assert Unload(NAME) in outbox
        assert isinstance(await server.during(server.shelf.unload(NAME)), NotFound)

    run(test())


def test_adapters_are_found_by_the_folder_in_which_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        server.start()
        (tmp_path / "jobs/tuning/1/adapter").mkdir(parents=True)
        (tmp_path / "allowed").symlink_to(tmp_path / "jobs/tuning")
        monkeypatch.chdir(tmp_path)
        paths = {"whole": f"{tmp_path}/jobs/tuning/1/adapter", "relative": "jobs/tuning/1/checkpoints/step-3", "link": "allowed/1/adapter"}
        paths |= {"longer": f"{tmp_path}/jobs/tuning/10/adapter", "elsewhere": f"{tmp_path}/jobs/tuning/1/../2", "gone": "jobs/tuning/1/x"}
        for name, path in paths.items():
            loading = asyncio.ensure_future(server.shelf.load(name, path))
            await asyncio.sleep(0)
            server.read(name, "it is gone" if name == "gone" else "")
            await asyncio.gather(loading, return_exceptions=True)
        assert server.shelf.inside(tmp_path / "jobs/tuning/1") == ["whole", "relative", "link"]

    run(test())


def test_adapters_of_the_settings_are_there_with_their_model(tmp_path: Path) -> None:
    async def test() -> None:
        server = Server(tmp_path, adapters={"tuned": "/tuned"})
        outbox = server.start(0, AdapterFacts("tuned", "/tuned", "base+1", "fp_1"))
        assert outbox == [] and server.router.facts("tuned").revision == "base+1"
        assert server.start() == [Load("tuned", "/tuned")]  # a worker that is started again gets them from here

    run(test())


def test_a_folder_that_cannot_be_written_and_a_broken_file_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        server.start()
        (tmp_path / "jobs").write_text("a file")
        assert isinstance(await server.during(server.shelf.keep(NAME, "/tuned", FACTS.name), 0), StorageFull)
        assert NAME not in server.router.adapters  # else nobody would try again to remember it

    run(test())
    (tmp_path / "jobs").unlink()
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "adapters.json").write_text("{")
    assert Server(tmp_path).shelf._entries == {} and "no adapter is served again" in caplog.text


def test_jobs_of_an_adapter_that_is_gone_fail_with_its_version() -> None:
    assert can_go_on(replace(JOB, adapter=None), _ready_fleet()) and not can_go_on(JOB, _ready_fleet())


def _ready_fleet() -> Fleet:
    replica = Replica(0, "fake", facts=FACTS)
    return Fleet("fake", [replica], QueueSettings())
