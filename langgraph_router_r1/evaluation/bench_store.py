"""The directory of a benchmark's runs: the runs, and a fingerprint of the benchmark that they belong to.

Every run is written as it ends, so that a benchmark that was stopped continues where it was. Runs of another benchmark,
or of another version of this one, are never mixed with its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from langgraph_router_r1.evaluation.bench_file import BenchError
from langgraph_router_r1.evaluation.files import JsonLinesWriter, replace_file
from langgraph_router_r1.evaluation.tasks import json_lines

RUNS_FILE = "runs.jsonl"
SPEC_FILE = "benchmark.json"
CALLS_FILE = "calls.sqlite"


class RunStore:
    """Reads and writes the directory of one benchmark's runs."""

    def __init__(self, output: Path, name: str, fingerprint: Callable[[], dict[str, Any]]) -> None:
        """Take a directory; nothing is read or written yet.

        Args:
            output: The directory.
            name: The benchmark's name, for error messages.
            fingerprint: Returns what runs depend on besides their row: `spec`, `tasks`, `files` and `adapters`.
        """
        self.output, self._name, self._fingerprint = output, name, fingerprint

    @property
    def calls_file(self) -> Path:
        """The cache of routed calls."""
        return self.output / CALLS_FILE

    def finished(
        self, settings: Mapping[str, dict[str, Any]], *, retry_failed: bool = False
    ) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the runs so far, by row and task id.

        Args:
            settings: What the runs of each row depend on, by the row's name.
            retry_failed: Leave out runs in which a model was asked and failed.

        Raises:
            BenchError: The directory holds runs of another benchmark, or of a row whose settings have changed.
        """
        file = self.output / RUNS_FILE
        # A run that has just started has created the file, and no fingerprint yet.
        has_runs = file.exists() and file.stat().st_size > 0
        if not has_runs and not self.calls_file.exists():
            return {}
        if (changed := self._changed()) is not None:
            raise BenchError(
                f"{str(self.output)!r} holds runs of another version of {self._name!r} ({changed}): "
                "remove it, or give another --output"
            )
        # Where there are two of a task, the later one is a second try.
        lines = json_lines(file, may_be_cut_off=True) if file.exists() else ()
        try:
            runs = {(run["row"], run["task_id"]): run for _, run in lines}
        except (KeyError, TypeError):
            raise BenchError(f"{str(file)!r} holds something else than runs: give another --output") from None
        for (name, _), run in runs.items():
            if name in settings and run.get("settings") != settings[name]:
                raise BenchError(
                    f"{str(file)!r} holds runs of another row {name!r} ({run.get('settings')} instead of "
                    f"{settings[name]}): "
                    "give this one a 'name' of its own, or remove the lines of that one"
                )
        if retry_failed:
            runs = {key: run for key, run in runs.items() if all(call["status"] != "error" for call in run["calls"])}
        return runs

    def writer(self) -> JsonLinesWriter:
        """Open the file of runs; no other process can write it until it is closed.

        Raises:
            TaskError: The file can't be written, or another process writes it.
        """
        # Not synced: a run that a power failure took is made again, with the replies in the cache.
        return JsonLinesWriter(self.output / RUNS_FILE, sync=False)

    def write_fingerprint(self) -> None:
        """Write the fingerprint, with the adapters of rows that are gone: their runs stay, and the rows may return."""
        now, file = self._fingerprint(), self.output / SPEC_FILE
        known = json.loads(file.read_text(encoding="utf-8")).get("adapters", {}) if file.exists() else {}
        replace_file(file, json.dumps({**now, "adapters": {**known, **now["adapters"]}}, indent=2))

    def _changed(self) -> str | None:
        """Return what differs from when the first run was made, None when nothing does."""
        file = self.output / SPEC_FILE
        try:
            then, now = json.loads(file.read_text(encoding="utf-8")), self._fingerprint()
        except OSError as error:
            return f"{SPEC_FILE} can't be read: {error.strerror}"
        except (ValueError, RecursionError) as error:
            return f"{SPEC_FILE} can't be read: {error}"
        if not isinstance(then, dict):
            return f"{SPEC_FILE} holds a {type(then).__name__} and must hold an object"
        for part in ("spec", "tasks", "files"):
            if then.get(part) != now[part]:
                return f"its {part} differ"
        # A row that was added may bring an adapter.
        known = then.get("adapters", {})
        newer = [name for name, digest in now["adapters"].items() if known.get(name, digest) != digest]
        return f"the adapter {newer[0]!r} differs" if newer else None
