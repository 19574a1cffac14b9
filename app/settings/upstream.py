"""The settings of a model that another OpenAI-compatible server answers for. Knows no HTTP client."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from app.settings.group import Group

SERVER = re.compile(r"(https?://([a-zA-Z0-9._-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?(/[\w.~-]+)*?)(/v1)?/*")


def base_url(text: str) -> str:
    """The URL without `/v1` at its end. Raises `ValueError` for what is no plain URL, without quoting it: it may hold a password."""
    found = SERVER.fullmatch(text)
    if found is None:
        raise ValueError(
            "this is not the URL of a server: write http://host:port or https://host/v1, without a user, a password or a query; "
            "upstream_key is for a key"
        )
    return found[1]


class UpstreamFields(Group):
    """Without `upstream`, none of the others may be set."""

    name: str | None = Field(None, description="name of the model in the API; the last part of the path when not set")
    upstream: Annotated[str, AfterValidator(base_url)] | None = Field(
        None,
        description="another OpenAI-compatible server that answers for this model, such as http://10.0.0.7:8000; nothing is loaded here "
        "then, and the settings above are not for it; several entries with one name share its requests",
    )
    upstream_model: str | None = Field(
        None, min_length=1, description="the model's name at the upstream; when not set, the same name, or the only one that it has"
    )
    upstream_key: SecretStr | None = Field(
        None, description="key that the upstream asks for; $NAME takes it from the environment variable NAME"
    )
    upstream_concurrency: int = Field(
        64, ge=1, le=4096, description="requests that the upstream gets at once; more wait here, as queue.max_waiting allows"
    )
    upstream_connect_s: float = Field(5, gt=0, le=600, description="seconds that a connection to the upstream may take")
    upstream_timeout_s: float = Field(
        600, gt=0, le=86_400, description="seconds without a byte from the upstream, after which a request to it fails"
    )

    @model_validator(mode="after")
    def _check_upstream(self) -> Self:
        given, ours = self.model_fields_set - {"name", "aliases"}, set(UpstreamFields.model_fields)
        if getattr(self, "path", None) == "":  # that of a further model without one
            given -= {"path"}
        if self.upstream is None and given & ours:
            raise ValueError(f"{min(given & ours)} is only for a model with an upstream")
        if self.upstream is not None and given - ours:
            raise ValueError(f"{min(given - ours)} is for a model that is loaded here, and this one has an upstream; leave it out")
        if self.upstream is not None and not self.upstream_name:
            raise ValueError("a model with an upstream needs a name")
        return self

    @property
    def upstream_name(self) -> str:
        """The name under which the model is served here."""
        return self.name or self.upstream_model or ""


def may_share_a_name(earlier: UpstreamFields, later: UpstreamFields) -> bool:
    """Whether two entries may have one name: upstreams share it. Raises `ValueError` for an upstream beside a model that is loaded here."""
    if (earlier.upstream is None) != (later.upstream is None):
        raise ValueError(
            f"two models are named '{later.name or earlier.name}': one is loaded here, an upstream answers for the other. Their answers "
            "and scores may differ, so give one of them another name"
        )
    return earlier.upstream is not None
