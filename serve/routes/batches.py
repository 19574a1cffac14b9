"""`/v1/batches`: OpenAI's. A batch is a row in a table when its request is answered; workers find it there."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request

from app.schemas.batches import Batch, BatchList, BatchRequest
from serve.desk import Desk
from serve.routes.files import owner_of, responses_of
from serve.routes.state import ERROR_RESPONSES, Responses

ERRORS: Responses = {
    400: ERROR_RESPONSES[400],
    404: {**ERROR_RESPONSES[404], "description": "no such batch of this key"},
    409: {**ERROR_RESPONSES[400], "description": "the batch has ended, or its Idempotency-Key came with another body"},
    413: ERROR_RESPONSES[413],
    415: ERROR_RESPONSES[415],
    429: {**ERROR_RESPONSES[429], "description": "as many batches of this key are unfinished as may be"},
    503: {**ERROR_RESPONSES[503], "description": "the table of jobs does not answer"},
    507: {**ERROR_RESPONSES[503], "description": "the server's disk is full"},
}
BatchId = Annotated[str, Path(max_length=64, examples=["batch_abc123"])]
Key = Annotated[str | None, Header(max_length=255, description="the same key and body again: the same batch, not a second one")]


def add_batches(routes: APIRouter, desk: Desk) -> None:
    errors = partial(responses_of, ERRORS)

    @routes.post("/v1/batches", tags=["batches"], summary="Run the lines of a file", responses=errors(400, 409, 413, 415, 429, 503, 507))
    async def create(body: BatchRequest, request: Request, idempotency_key: Key = None) -> Batch:
        batch = await desk.ask(lambda ledger: ledger.batches.create(owner_of(request), body, idempotency_key))
        desk.called.set()
        return batch

    @routes.get("/v1/batches", tags=["batches"], summary="The batches of this key, the latest first", responses=errors(400, 404, 503))
    async def listed(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(max_length=64, description="the id of the last batch of the page before")] = None,
    ) -> BatchList:
        from app.ledger.listing import Page

        return await desk.ask(lambda ledger: ledger.batches.listed(owner_of(request), Page(limit, after)))

    @routes.get("/v1/batches/{batch_id}", tags=["batches"], summary="How far a batch is", responses=errors(400, 404, 503))
    async def retrieve(batch_id: BatchId, request: Request) -> Batch:
        return await desk.ask(lambda ledger: ledger.batches.get(owner_of(request), batch_id))

    @routes.post("/v1/batches/{batch_id}/cancel", tags=["batches"], summary="End a batch early", responses=errors(400, 404, 409, 503, 507))
    async def cancel(batch_id: BatchId, request: Request) -> Batch:
        """What is answered by then is in its output file; the other lines are in its error file."""
        batch = await desk.ask(lambda ledger: ledger.batches.cancel(owner_of(request), batch_id))
        desk.called.set()
        return batch
