"""An asynchronous client of the API server for what must be fast: many requests at once, and watches."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from testcluster.certificates import KeyPair

CONNECTIONS = 64


class AsyncApi:
    """One user's connections; made inside a running loop."""

    def __init__(self, url: str, authority: Path, pair: KeyPair, agent: str) -> None:
        context = ssl.create_default_context(cafile=str(authority))
        context.load_cert_chain(pair.certificate, pair.key)
        self._session = aiohttp.ClientSession(
            url,
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=context),
            headers={"User-Agent": agent},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()
        await asyncio.sleep(0.1)  # TLS connections say goodbye after `close` has returned

    async def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """One request; {} for an object that is gone or exists already.

        Raises:
            RuntimeError: the API server refuses.
        """
        async with self._session.request(method, path, json=body, headers=headers) as answer:
            content: dict[str, Any] = await answer.json()
            if answer.status in (404, 409):
                return {}
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {content.get('message')}")
            return content

    async def follow(self, path: str, see: Callable[[str, dict[str, Any]], None]) -> None:
        """List and watch for ever; `path` has a query. Every listed object is ADDED again after a break."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                listed = await self.call("GET", path)
                for manifest in listed["items"]:
                    see("ADDED", manifest)
                version = listed["metadata"]["resourceVersion"]
                async for event in self._events(f"{path}&watch=true&resourceVersion={version}"):
                    if event["type"] == "ERROR":
                        break  # too old a version: list again
                    see(event["type"], event["object"])
            await asyncio.sleep(0.1)

    async def _events(self, path: str) -> AsyncIterator[dict[str, Any]]:
        async with self._session.get(path) as answer:
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)
