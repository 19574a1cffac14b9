"""Who may administer through the page: every way to reach it, to a server with keys and to one without."""

import asyncio
from typing import Any

import pytest

from tests.ui.fakelitmus import KEY, Fake
from tests.ui.system.conftest import visit
from ui.client import ServerError
from ui.system.rights import NOT_FROM_HERE, check, may_administer
from ui.visitors import Visitors

WAYS = {
    "here": ("127.0.0.1", {}),
    "here, IPv6": ("::1", {}),
    "elsewhere": ("203.0.113.9", {}),
    "through a proxy": ("127.0.0.1", {"x_forwarded_for": "203.0.113.9"}),
    "through a proxy of the standard": ("127.0.0.1", {"forwarded": "for=203.0.113.9"}),
    "from an address unknown": ("", {}),
}


def coming(way: str, token: str = "") -> Any:
    host, headers = WAYS[way]
    request = visit(host, **headers, cookie=f"litmus_login_8000={token}").request
    request.scope["server"] = ("127.0.0.1", 8000)
    return request


def log_in(visitors: Visitors, key: str) -> str:
    """The token, which is blank where the login is refused."""
    try:
        return asyncio.run(visitors.log_in(key))
    except ServerError:
        return ""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("asks", [False, True], ids=["the setting says it", "the server is asked"])
def test_without_keys_only_this_machine_administers_whatever_key_is_made_up(fake: Fake, asks: bool, way: str):
    visitors = Visitors(fake.url, None if asks else False)
    for token in ("", log_in(visitors, "made-up")):
        assert asyncio.run(may_administer(visitors, coming(way, token))) is way.startswith("here")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("asks", [False, True], ids=["the setting says it", "the server is asked"])
def test_with_keys_the_server_decides_by_the_key_from_wherever_it_comes(fake: Fake, asks: bool, way: str):
    fake.keys = [KEY]
    visitors = Visitors(fake.url, None if asks else True)
    assert log_in(visitors, "made-up") == ""
    for token, may in (("", False), ("guess", False), (log_in(visitors, KEY), True)):
        assert asyncio.run(may_administer(visitors, coming(way, token))) is may


@pytest.mark.parametrize("way", WAYS)
def test_a_login_counts_no_more_when_the_server_has_lost_its_keys(fake: Fake, way: str):
    fake.keys = [KEY]
    visitors = Visitors(fake.url, None)
    token = log_in(visitors, KEY)
    fake.keys = []
    assert asyncio.run(may_administer(visitors, coming(way, token))) is way.startswith("here")


def test_who_may_not_gets_a_sentence(fake: Fake):
    with pytest.raises(ServerError, match=NOT_FROM_HERE[:40]):
        asyncio.run(check(Visitors(fake.url), coming("elsewhere")))
    with pytest.raises(ServerError, match="No Litmus server answers"):
        asyncio.run(check(Visitors("http://127.0.0.1:9", None), coming("here")))


@pytest.mark.parametrize("way", WAYS)
def test_a_key_for_all_visitors_makes_nobody_an_administrator(fake: Fake, way: str):
    fake.keys = [KEY]
    visitors = Visitors(fake.url, None, KEY)
    for token in ("", log_in(visitors, KEY)):
        assert not asyncio.run(may_administer(visitors, coming(way, token)))
