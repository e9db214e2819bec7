"""The directory of a benchmark's runs: the runs, and a fingerprint of the benchmark that they belong to.

Every run is written to `runs.jsonl` as it ends, so that a benchmark that was stopped continues where it was. When all
are made, they move to `runs.jsonl.zst`: the records of many runs repeat each other, and compressed they take a few
percent of the space. `zstdcat` shows that file as text. Runs of another benchmark, or of another version of this one,
are never mixed with its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zstandard

from langgraph_router_r1.evaluation.bench_file import BenchError
from langgraph_router_r1.evaluation.files import JsonLinesWriter, replace_file
from langgraph_router_r1.evaluation.tasks import TaskError, json_lines

RUNS_FILE = "runs.jsonl"
PACKED_FILE = "runs.jsonl.zst"
SPEC_FILE = "benchmark.json"
CALLS_FILE = "calls.sqlite"

FORMAT = 2
"""Version of the run files; 2 holds each run's `RunRecord`."""

# A window of 128 MiB finds what a run shares with one of the same question in another row.
_COMPRESSION = zstandard.ZstdCompressionParameters.from_level(6, window_log=27, enable_ldm=True)


def read_runs(output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return all runs of a benchmark's directory, by row and task id.

    Example:
        >>> runs = read_runs(Path("runs/bench/nq_recorded"))                    # doctest: +SKIP
        >>> RunRecord.model_validate(runs["best", "nq-1"]["record"])            # doctest: +SKIP

    Args:
        output: The directory.

    Raises:
        BenchError: It holds something else.
        TaskError: A file can't be read.
    """
    runs: dict[tuple[str, str], dict[str, Any]] = {}
    for file in _run_files(output):
        try:
            # Where there are two of a task, the later one is a second try.
            runs |= {(run["row"], run["task_id"]): run for _, run in json_lines(file, may_be_cut_off=True)}
        except (KeyError, TypeError):
            raise BenchError(f"{str(file)!r} holds something else than runs: give another --output") from None
    return runs


def _run_files(output: Path) -> list[Path]:
    """Return the files that hold runs, older runs first."""
    files = [output / PACKED_FILE, output / RUNS_FILE]
    # A benchmark that has just started has created the file, and no fingerprint yet.
    return [file for file in files if file.exists() and file.stat().st_size > 0]


def _has_failed(run: Mapping[str, Any]) -> bool:
    """Return whether a model, or the judge, was asked and failed."""
    return bool(run.get("judge_failed")) or any(call["status"] == "error" for call in run["record"]["calls"])


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
        if not _run_files(self.output) and not self.calls_file.exists():
            return {}
        if (changed := self._changed()) is not None:
            raise BenchError(
                f"{str(self.output)!r} holds runs of another version of {self._name!r} ({changed}): "
                "remove it, or give another --output"
            )
        runs = read_runs(self.output)
        for (name, _), run in runs.items():
            if name in settings and run.get("settings") != settings[name]:
                raise BenchError(
                    f"{str(self.output)!r} holds runs of another row {name!r} ({run.get('settings')} instead of "
                    f"{settings[name]}): "
                    "give this one a 'name' of its own, or remove the lines of that one"
                )
        if retry_failed:
            runs = {key: run for key, run in runs.items() if not _has_failed(run)}
        return runs

    @property
    def is_packed(self) -> bool:
        """Whether there is no run that is not compressed."""
        return self.output / RUNS_FILE not in _run_files(self.output)

    def writer(self) -> JsonLinesWriter:
        """Open the file of runs; no other process can write it until it is closed.

        Raises:
            TaskError: The file can't be written, or another process writes it.
        """
        # Not synced: a run that a power failure took is made again, with the replies in the cache.
        return JsonLinesWriter(self.output / RUNS_FILE, sync=False)

    def pack(self, writer: JsonLinesWriter) -> None:
        """Move all runs to the compressed file; killed in between, it leaves some in both, which does no harm.

        Args:
            writer: The open file of runs, so that no other process writes meanwhile.

        Raises:
            TaskError: A file can't be written. What was run stays.
        """
        writer.flush()
        packed = self.output / PACKED_FILE
        text = "".join(json.dumps(run) + "\n" for run in read_runs(self.output).values()).encode("ascii")
        try:
            replace_file(packed, zstandard.ZstdCompressor(compression_params=_COMPRESSION).compress(text))
        except OSError as error:
            raise TaskError(f"{str(packed)!r} can't be written: {error.strerror}") from None
        writer.clear()

    def write_fingerprint(self) -> None:
        """Write the fingerprint, with the adapters of rows that are gone: their runs stay, and the rows may return."""
        now, file = self._fingerprint(), self.output / SPEC_FILE
        known = json.loads(file.read_text(encoding="utf-8")).get("adapters", {}) if file.exists() else {}
        now |= {"format": FORMAT, "adapters": {**known, **now["adapters"]}}
        replace_file(file, json.dumps(now, indent=2))

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
        if (version := then.get("format", 1)) != FORMAT:
            return f"their format is {version!r} and must be {FORMAT}"
        for part in ("spec", "tasks", "files"):
            if then.get(part) != now[part]:
                return f"its {part} differ"
        # A row that was added may bring an adapter.
        known = then.get("adapters", {})
        newer = [name for name, digest in now["adapters"].items() if known.get(name, digest) != digest]
        return f"the adapter {newer[0]!r} differs" if newer else None
