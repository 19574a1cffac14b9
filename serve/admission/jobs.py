"""The workers of batches: known by a secret of their own, and let in on behalf of whoever made the batch.

Bans and roles hold for the owner as for any request; limits are counted apart, so that a batch does not use up what its owner may ask for.
"""

import hmac

from starlette.datastructures import Headers

from app.errors import Forbidden, Unauthorized
from app.ledger.folder import Folder
from app.schemas.batches import ENDPOINTS
from app.settings import JobSettings
from serve.admission.keys import Keys

OWNER = "x-litmus-owner"
FILES, TUNING = "/v1/files", "/v1/fine_tuning/jobs"
ASKED = frozenset({*ENDPOINTS, FILES, "/v1/models"})  # by workers


class JobAccess:
    """Looks for the secret when it is first needed: a server that has no batches makes no folder."""

    def __init__(self, settings: JobSettings) -> None:
        self._settings = settings
        self._secret: bytes | None = None

    def owner_of(self, headers: Headers, path: str, keys: Keys | None) -> str | None:
        """On whose behalf a worker asks, empty without keys; None for a request of anybody else. Raises `Unauthorized`, `Forbidden`."""
        owner = headers.get(OWNER)
        if owner is None or not self._settings.enabled:
            return None
        if not hmac.compare_digest(headers.get("authorization", "").encode(), b"Bearer " + self._known_secret()):
            raise Unauthorized(f"the header {OWNER} is for this server's workers, and this is not their secret (jobs.secret)")
        if path not in ASKED and not path.startswith((f"{FILES}/", f"{TUNING}/")):
            raise Forbidden(f"workers do not ask for {path}")
        if keys is not None and not keys.has(owner):
            raise Unauthorized("the key that made this batch is not a key of this server any more", code="owner_gone")
        return owner

    def _known_secret(self) -> bytes:
        if self._secret is None:
            secret = self._settings.secret
            self._secret = (Folder(self._settings.folder).secret() if secret is None else secret.get_secret_value()).encode()
        return self._secret
