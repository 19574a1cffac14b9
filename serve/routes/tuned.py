"""What fine-tuning has made: put among the models of this server when a worker asks for it, and deleted by its owner."""

import contextlib
from pathlib import Path as FilePath
from typing import Annotated, Protocol

from fastapi import APIRouter, Path, Request, Response

from app.errors import Forbidden, InvalidRequest, NotFound, UnknownModel
from app.ledger.recipe import ADAPTER
from app.schemas.tuning import ModelDeleted
from serve.desk import Desk
from serve.routes.files import is_worker, owner_of
from serve.routes.tuning import JOBS, JobId, route

Name = Annotated[str, Path(max_length=160, examples=["ft:storyteller:alice:7p4lURel"])]


class Shelf(Protocol):
    """Where the server keeps the adapters that it serves."""

    async def keep(self, name: str, path: str, model: str) -> None: ...

    async def unload(self, name: str) -> None: ...

    def inside(self, folder: FilePath) -> list[str]: ...


def add_tuned(routes: APIRouter, desk: Desk, shelf: Shelf | None) -> None:
    @routes.post(f"{JOBS}/{{fine_tuning_job_id}}/serve", include_in_schema=False, status_code=204)
    async def serve(fine_tuning_job_id: JobId, request: Request) -> Response:
        if not is_worker(request):
            raise Forbidden("this is for the server's own workers; a model is served as soon as its job has succeeded")
        tuned = await desk.ask(lambda ledger: ledger.tunings.tuned(fine_tuning_job_id))
        if shelf is None:
            raise InvalidRequest("this server loads no models itself")
        try:
            await shelf.keep(tuned.name, str(desk.folder.run(tuned.id) / ADAPTER), tuned.model)
        except InvalidRequest as error:
            if error.code != "adapter_exists":  # a worker that died asked for it before
                raise
        return Response(status_code=204)

    @routes.delete(**route("/v1/models/{name:path}", "Delete a fine-tuned model of one's own", 404, 409))
    async def delete(name: Name, request: Request) -> ModelDeleted:
        """It and those of its checkpoints that are served finish the requests that they have; then they are gone from the disk. What fails
        on the way can be asked for again.
        """
        from app.ledger.tunings import no_model

        try:
            tuned = await desk.ask(lambda ledger: ledger.tunings.model(owner_of(request), name))
            if not await _unload(shelf, name, desk.folder.run(tuned.id)) and tuned.removed:
                raise no_model(name)
        except NotFound as error:
            raise UnknownModel(error.message, param="model") from None
        await desk.ask(lambda ledger: ledger.tunings.remove_model(tuned.id))
        await desk.run(desk.folder.delete_run, tuned.id)
        return ModelDeleted(id=tuned.name)


async def _unload(shelf: Shelf | None, name: str, folder: FilePath) -> bool:
    """Unload the model and what else is served from its folder. Returns whether there was anything. Raises what `Shelf.unload` does of a
    name that it has.
    """
    if shelf is None:
        return False
    served = False
    for each in dict.fromkeys([name, *shelf.inside(folder)]):
        with contextlib.suppress(NotFound):
            await shelf.unload(each)
            served = True
    return served
