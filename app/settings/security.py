"""The group of settings that says who may call the server, from where, and what they may load."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from app.settings.group import Filled, Group

BROWSER_ORIGIN = re.compile(r"\*|https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?")
HOST_NAME = re.compile(r"[a-z0-9.-]+|\[[0-9a-f:]+\]")


def _origin(text: str) -> str:
    """Accepts an origin as browsers send it; any other text could never match."""
    if not BROWSER_ORIGIN.fullmatch(text):
        raise ValueError(
            f"{text!r} is not an origin: write scheme and host in lower case, such as https://example.org or http://localhost:3000, "
            "and nothing after them"
        )
    return text


def _host(text: str) -> str:
    """Accepts a host name, or an IP address, as it stands in a URL but without a port."""
    if not HOST_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a host name: write it in lower case and without a port, such as litmus.example.org")
    return text


class SecuritySettings(Group):
    cors_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        (), description="origins whose web pages may call the API, such as https://example.org; * allows all"
    )
    banned_users: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="values of the request field `user` that are refused with 403"
    )
    keys_file: Filled | None = Field(
        None,
        description="file with one key a line, written by `python -m serve.keys new`; with it, or with keys, every request needs a key",
    )
    keys: tuple[str, ...] = Field((), repr=False, description="further keys: lines as in the keys file")
    bans_file: Filled | None = Field(None, description="YAML file of banned users, banned keys and blocked content; a change is noticed")
    hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        (), description="further host names under which browsers reach this server, such as litmus.example.org behind a proxy"
    )

    model_paths: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        None,
        description="what POST /admin/models may load: folders with all that is in them; hub: any hub name; cache: hub names that are in "
        "the hub's cache; when not set, the folders of the models in the settings, and cache",
    )

    @property
    def needs_keys(self) -> bool:
        return bool(self.keys or self.keys_file is not None)
