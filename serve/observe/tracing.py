"""Turns traces on, if the optional packages are there. Importing this module imports none of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI

from app.errors import SetupError
from serve.observe.observer import Observer

PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def add_traces(app: FastAPI, observer: Observer, endpoint: str) -> None:
    """Send traces to the collector at `endpoint`, until the application ends. Raises `SetupError` without the packages."""
    check_packages()
    from serve.observe.traces import Traces

    traces = observer.traces = Traces(endpoint)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as state:
            yield state
        await asyncio.to_thread(traces.close)

    app.router.lifespan_context = lifespan


def check_packages() -> None:
    for package in PACKAGES:
        try:
            found = find_spec(package)
        except ModuleNotFoundError:  # not even the package around it
            found = None
        if found is None:
            raise SetupError(
                f"server.otlp_endpoint asks for traces, but the package {package} is not installed: "
                "run `pip install -r requirements-otel.txt`, or leave server.otlp_endpoint and OTEL_EXPORTER_OTLP_ENDPOINT empty"
            )
