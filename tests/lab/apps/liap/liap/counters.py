"""The Redis of the rate limits: one server, or the primary that sentinels name."""

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


def client(url: str, connections: int) -> Any:
    """`redis://…` and `rediss://…` as redis-py has them, and `rediss+sentinel://USER:PASSWORD@HOST:PORT,…/NAME/DB?…`."""
    import redis.asyncio
    from redis.asyncio.sentinel import Sentinel

    patience = {"socket_timeout": 2, "socket_connect_timeout": 2}
    if "+sentinel://" not in url:
        return redis.asyncio.from_url(url, max_connections=connections, **patience)
    parts = urlsplit(url)
    account, _, hosts = parts.netloc.rpartition("@")
    user, _, password = account.partition(":")
    name, _, database = parts.path.strip("/").partition("/")
    options = dict(parse_qsl(parts.query))
    tls = {"ssl": True, "ssl_ca_certs": options["ssl_ca_certs"]} if parts.scheme.startswith("rediss") else {}
    sentinels = [(host, int(port)) for host, _, port in (one.rpartition(":") for one in hosts.split(","))]
    asked = Sentinel(sentinels, sentinel_kwargs={"password": options.get("sentinel_password"), **tls, **patience})
    return asked.master_for(
        name, username=unquote(user), password=unquote(password), db=int(database or 0), max_connections=connections, **tls, **patience
    )
