"""Read a registry file that may hold anything: in bounded time, and without showing its text, which may hold a key."""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
"""Most tables and lists inside one another, and most parts of a dotted key."""
MAX_YAML_NODES = 50_000
MAX_NUMBER_CHARS = 100

_KEY_PART = r"""(?<![\w\\-])(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_DEEP_KEY = re.compile(rf"(?:{_KEY_PART}[ \t]*+\.[ \t]*+){{{MAX_DEPTH}}}")
_QUOTED = re.compile(r"""(?<= )(['"])(?!<).{2,}\1""")


def read(path: Path) -> tuple[Any, str | None]:
    """Return what a `.toml`, `.yaml` or `.yml` file holds, and None; or None, and what is wrong with the file."""
    if path.suffix not in {".toml", ".yaml", ".yml"}:
        return None, "must end in .toml, .yaml or .yml"
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device may never end
            return None, "can't be read: it is not a regular file"
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        return None, f"can't be read: {error.strerror}"
    except ValueError:
        return None, "can't be read: there is a null character in its path"
    if len(content) > MAX_BYTES:
        return None, f"can't be read: it is larger than {MAX_BYTES:,} bytes"
    try:
        text = content.decode("utf-8-sig")
        return (_load_toml if path.suffix == ".toml" else _load_yaml)(text), None
    except UnicodeDecodeError:
        problem = "it is not UTF-8 text"
    except tomllib.TOMLDecodeError as error:
        problem = str(error)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        # The problem may quote the file: a password that begins with an exclamation mark is a YAML tag.
        problem = _QUOTED.sub("(not shown)", str(error.problem))
        problem += f" (at line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    except yaml.YAMLError:
        problem = "it holds a character that YAML does not allow"
    except RecursionError:
        problem = "its tables and lists are nested too deep"
    except Exception:  # noqa: BLE001 - both parsers let errors of some conversions through, of many kinds
        problem = "it holds a number or a date that is not valid"
    return None, f"can't be parsed: {problem}"


def _load_toml(text: str) -> Any:
    # The time that tomllib takes is quadratic in the number of parts of a dotted key.
    if deep := _DEEP_KEY.search(text):
        line = text.count("\n", 0, deep.start()) + 1
        raise tomllib.TOMLDecodeError(f"a key has more than {MAX_DEPTH} parts (at line {line})")
    return tomllib.loads(text)


def _load_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader


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
