"""The counts that several servers share, in Redis. Imported only where `limits.storage` names one. Knows no limit."""

from typing import Any
from urllib.parse import urlsplit

from limits.aio.storage import RedisStorage
from limits.errors import StorageError
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from app.errors import SetupError
from serve.admission.store import PERIOD_S, Window

TIMEOUT_S = 0.25
PREFIX = "litmus"
FORM = "write redis://host:port, redis://:password@host:port/0, or rediss:// with TLS"
# A key that lives as long as something is owed.
OWE = "redis.call('set', KEYS[1], 1, 'PX', math.max(redis.call('pttl', KEYS[1]), 0) + tonumber(ARGV[1])) return 1"
TRY = "redis.call('set', KEYS[1], 1, 'PX', 1) return 1"  # what a full Redis, a replica and one without scripts refuse


class RedisCounts:
    """Raises `SetupError` for a URI that is none of a Redis."""

    def __init__(self, uri: str) -> None:
        self.place = place_of(uri)
        try:
            retry = AsyncRetry(NoBackoff(), 1)  # once: a connection of the pool may be one that a restarted Redis closed
            client = AsyncRedis.from_url(uri, **_options(), retry=retry)
            client.connection_pool.make_connection()
        except (ValueError, TypeError) as error:
            raise _no_uri() from error
        pool: Any = client.connection_pool
        self._storage = RedisStorage(
            f"async+{uri}", wrap_exceptions=True, implementation="redispy", key_prefix=PREFIX, connection_pool=pool
        )
        self._client, self._owe = client, client.register_script(OWE)

    async def take(self, key: str, cost: int, limit: int) -> bool:
        return await self._storage.acquire_sliding_window_entry(key, limit, PERIOD_S, cost)

    async def owe(self, key: str, seconds: float) -> None:
        try:
            await self._owe([_debt(key)], [round(seconds * 1000)])
        except RedisError as error:
            raise StorageError(error) from error

    async def owed_s(self, key: str) -> float:
        try:
            return max(await self._client.pttl(_debt(key)), 0) / 1000
        except RedisError as error:
            raise StorageError(error) from error

    async def window(self, key: str) -> Window:
        return Window(*await self._storage.get_sliding_window(key, PERIOD_S), await self.owed_s(key))


def problem_of(uri: str) -> Exception | None:
    """Why Redis cannot be used at the moment. Raises `SetupError` for a password that it refuses."""
    client = Redis.from_url(uri, **_options(), retry=Retry(NoBackoff(), 0))
    try:
        client.eval(TRY, 1, f"{PREFIX}:try")
    except AuthenticationError as error:
        raise SetupError(f"setting limits.storage: Redis at {place_of(uri)} refuses the user or the password") from error
    except (RedisError, OSError) as error:
        return error
    finally:
        client.close()
    return None


def place_of(uri: str) -> str:
    """Host and port, without user and password. Raises `SetupError`."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, 6379 if parts.port is None else parts.port
    except ValueError as error:
        raise _no_uri() from error
    if not host:
        raise _no_uri()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _options() -> dict[str, Any]:
    return {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}


def _debt(key: str) -> str:
    return f"{PREFIX}:owed/{key}"


def _no_uri() -> SetupError:
    """Does not quote it: it may hold a password."""
    return SetupError(f"setting limits.storage: this is not the URI of a Redis; {FORM}")
