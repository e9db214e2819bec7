"""LangGraph's saver for SQLite, such that a run that is cancelled leaves no transaction open."""

from __future__ import annotations

import asyncio
from typing import Any

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from typing_extensions import override


class UncancelledSaver(AsyncSqliteSaver):
    """Ends what it writes even if whoever waits for it is cancelled.

    A write that was cancelled before its commit would keep the database locked until the next one: for ever, on a
    server with nothing else to do.
    """

    @override
    async def aput(self, *arguments: Any, **options: Any) -> Any:
        return await asyncio.shield(super().aput(*arguments, **options))

    @override
    async def aput_writes(self, *arguments: Any, **options: Any) -> None:
        await asyncio.shield(super().aput_writes(*arguments, **options))

    @override
    async def adelete_thread(self, thread_id: str) -> None:
        await asyncio.shield(super().adelete_thread(thread_id))
