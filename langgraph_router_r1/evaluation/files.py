"""Files that survive full disks, killed processes and a second writer.

    with JsonLinesWriter("answers.jsonl") as file:
        file.append({"id": "t1"})

`JsonLinesWriter` appends to a file of JSON objects, one per line. `replace_file` writes a file as a whole, and
`replacing` one that is too large to be in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from filelock import lock_descriptor

from langgraph_router_r1.evaluation.tasks import TaskError


class JsonLinesWriter:
    r"""Appends JSON objects to a file, one per line; no other process can write to the file in the meantime.

    The file holds whole lines, or whole lines and the beginning of one more when the process was killed. The next
    writer removes that beginning when it opens the file. When an object can't be written, because the disk is full for
    instance, it is kept in memory, and the next call of `append`, `flush` or `close` tries again.

    The lock is on the file itself. The operating system releases it when the process ends, however it ends, so there
    is no lock file to remove. Not thread-safe.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory, "answers.jsonl")
        ...     with JsonLinesWriter(path) as file:
        ...         file.append({"id": "t1"})
        ...     path.read_text()
        '{"id": "t1"}\n'
    """

    def __init__(self, path: str | Path, *, sync: bool = True) -> None:
        """Open the file for appending, create it if need be, and lock it.

        Args:
            path: The file; its directory is created too.
            sync: Whether each object is on the disk when `append` returns, so that it survives a power failure. An
                object survives the end of the process in any case.

        Raises:
            TaskError: The file can't be written, or another writer has it open.
        """
        self.path = Path(path)
        self._sync = sync
        self._unwritten = b""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: the position in the file is known after each write.
            self._file = self.path.open("ab+", buffering=0)
        except OSError as error:
            raise TaskError(f"{str(self.path)!r} can't be written: {error.strerror}") from None
        try:
            if not lock_descriptor(self._file.fileno(), blocking=False):
                raise TaskError(
                    f"{str(self.path)!r} is being written by {_holder(self._file.fileno())}: "
                    "wait until it ends, or write to another file"
                )
            self._file.seek(0)
            data = self._file.read()
            self._end = data.rfind(b"\n") + 1
            if _is_whole(data[self._end :]):
                # Only the line break is missing, as editors leave it.
                self._end = len(data)
                self._unwritten = b"\n"
                self.flush()
            self._file.truncate(self._end)
        except OSError as error:
            self._file.close()
            raise TaskError(f"{str(self.path)!r} can't be written: {error.strerror}") from None
        except BaseException:
            self._file.close()
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one object.

        Raises:
            TaskError: It could not be written. It is kept in memory and written with the next one.
        """
        # ASCII: any text can be encoded, a lone surrogate too, and no text contains a line break.
        self._unwritten += (json.dumps(row) + "\n").encode("ascii")
        self.flush()

    def flush(self) -> None:
        """Write the objects that wait in memory.

        Raises:
            TaskError: They could not be written, and still wait.
        """
        if not self._unwritten:
            return
        try:
            # An earlier attempt may have left the beginning of a line.
            self._file.truncate(self._end)
            rest = memoryview(self._unwritten)
            while rest:
                rest = rest[self._file.write(rest) :]
            if self._sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise TaskError(f"{str(self.path)!r} can't be written: {error.strerror}") from None
        self._end += len(self._unwritten)
        self._unwritten = b""

    def clear(self) -> None:
        """Remove all objects from the file, those too that wait in memory.

        Raises:
            TaskError: The file could not be emptied, and is as it was.
        """
        try:
            self._file.truncate(0)
        except OSError as error:
            raise TaskError(f"{str(self.path)!r} can't be written: {error.strerror}") from None
        self._end, self._unwritten = 0, b""

    def close(self) -> None:
        """Write what waits in memory, close the file and release the lock.

        Raises:
            TaskError: Some objects could not be written; they are lost.
        """
        if self._file.closed:
            return
        try:
            self.flush()
        except TaskError as error:
            lost = self._unwritten.count(b"\n")
            raise TaskError(f"{error}; the last {lost} of its lines could not be saved") from None
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def replace_file(path: str | Path, content: str | bytes, *, mode_of: Path | None = None) -> None:
    """Write a file as a whole: a reader sees the old file or the new one, never a part of one.

    Args:
        path: The file, in a directory that exists.
        content: What it is to hold; text is written as UTF-8.
        mode_of: The file whose permissions it gets; by default those of a new file.

    Raises:
        OSError: The file can't be written; it is as it was.
    """
    with replacing(path, mode_of=mode_of) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: str | Path, *, mode_of: Path | None = None) -> Iterator[BinaryIO]:
    """Give a file to write to, which takes the place of another one when the block ends without an error.

    It is the file `.NAME.partial` beside it. If the process is killed, that file stays, and the next call overwrites
    it. Only one process may write the same file at a time. A symbolic link stays one.

    Args:
        path: The file to replace, in a directory that exists.
        mode_of: The file whose permissions it gets; by default those of a new file.

    Raises:
        OSError: The file can't be written; it is as it was.
    """
    path = Path(path).resolve()
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode_of is not None:
            shutil.copymode(mode_of, partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _is_whole(line: bytes) -> bool:
    """Return whether a line without its line break is complete: no beginning of a JSON object is one itself."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _holder(descriptor: int) -> str:
    """Return who has locked an open file, as far as the operating system says: Linux lists locks by inode."""
    with contextlib.suppress(OSError):
        inode = os.fstat(descriptor).st_ino
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            if found := re.search(rf"FLOCK .* (\d+) \w+:\w+:{inode} ", line):
                return f"process {found[1]}"
    return "another process"
