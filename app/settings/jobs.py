"""The group of settings that says where files and batches are kept, and how their workers run."""

from ipaddress import ip_address
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from app.settings.group import Filled, Group

FILESYSTEM = "filesystem"
SQLITE_FILE = "jobs.db"


class JobSettings(Group):
    enabled: bool = Field(True, description="serve /v1/files, /v1/batches and /v1/fine_tuning/jobs")
    folder: Filled = Field(
        ".litmus/jobs", description="folder of the uploaded files, their answers and, where it is SQLite, the table of jobs"
    )
    database: str | None = Field(
        None,
        repr=False,
        pattern=r"^postgresql://\S+$",
        description="the table of jobs for workers on several machines, postgresql://user:password@host/name; a SQLite file in the folder "
        "when not set",
    )
    broker: str = Field(
        FILESYSTEM,
        repr=False,
        pattern=rf"^({FILESYSTEM}|rediss?://\S+)$",
        description="what wakes idle workers: filesystem, in the folder, or redis://:password@host:6379 for workers on several machines",
    )
    worker: bool = Field(
        True,
        description="start a worker beside the server while there are batches or fine-tuning jobs; if off, only `python -m jobs` runs them",
    )
    server: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="only for `python -m jobs`: URL of the server; the one of server.port on this machine when not set",
    )
    secret: SecretStr | None = Field(
        None,
        min_length=32,
        description="by which the server knows its workers, 32 characters or more; a random one in the folder when not set",
    )
    lines_at_once: int = Field(8, ge=1, le=1024, description="lines that a worker has in flight at the server")
    lines_per_task: int = Field(500, ge=1, le=50_000, description="lines of a batch that one worker takes at a time")
    line_timeout_s: float = Field(600, gt=0, le=86_400, description="seconds that the answer to a line may take, three times at most")
    lease_s: float = Field(30, ge=1, le=3600, description="seconds without a sign of life after which a worker's task goes to another one")
    grace_s: float = Field(10, ge=0, le=3600, description="seconds that lines in flight have to finish when a worker is stopped")
    max_file_bytes: int = Field(200_000_000, ge=1024, description="size of an uploaded file; a larger one is refused while it comes in")
    max_stored_bytes: int = Field(10_000_000_000, ge=1024, description="bytes of all files of one key; more are refused")
    max_lines: int = Field(50_000, ge=1, description="lines of a batch")
    max_batches: int = Field(100, ge=1, description="batches of one key that have not ended; more are refused with 429")
    max_tunings: int = Field(10, ge=1, description="fine-tuning jobs of one key that have not ended; more are refused with 429")
    train: bool | None = Field(
        None,
        description="run fine-tuning jobs in a process beside the worker, which needs the folder and the weights of the server; when not "
        "set: yes, unless jobs.server is set",
    )
    train_threads: int | None = Field(
        None, ge=1, le=1024, description="threads of a fine-tuning process; half of the processor's when not set"
    )
    train_nice: int = Field(
        19, ge=0, le=19, description="how far a fine-tuning process gives way to others on the processor; 19 takes what they leave"
    )
    file_days: int = Field(30, ge=1, le=3650, description="days after which a file is deleted that names no other time")

    @property
    def database_url(self) -> str:
        """As SQLAlchemy writes it."""
        if self.database is not None:
            return self.database.replace("postgresql://", "postgresql+pg8000://", 1)
        return f"sqlite:///{Path(self.folder).absolute() / SQLITE_FILE}"

    @property
    def trains(self) -> bool:
        return self.server is None if self.train is None else self.train

    @property
    def uses_redis(self) -> bool:
        return self.broker != FILESYSTEM

    @model_validator(mode="after")
    def _share_the_table(self) -> Self:
        """Workers on other machines cannot open a file of this one."""
        if self.database is not None:
            return self
        for setting, url in (("jobs.broker", self.broker if self.uses_redis else None), ("jobs.server", self.server)):
            host = urlsplit(url).hostname if url else None
            if host is not None and not is_local(host):
                raise ValueError(
                    f"{setting} is on {host}, so workers run on several machines, but the table of jobs is a SQLite file, which they "
                    "cannot share: set jobs.database to postgresql://user:password@host/name"
                )
        return self


def is_local(host: str) -> bool:
    """Whether a host is this machine, as far as its name says so."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
