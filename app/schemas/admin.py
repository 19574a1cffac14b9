"""Bodies of /admin/models: the versions of the models that a server has, and how each of them stands."""

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from app.schemas.wire import Wire

AdminStatus = Literal["served", "loading", "draining", "unloaded", "failed"]
EXAMPLE: JsonDict = {
    "id": "storyteller",
    "path": "models/storyteller",
    "revision": "e1d53ff5cc49",
    "status": "served",
    "message": None,
    "loaded": 1.0,
    "in_flight": 3,
    "bytes": 412090368,
}


class AdminModel(Wire):
    """One version of a model. While another one is loaded, drains or has failed, the same id is listed twice, what is served first."""

    id: str
    path: str
    revision: str | None = Field(description="of the weights, as in /v1/models; null until it has been loaded once")
    status: AdminStatus = Field(
        description="served: it takes requests; loading: it will; draining: it finishes what it has; unloaded: it was idle, and a request "
        "loads it, or it was deleted; failed: it could not be loaded"
    )
    message: str | None = Field(description="why it stands so")
    loaded: float | None = Field(
        ge=0, le=1, description="share of its loading that is done, by the time that it took before; null where none is known"
    )
    in_flight: int = Field(description="answers and texts that it has")
    bytes: int | None = Field(description="resident memory of its processes; null without any")

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})


class AdminModelList(Wire):
    object: Literal["list"] = "list"
    data: list[AdminModel]
