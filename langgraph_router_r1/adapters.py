"""Where the shipped LoRA adapters are: in a distribution of their own, as most users don't need their 38 MB."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "langgraph-router-r1-adapters"
_PACKAGE = "langgraph_router_r1_adapters"


def shipped_adapters(part: str) -> Path:
    """Return the directory of `"pocket"`, `"planner"` or `"evaluation"`, with an adapter in each subdirectory.

    The directory does not exist when the distribution is not installed; see `require_adapters`.
    """
    spec = find_spec(_PACKAGE)
    package = Path(spec.origin).parent if spec and spec.origin else Path(__file__).parents[1] / _PACKAGE
    return package / part


def require_adapters(directory: Path) -> None:
    """Check that a directory of adapters is there.

    Raises:
        ModuleNotFoundError: It would be installed with the adapters, and they are not.
        FileNotFoundError: It is another directory.
    """
    if directory.is_dir():
        return
    if directory.parent.name == _PACKAGE:
        hint = "pip install 'langgraph-router-r1[pocket]'"
        raise ModuleNotFoundError(f"the adapters of {directory.name!r} are in the package {DISTRIBUTION!r}: {hint}")
    raise FileNotFoundError(f"there is no directory of adapters {str(directory)!r}")
