"""The real routes over a fake engine, with everything that is observed around them."""

import logging
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from observing import Observed, create_observed

from app.log import JSONFormatter
from serve.observe.logs import request_id


@pytest.fixture
def observed(tiny_folder: Path) -> Iterator[Observed]:
    with create_observed(tiny_folder) as observed:
        yield observed


@pytest.fixture
def json_log() -> Iterator[StringIO]:
    """Everything that is logged, of every level, in the form of a log file."""
    lines, root = StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(lines), root.level
    handler.setFormatter(JSONFormatter(request_id))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)
