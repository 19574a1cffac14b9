"""`python -m ui --server URL --port N`: serves the page alone, for a Litmus server that runs elsewhere.

Reads the settings and starts the page; everything else is in the other modules.
"""

import logging
import sys
from collections.abc import Sequence

from app.errors import SetupError
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
    from ui.page import create_page, launch_options

    host, port, server_url = settings.server.host, settings.ui.port, settings.ui.server
    logger.info("serving the page at http://%s:%d for the Litmus server %s", host, port, server_url)
    create_page(server_url).launch(server_name=host, server_port=port, quiet=True, share=False, inbrowser=False, **launch_options())


if __name__ == "__main__":
    main()
