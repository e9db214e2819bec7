"""Read a registry file that may hold anything: in bounded time, and without showing its text, which may hold a key."""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from langgraph_router_r1.secret_text import MAX_DEPTH

MAX_BYTES = 1_000_000

_KEY_PART = r"""(?<![\w\\-])(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_DEEP_KEY = re.compile(rf"(?:{_KEY_PART}[ \t]*+\.[ \t]*+){{{MAX_DEPTH}}}")


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
        if path.suffix == ".toml":
            return _load_toml(text), None
        # Only where there is YAML: importing its parser takes a third of the time that this package's import takes.
        from langgraph_router_r1.registry_yaml import load

        data, problem = load(text)
        if problem is None:
            return data, None
    except UnicodeDecodeError:
        problem = "it is not UTF-8 text"
    except tomllib.TOMLDecodeError as error:
        problem = str(error)
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
