"""The folder of the files: each has its id as its name, so that nothing of a request becomes a path. Its owner alone can read it."""

import contextlib
import os
import re
import secrets
import shutil
import time
import uuid
from pathlib import Path

from app.errors import SetupError

OWNER_ONLY_FOLDER, OWNER_ONLY_FILE = 0o700, 0o600
ID = re.compile(r"file-[0-9a-f]{32}")
RUN_ID = re.compile(r"ftjob-[0-9a-f]{32}")
UNFINISHED = ".part"
UNFINISHED_S = 3600.0  # after which a file without a row is left over from a process that died
SECRET_BYTES = 32


class Folder:
    def __init__(self, path: str) -> None:
        self.path = Path(path).absolute()
        self._files, self._runs = self.path / "files", self.path / "tuning"

    def make(self) -> None:
        """Raises `OSError`."""
        for folder in (self.path, self._files):
            folder.mkdir(mode=OWNER_ONLY_FOLDER, parents=True, exist_ok=True)

    def file(self, id: str) -> Path:
        assert ID.fullmatch(id), "ids are made here"
        return self._files / id

    def run(self, id: str) -> Path:
        """The folder of a fine-tuning run: what it needs while it runs, then the adapter that it has made."""
        assert RUN_ID.fullmatch(id), "ids are made here"
        return self._runs / id

    def runs(self) -> list[str]:
        return [path.name for path in self._runs.iterdir() if RUN_ID.fullmatch(path.name)] if self._runs.exists() else []

    def delete_run(self, id: str) -> None:
        shutil.rmtree(self.run(id), ignore_errors=True)

    def draft(self) -> "Draft":
        """A new file that is not finished. Raises `OSError`."""
        self.make()
        return Draft(self._files)

    def delete(self, id: str) -> None:
        self.file(id).unlink(missing_ok=True)

    def leftovers(self) -> list[str]:
        """Ids of the files that are old enough to have a row. Unfinished ones of that age are deleted."""
        if not self._files.exists():
            return []
        old = [path for path in self._files.iterdir() if _age_s(path) > UNFINISHED_S]
        for path in old:
            if path.suffix == UNFINISHED:
                path.unlink(missing_ok=True)
        return [path.name for path in old if ID.fullmatch(path.name)]

    def secret(self) -> str:
        """By which server and workers of this machine know each other; made by whoever asks first. Raises `SetupError`."""
        path = self.path / "secret"
        try:
            self.make()
            with contextlib.suppress(FileExistsError), open(path, "x", opener=owner_only) as file:
                file.write(secrets.token_urlsafe(SECRET_BYTES))
            for _ in range(100):
                if secret := path.read_text():
                    return secret
                time.sleep(0.01)  # another process is about to write it
        except OSError as error:
            raise SetupError(f"jobs.folder: {self.path} cannot be used ({error.strerror}); name a folder that can be written") from error
        raise SetupError(f"jobs.folder: {path} is empty; delete it")


class Draft:
    """A file that is being written: under its id once it is whole and on the disk, otherwise gone."""

    def __init__(self, folder: Path) -> None:
        self.id = f"file-{uuid.uuid4().hex}"
        self.bytes = 0
        self._folder, self._path = folder, folder / f"{self.id}{UNFINISHED}"
        self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY_FILE), "wb", buffering=0)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.bytes += len(data)

    def keep(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.rename(self._folder / self.id)
        _sync(self._folder)

    def discard(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, OWNER_ONLY_FILE)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sync(folder: Path) -> None:
    """A renamed file is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
