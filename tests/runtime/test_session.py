"""Tests the sessions that kopf sends its requests with."""

from __future__ import annotations

import asyncio
import dataclasses

from dapt_operator.cluster.kubernetes import Connection
from dapt_operator.runtime.watching.session import login


@dataclasses.dataclass
class Token:
    """An authorization that a test changes."""

    value: str

    def header(self) -> str:
        return self.value

    def renew(self) -> None:
        pass


def test_same_token_gives_the_same_session_and_a_new_one_another() -> None:
    token = Token("Bearer one")

    async def log_in_thrice() -> list[str]:
        log_in = login(Connection("http://127.0.0.1:9", token))
        first, again = log_in(), log_in()
        # kopf takes an equal one as a sign that there is no better one, and pauses.
        assert first == again
        token.value = "Bearer two"
        second = log_in()
        assert second != first
        for session in (first, second):
            await session.aiohttp_session.close()
        return [session.aiohttp_session.headers["Authorization"] for session in (first, second)]

    assert asyncio.run(log_in_thrice()) == ["Bearer one", "Bearer two"]
