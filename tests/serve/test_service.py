"""Who may use the server."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import FACTS

from app.errors import Forbidden
from serve.router import Router
from serve.service import Service


def test_a_banned_user_is_refused_and_nobody_else() -> None:
    service = Service(Router(1, [FACTS.name]), {}, ThreadPoolExecutor(1), frozenset({"mallory"}))
    for user in (None, "", "alice", "Mallory"):
        service.check_user(user)
    with pytest.raises(Forbidden) as refused:
        service.check_user("mallory")
    error = refused.value
    assert (error.status, error.type, error.code, error.param) == (403, "permission_error", "user_banned", "user")
