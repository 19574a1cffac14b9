"""`/admin/models`: which versions of which models a server has; load another one, unload. For administrators (`serve.admission`)."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from app.errors import LitmusError
from app.models.names import MODEL_NAME
from app.schemas import AdminModel, AdminModelList, ErrorResponse
from serve.routes.state import ERROR_RESPONSES
from serve.workers.catalog import Catalog
from serve.workers.change import Change, changed

log = logging.getLogger(__name__)

Name = Annotated[str, Path(pattern=MODEL_NAME, description="name of the model in the API", examples=["storyteller"])]
ERRORS: dict[int | str, dict[str, Any]] = {
    **{status: ERROR_RESPONSES[status] for status in (400, 404, 503)},
    403: {"model": ErrorResponse, "description": "a path that may not be loaded, or not an administrator"},
    409: {"model": ErrorResponse, "description": "the model is being changed, is the default one, or does not fit the memory"},
}


def create_admin(catalog: Catalog) -> APIRouter:
    """Routes that refuse unknown fields: a setting with a typo would be left out."""
    admin = APIRouter(tags=["admin"])

    @admin.get("/admin/models", summary="Which versions of the models there are, and how they stand")
    async def models() -> AdminModelList:
        return AdminModelList(data=[version.state() for version in catalog.versions()])

    @admin.post("/admin/models/{name:path}", summary="Load another version of a model, or a new model", status_code=202, responses=ERRORS)
    async def load(name: Name, request: Request, body: Change | None = None) -> AdminModel:
        """The body has the settings (`model.*`) that are to be otherwise than those of the present version; the others stay. With another
        `path`, `observer` and `calibration` do not.

        The present version serves until the new one is loaded. Then it finishes what it has, and is unloaded.
        """
        fields = {} if body is None else body.model_dump(exclude_unset=True)
        with audited(request, "load", name, fields=",".join(sorted(fields))):
            return (await catalog.load(name, partial(changed, name, fields=fields))).state()

    @admin.delete("/admin/models/{name:path}", summary="Unload a model", status_code=202, responses=ERRORS)
    async def unload(
        name: Name, request: Request, default: Annotated[str | None, Query(description="name of the default model from now on")] = None
    ) -> AdminModel:
        """It gets no new requests, finishes what it has, and is unloaded. The default model needs a successor: `?default=NAME`."""
        with audited(request, "unload", name):
            return catalog.unload(name, default).state()

    return admin


@contextmanager
def audited(request: Request, action: str, name: str, **details: str) -> Iterator[None]:
    """Leave a line in the log of who did what, and whether it was refused. No value of a setting, which may be anything."""
    fields = {"action": action, "model": name, "by": request.scope.get("state", {}).get("client") or "local", **details}
    try:
        yield
    except LitmusError as error:
        log.warning("admin", extra={"fields": {**fields, "refused": error.code}})
        raise
    log.info("admin", extra={"fields": fields})
