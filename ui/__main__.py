"""`python -m ui --server URL --port N`: serves the page alone, for a Litmus server that runs elsewhere.

Reads the settings and starts the page; everything else is in the other modules.
"""

import logging
import sys
from collections.abc import Sequence

from app.errors import SetupError
from app.neighbours import Neighbours
from app.settings import Settings, prepare_environment, read

SHORT_OPTIONS = {"--server": "--ui.server", "--port": "--ui.port"}
logger = logging.getLogger("ui")


def expand_short_options(argv: Sequence[str]) -> list[str]:
    """Replaces this program's short options by their names in the settings tree: `--port=80` becomes `--ui.port=80`."""
    split_args = (arg.partition("=") for arg in argv)
    return [SHORT_OPTIONS.get(name, name) + equals + value for name, equals, value in split_args]


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
    try:
        settings = read(expand_short_options(sys.argv[1:]), program="ui")
    except SetupError as error:
        logger.error("%s", error)
        sys.exit(2)
    serve_page(settings)


def serve_page(settings: Settings) -> None:
    """Serves the page and blocks until interrupted. Gradio reads the environment on import, so it is imported after that is set."""
    logger.setLevel(settings.server.log_level.upper())
    prepare_environment()
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import RedirectResponse

    from ui.flags.file import flag_file
    from ui.page import PATH, mount
    from ui.visitors import Visitors

    host, port, server_url, key = settings.server.host, settings.ui.port, settings.ui.server, settings.ui.key
    app = FastAPI(openapi_url=None)
    app.add_api_route("/", lambda: RedirectResponse(PATH))
    app.add_api_route("/favicon.ico", lambda: RedirectResponse(f"{PATH}/favicon.ico"))
    visitors = Visitors(server_url, login=None, key=key.get_secret_value() if key else None)
    mount(app, visitors, neighbours_of(settings), flag_file(settings.ui.flags), settings.server.max_body_bytes)
    logger.info("serving the page at http://%s:%d for the Litmus server %s", host, port, server_url)
    uvicorn.run(app, host=host, port=port, log_level="warning")


def neighbours_of(settings: Settings) -> Neighbours | None:
    """Which Host and Origin the page checks: all on this machine's own address; elsewhere its name is known only if the settings say it."""
    if settings.server.host != "127.0.0.1" and not settings.security.hosts:
        return None
    return Neighbours(settings.security.hosts, settings.security.cors_origins)


if __name__ == "__main__":
    main()
