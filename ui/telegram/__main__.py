"""`python -m ui.telegram`: the Telegram bot, for a Litmus server that runs elsewhere. Reads the settings and runs it until SIGTERM."""

import logging
import sys

from pydantic import SecretStr
from telegram.error import InvalidToken, TelegramError

from app.errors import SetupError
from app.settings import read
from ui.telegram import log
from ui.telegram.bot import UPDATES, create_application

logger = logging.getLogger("ui.telegram")
FOREVER = -1


def main() -> None:
    log.set_up("info", "text", ())
    try:
        settings = read(sys.argv[1:], program="ui.telegram")
        log.set_up(settings.server.log_level, settings.server.log_format, map(_revealed, (settings.telegram.token, settings.telegram.key)))
        application = create_application(settings.telegram)
    except SetupError as error:
        logger.error("%s", error)
        sys.exit(2)
    try:
        application.run_polling(bootstrap_retries=FOREVER, allowed_updates=UPDATES)
    except InvalidToken:  # whose words hold the token
        logger.error("setting telegram.token: Telegram does not know this token; ask @BotFather for the right one")
        sys.exit(2)
    except TelegramError as error:
        logger.error("the bot cannot go on (%s)", type(error).__name__)
        sys.exit(1)


def _revealed(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""


if __name__ == "__main__":
    main()
