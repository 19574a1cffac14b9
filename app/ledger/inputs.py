"""Files that a job is to read."""

from sqlalchemy import Connection, select

from app.errors import InvalidRequest
from app.ledger.tables import files
from app.schemas.files import Purpose


def check_input(connection: Connection, owner: str, field: str, id: str, purpose: Purpose, now: float) -> None:
    """Raises `InvalidRequest`, which names the field of the request, unless the file is the owner's and was uploaded for this purpose."""
    row = connection.execute(select(files).where(files.c.id == id, files.c.owner == owner, files.c.expires > now)).one_or_none()
    if row is None:
        raise InvalidRequest(f"{field}: there is no file '{id}' of this key", param=field, code="file_not_found")
    if row.purpose != purpose:
        raise InvalidRequest(f"{field}: file '{id}' has the purpose {row.purpose}; it must be {purpose}", param=field)
