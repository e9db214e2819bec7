"""Read YAML that may hold anything: in bounded time, and with errors that don't show its text, which may hold a key."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from langgraph_router_r1.secret_text import MAX_DEPTH

MAX_YAML_NODES = 50_000
MAX_NUMBER_CHARS = 100

_QUOTED = re.compile(r"""(?<= )(['"])(?!<).{2,}\1""")


def load(text: str) -> tuple[Any, str | None]:
    """Return what a text holds, and None; or None, and what is wrong with it.

    Raises:
        RecursionError: It is nested too deeply for the parser.
        ValueError: A number or a date in it is not valid; the parser lets other errors through, too.
    """
    try:
        return yaml.load(text, _Loader), None  # noqa: S506 - it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        # The problem may quote the file: a password that begins with an exclamation mark is a YAML tag.
        problem = _QUOTED.sub("(not shown)", str(error.problem))
        return None, problem + (f" (at line {mark.line + 1}, column {mark.column + 1})" if mark else "")
    except yaml.YAMLError:
        return None, "it holds a character that YAML does not allow"


class _Loader(yaml.SafeLoader):
    """YAML without aliases, of which a few can stand for billions of values, and without a key twice in one table."""

    _nodes = _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:  # an anchor, or an alias
            raise ComposerError(None, None, "anchors and aliases are not allowed", event.start_mark)
        self._nodes += 1
        if self._nodes > MAX_YAML_NODES:
            raise ComposerError(None, None, f"there are more than {MAX_YAML_NODES:,} values", event.start_mark)
        if self._depth > MAX_DEPTH:
            raise ComposerError(None, None, "tables and lists are nested too deep", event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        # Base-60 numbers such as 1:30:00 take time quadratic in their length.
        if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":str") and len(node.value) > MAX_NUMBER_CHARS:
            raise ComposerError(None, None, "a number is too long", node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # else SafeLoader refuses it
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # SafeLoader refuses others
                if key in keys:
                    raise ConstructorError(None, None, "a key stands twice in one table", key_node.start_mark)
                keys.add(key)
        return super().construct_mapping(node, deep)
