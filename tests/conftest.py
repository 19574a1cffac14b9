"""How the tests are collected and divided among processes. What they share is in `tinymodels.py`."""

import gc
import importlib
import logging
import os
import ssl
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from _pytest.pathlib import import_path
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent
collect_ignore = ["clients"]  # run by test_clients.py in an environment of their own

# Of thousands of HTTP clients hardly one speaks TLS, but each would read all the certificates of the system (70 ms). Those of this process
# share what they have read, those of others read none.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(ROOT / "tests")
ssl.create_default_context = cache(ssl.create_default_context)

# Tests that mostly wait: for servers, browsers and other processes. As many processes as there are cores run those that compute, the
# others these.
WAITING = ("tests/serve", "tests/ui", "tests/test_", "tests/loadtest", "tests/jobs", "tests/app/models/test_hub.py")
# So that no process ends long after the other. Those that sleep most come early, while others compute.
SLOW_FIRST = (
    "tests/precisions",
    "tests/ui/test_chat.py",  # and all page tests with it, as SHARED says
    "tests/serve/routes/test_contract.py",  # and all that ask the same server
    "tests/loadtest/load",
    "tests/loadtest/chaos",
    "tests/serve/test_server.py",
    "tests/serve",
    "tests/ui",
    "tests/test_smollm2.py",
    "tests/test_clients.py",
    "tests/models",
    "tests/test_whole.py",
    "tests/app/engine",
)
# Tests that share nothing slow.
SPREAD = ("tests/app/engine/test_properties.py", "tests/app/engine/test_sampler", "tests/models/test_", "tests/models/train")
SHARED = {  # in all files of a folder: fixtures that take long to make, by the scope of the tests that ask for them
    "api": ("tests/serve", "api: RunningServer"),
    "kernels": ("tests/app/engine", "built: Kernel"),
    "page": ("tests/ui", "import CHROMIUM"),
    "precisions": ("tests/precisions", "LocalModel"),
    "triton": ("tests/app/engine", "from tritoncode import"),
}
SCOPES = {
    path.relative_to(ROOT).as_posix(): scope
    for scope, (folder, fixture) in SHARED.items()
    for path in (ROOT / folder).rglob("test_*.py")
    if fixture in path.read_text()
}


def scope_of(nodeid: str) -> str:
    """Tests of one file run in one process, as they share its fixtures; so do all tests that ask for a fixture of SHARED."""
    file = nodeid.split("::", 1)[0]
    return SCOPES.get(file) or (nodeid if file.startswith(SPREAD) else file)


class SharedFixtures(LoadScopeScheduling):
    """Gives a process the next scope that computes while fewer others have one than there are cores, and otherwise the next that waits."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        latest = [next(reversed(scopes.values()), {}) for other, scopes in self.assigned_work.items() if other is not node]
        waits = sum(not _waits(scope) for scope in latest if scope) >= (os.cpu_count() or 1)
        wanted = next((scope for scope, tests in self.workqueue.items() if _waits(tests) is waits), next(iter(self.workqueue)))
        self.workqueue.move_to_end(wanted, last=False)
        super()._assign_work_unit(node)


def _waits(tests: Mapping[str, bool]) -> bool:
    return next(iter(tests)).startswith(WAITING)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedFixtures:
    return SharedFixtures(config, log)


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until all tests are imported: collections among so many new objects would take a sixth of that time
    if "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses"):  # the process that hands tests out needs none
        config.pluginmanager.register(importlib.import_module("tinymodels"))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look at it again, and pytest, which listens to the root and to each
    logger that does not pass its records on to it, need not go to a hundred of torch's six times a test.
    """
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch.") and isinstance(logger, logging.Logger):
            logger.propagate = True
    gc.freeze()
    gc.set_threshold(20_000)  # objects; after each 700, the default, a test pays for what it does not leave behind
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """What a file's tests leave behind stays as well: imports, caches, servers. Each load of a model collects garbage, among a million
    objects for a quarter of a second.
    """
    yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    gc.freeze()  # nor before the interpreter ends


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((place for place, path in enumerate(SLOW_FIRST) if item.nodeid.startswith(path)), len(SLOW_FIRST)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """All processes collect all tests. Each imports another share of them first, so that the asserts of a file are rewritten only once."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or session.config.args_source is not session.config.ArgsSource.TESTPATHS:
        return
    count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for file in sorted((ROOT / "tests").rglob("test_*.py"))[int(worker.removeprefix("gw")) :: count]:
        if not file.is_relative_to(ROOT / "tests" / "clients"):
            import_path(file, mode="importlib", root=ROOT, consider_namespace_packages=False)
