"""A served model that thinks before it answers."""

from dataclasses import replace
from typing import Any

import psutil
import pytest
from fakes import FACTS
from thinking import QWEN

from serve.workers.messages import Ready


@pytest.fixture
def thinking(served: Any) -> Any:
    served.tokenizer.base.chat_template = QWEN
    served.router.append([Ready(psutil.Process().pid, 0, replace(FACTS, context=4096)), "OK"])
    return served
