"""A Milvus collection by its URL: the connection, retries with backoff, and the embedded server of milvus-lite.

    milvus://HOST[:PORT]/[DATABASE/]COLLECTION          a server; milvus+tls:// for one behind TLS
    milvus-lite://PATH.db/COLLECTION                    a folder beside the program, for tests and trials; PATH may be
                                                        absolute (milvus-lite:///data/shop.db/products)

A user and password, or an API key, come from the environment variable MILVUS_TOKEN ("user:password"), never from the
URL: those end in logs.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from uniecs.errors import BackendError, InputError, MissingExtraError

SCHEMES = ("milvus", "milvus+tls", "milvus-lite")
DEFAULT_PORT = 19530
REQUEST_S = 20.0
ATTEMPTS = 5
FIRST_WAIT_S = 0.2
UNAVAILABLE = 2  # Milvus's own code: the service, or the connection to it

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_lite_users: Counter[str] = Counter()
_lite_lock = threading.Lock()


def is_milvus_url(path: object) -> bool:
    """Whether `path` is one of the URLs of this page, rather than an index folder."""
    return isinstance(path, str) and path.partition("://")[0] in SCHEMES and "://" in path


@dataclass(frozen=True, slots=True)
class Address:
    """Where a collection is: what pymilvus connects to, the database ("" for the default), the collection."""

    url: str
    uri: str
    database: str
    collection: str
    lite: bool

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises `InputError` for a URL of another form."""
        scheme, _, rest = url.partition("://")
        place, _, collection = rest.rpartition("/")
        if not is_milvus_url(url) or not _NAME.fullmatch(collection) or not place:
            raise InputError(
                f"{_redacted(url)!r} is no Milvus URL; expected milvus://host:19530/collection or "
                "milvus-lite://path.db/collection, the collection of letters, digits and underscores"
            )
        if scheme == "milvus-lite":
            if not place.endswith(".db"):
                raise InputError(f"{url!r} names the file {place!r}; milvus-lite wants a name that ends in .db")
            # As milvus-lite names it: two ways to write one path are one server, and end with its last user.
            return cls(url, os.path.abspath(place), "", collection, lite=True)  # noqa: PTH100 (keeps "..")
        if "@" in place:
            raise InputError(f"{_redacted(url)!r} has a password in it; put user:password into MILVUS_TOKEN instead")
        host, _, database = place.partition("/")
        try:
            parts = urlsplit(f"//{host}")
            port = parts.port or DEFAULT_PORT
        except ValueError as error:
            raise InputError(f"{url!r} is no Milvus URL: {error}") from error
        if not parts.hostname or (database and not _NAME.fullmatch(database)):
            raise InputError(f"{url!r} is no Milvus URL; expected milvus://host:19530/[database/]collection")
        name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        web = "https" if scheme == "milvus+tls" else "http"
        return cls(url, f"{web}://{name}:{port}", database, collection, lite=False)


class Connection:
    """Calls about one collection, each tried again while the server says or shows that this may help.

    A call gives up after five attempts of at most 20 s each, with growing, jittered pauses: `BackendError`.
    """

    def __init__(self, address: Address, client: Any) -> None:
        """Not to be called but by `connect` and tests; `client` is a `pymilvus.MilvusClient`."""
        self.address = address
        self._client = client

    def call(self, method: str, **arguments: Any) -> Any:
        """The method of `MilvusClient` on this collection; all that are used here may be repeated without harm."""
        return self.retry(
            method, lambda: getattr(self._client, method)(self.address.collection, timeout=REQUEST_S, **arguments)
        )

    def retry(self, what: str, attempt: Any) -> Any:
        """The result of `attempt()`, tried again on transient errors; raises `BackendError`."""
        return _retry(f"{self.address.url}: {what}", attempt)

    def server_version(self) -> str:
        """Such as "2.6.4"; of milvus-lite "milvus_lite-3.2.2"."""
        return str(self.retry("get_server_version", lambda: self._client.get_server_version(timeout=REQUEST_S)))

    def schema(self) -> Any:
        """An empty `pymilvus.CollectionSchema`."""
        return self._client.create_schema(auto_id=False, enable_dynamic_field=False)

    def index_params(self) -> Any:
        """An empty `pymilvus.IndexParams`."""
        return self._client.prepare_index_params()

    def close(self) -> None:
        """Disconnect; the last user of a milvus-lite file also ends its server."""
        self._client.close()
        if self.address.lite:
            _release_lite(self.address.uri)


def connect(address: Address) -> Connection:
    """Raises `MissingExtraError` without pymilvus or milvus-lite, `BackendError` if the server cannot be reached."""
    try:
        from pymilvus import MilvusClient

        if address.lite:
            import milvus_lite  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"an index in Milvus needs {error.name}: pip install 'uniecs[milvus]'") from error
    token = os.environ.get("MILVUS_TOKEN", "")

    def attempt() -> Any:
        # dedicated: pymilvus keeps shared connections open after close()
        return MilvusClient(address.uri, db_name=address.database, token=token, timeout=REQUEST_S, dedicated=True)

    if not address.lite:
        return Connection(address, _retry(f"{address.url}: connect", attempt))
    with _lite_lock:
        Path(address.uri).parent.mkdir(parents=True, exist_ok=True)
        client = _retry(f"{address.url}: connect (one process at a time may open it)", attempt)
        _lite_users[address.uri] += 1
    return Connection(address, client)


def _release_lite(path: str) -> None:
    from milvus_lite.server_manager import server_manager_instance

    with _lite_lock:
        _lite_users[path] -= 1
        if _lite_users[path] == 0:
            server_manager_instance.release_server(path)


def _retry(what: str, attempt: Any) -> Any:
    import grpc
    from pymilvus.exceptions import MilvusException

    wait_s = FIRST_WAIT_S
    tried = 1
    while True:
        try:
            return attempt()
        except (MilvusException, grpc.RpcError) as error:
            if tried == ATTEMPTS or not _transient(error):
                raise BackendError(f"{what} failed, attempt {tried} of {ATTEMPTS}: {error}") from error
        # Jitter: many clients that one failure hit do not come back all at once.
        time.sleep(wait_s * random.uniform(0.5, 1.5))
        wait_s *= 2
        tried += 1


def _transient(error: Any) -> bool:
    """Whether the same request may succeed later: what the server marks so, rate limits, and a broken connection."""
    import grpc
    from pymilvus.exceptions import ConnectError, ErrorCode, MilvusUnavailableException

    code = error.code() if isinstance(error, grpc.RpcError) else error.code
    status = grpc.StatusCode
    passing = (status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.RESOURCE_EXHAUSTED, status.ABORTED)
    return (
        isinstance(error, (ConnectError, MilvusUnavailableException))
        or bool(getattr(error, "retriable", False))
        or code in (*passing, ErrorCode.RATE_LIMIT, UNAVAILABLE)
    )


def _redacted(url: str) -> str:
    return re.sub(r"://[^/@]*@", "://***@", url)
