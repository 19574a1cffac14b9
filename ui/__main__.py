"""`python -m ui --server URL --port N`: the page alone, for a server that runs elsewhere. Assembles; decides nothing."""

import logging
import sys
from collections.abc import Sequence

from app.errors import SetupError
from app.settings import Settings, go_offline_quietly, read

SHORT = {"--server": "--ui.server", "--port": "--ui.port"}
logger = logging.getLogger("ui")


def long_names(arguments: Sequence[str]) -> list[str]:
    """This program's short options in the names of the settings tree."""
    words = (argument.partition("=") for argument in arguments)
    return [SHORT.get(name, name) + equals + value for name, equals, value in words]


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
    try:
        settings = read(long_names(sys.argv[1:]), program="ui")
    except SetupError as error:
        logger.error("%s", error)
        sys.exit(2)
    serve(settings)


def serve(settings: Settings) -> None:
    """Blocks until interrupted. Gradio is imported late: it reads the environment when it is imported."""
    logger.setLevel(settings.server.log_level.upper())
    go_offline_quietly()
    from ui.page import create_page, options

    host, port, server = settings.server.host, settings.ui.port, settings.ui.server
    logger.info("page http://%s:%d for the server %s", host, port, server)
    create_page(server).launch(server_name=host, server_port=port, quiet=True, share=False, inbrowser=False, **options())


if __name__ == "__main__":
    main()
