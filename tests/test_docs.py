"""The code in the documentation runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import pool

DOCS = Path(__file__).parent.parent / "docs"


def code_of(page: str) -> str:
    """Return the Python code of a page, its blocks one after the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL))


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_strategy_and_the_middleware_of_the_documentation_work(
    is_async: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"registry": pool(small="Lima")}
    exec(code_of("extending.md"), names)
    question = {"messages": [("user", "Capital of Peru?")]}
    router = names["router"]
    result = await router.ainvoke(question) if is_async else router.invoke(question)
    assert result["answer"] == "Lima"
    assert result["routing"]["cost_usd"] > 0
    assert capsys.readouterr().out == "small was asked 'Capital of Peru?' and said 'Lima'\n"
