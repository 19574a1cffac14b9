"""`POST /admin/estimate`: what a model would take, told by `python -m app.estimate` in a process of its own, as this one has no torch.

It is for admins, as all of /admin: `serve.admission.access` lets them in.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from app.errors import InvalidRequest, NotReady
from app.models.names import is_hub_name
from app.schemas.estimate import Estimate, EstimateRequest
from app.settings import offline_environment
from serve.routes.state import ERROR_RESPONSES

log = logging.getLogger(__name__)

TIMEOUT_S = 120.0
COMMAND = (sys.executable, "-m", "app.estimate", "--json")
AUTO = "auto"  # the default model, as in `model.path`
FAILED = 2  # exit code of a question that cannot be answered


def create_estimate(served: Callable[[], Mapping[str, str]]) -> APIRouter:
    """`served` gives the paths of the models that are served at the moment, by all their names."""
    routes, turn = APIRouter(), asyncio.Lock()  # one at a time: each takes a core and 0.4 GB for some seconds
    errors: dict[int | str, dict[str, Any]] = {status: ERROR_RESPONSES[status] for status in (400, 403, 503)}

    @routes.post("/admin/estimate", tags=["admin"], summary="Memory that a model would take", response_model=Estimate, responses=errors)
    async def estimate(body: EstimateRequest) -> Response:
        """From its config or GGUF header alone; nothing is loaded or downloaded."""
        path = path_of(body.model, served())
        async with turn:
            return Response(await _ask(body, path), media_type="application/json")

    return routes


def path_of(model: str, served: Mapping[str, str]) -> str:
    """The path of a served model, `auto`, or a hub name. Raises `InvalidRequest` for anything else: a request opens no other file."""
    if model in served:
        return served[model]
    if model == AUTO or model in served.values() or (is_hub_name(model) and not Path(model).exists()):
        return model
    raise InvalidRequest(
        f"model: {model!r} is neither served here ({', '.join(served)}) nor a hub name, such as Qwen/Qwen3-0.6B or Qwen/Qwen3-0.6B@main",
        param="model",
    )


async def _ask(body: EstimateRequest, path: str) -> bytes:
    """The answer as JSON. Raises `InvalidRequest` with the command's own sentence."""
    command = [*COMMAND, f"--quantize={body.quantize}", f"--dtype={body.dtype}"]
    command += [f"--cache-dtype={body.cache_dtype}", *([] if body.cache_tokens is None else [f"--cache-tokens={body.cache_tokens}"])]
    command += [] if body.context is None else [f"--context={body.context}"]
    command += [f"--text-window={body.text_window}", f"--slots={body.slots}", *[f"--card={card}" for card in body.cards]]
    command += [] if body.graphs else ["--no-graphs"]
    command += [] if body.fine_tune is None else [f"--fine-tune={body.fine_tune}"]
    pipe = asyncio.subprocess.PIPE
    environment = offline_environment()  # nobody makes this server download
    process = await asyncio.create_subprocess_exec(
        *command, "--", path, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment, cwd=Path(__file__).parents[2]
    )
    try:
        out, error = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    except (TimeoutError, asyncio.CancelledError) as gone:
        process.kill()
        await process.wait()
        if isinstance(gone, asyncio.CancelledError):
            raise
        raise NotReady(f"the estimate took more than {TIMEOUT_S:.0f} s; try again when the machine is less busy") from None
    if process.returncode == FAILED:
        sentence = error.decode(errors="replace").strip().splitlines()[-1].removeprefix("litmus: ")
        raise InvalidRequest(sentence, param="model")
    if not out:
        log.error("the estimate's process ended with %d: %s", process.returncode, (error.decode(errors="replace").splitlines() or [""])[-1])
        raise NotReady("the estimate's process ended without an answer; the server's log says why")
    return out.strip().splitlines()[-1]
