"""`POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM has them. For administrators (`serve.admission`)."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from app.schemas import ErrorResponse, LoadAdapterRequest, UnloadAdapterRequest
from serve.routes.admin import ERRORS, audited
from serve.workers.shelf import Shelf

UNLOAD_ERRORS = {**ERRORS, 404: {"model": ErrorResponse, "description": "no such adapter"}}


def create_adapters(shelf: Shelf) -> APIRouter:
    """Routes that refuse unknown fields."""
    routes = APIRouter(tags=["admin"], default_response_class=PlainTextResponse)

    @routes.post("/v1/load_lora_adapter", summary="Serve a LoRA adapter beside its base", responses=ERRORS)
    async def load(body: LoadAdapterRequest, request: Request) -> str:
        """Its name is a model of its own from then on, on the weights of the base. No request waits for it."""
        with audited(request, "load adapter", body.lora_name):
            await asyncio.shield(asyncio.ensure_future(shelf.load(body.lora_name, body.lora_path, body.model)))
        return f"Success: LoRA adapter '{body.lora_name}' added successfully."

    @routes.post("/v1/unload_lora_adapter", summary="Unload a LoRA adapter", responses=UNLOAD_ERRORS)
    async def unload(body: UnloadAdapterRequest, request: Request) -> str:
        """It gets no new requests, and finishes what it has; the answer comes then."""
        with audited(request, "unload adapter", body.lora_name):
            await asyncio.shield(asyncio.ensure_future(shelf.unload(body.lora_name)))
        return f"Success: LoRA adapter '{body.lora_name}' removed successfully."

    return routes
