"""`router-r1 serve-router`: a vLLM with a router that you trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from langgraph_router_r1.cli.app import cli
from langgraph_router_r1.cli.output import fail, failing_clearly, results_console
from langgraph_router_r1.cli.pool import running
from langgraph_router_r1.engines.base import API_KEY_ENV
from langgraph_router_r1.pocket import pocket_server
from langgraph_router_r1.serving.vllm import VLLMServer


@cli.command()
def serve_router(
    model: Annotated[
        str | None, typer.Option(help="Directory or hub id of the base model; by default the pocket pool's.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="A LoRA adapter as NAME=DIRECTORY; without --model, beside or in place of the pocket pool's."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on the loopback interface; by default a free one.")
    ] = None,
) -> None:
    """Start vLLM with the router, and keep it running until Ctrl-C.

    Its key is the value of ROUTER_R1_API_KEY; when that is not set, a new one is made and shown.
    """
    console = results_console()
    key_is_new = not os.environ.get(API_KEY_ENV)
    adapters = {}
    for entry in adapter or []:
        name, equals, path = entry.partition("=")
        if not name or not equals or not Path(path).is_dir():
            fail(f"--adapter is {entry!r}; it must be NAME=DIRECTORY with a directory that exists")
        if not Path(path, "adapter_config.json").is_file():
            fail(f"--adapter is {entry!r}, and that directory holds no adapter: adapter_config.json is missing")
        adapters[name] = path
    with failing_clearly():
        if model is not None:
            _check_model(model)
        server = VLLMServer(model, adapters=adapters, port=port) if model else pocket_server(named=adapters, port=port)
        with running(server, console):
            served = ", ".join([server.served_name, *server.adapters])
            console.print(f"{server.base_url}  serves: {served}", markup=False)
            if key_is_new:
                console.print(f"Its clients need its key: export {API_KEY_ENV}={server.api_key}", soft_wrap=True)
            console.print("Ctrl-C stops it.")
            try:
                code = server.wait()
            except KeyboardInterrupt:
                return
        fail(f"vLLM ended by itself with code {code}; its log is {server.log_file}")


def _check_model(model: str) -> None:
    """Find out what is wrong with `--model` before vLLM does, half a minute later."""
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, and not in its __all__

    path = Path(model)
    if path.is_absolute() or model.startswith(".") or path.exists():
        if not path.is_dir():
            fail(f"--model is {model!r}, which is no directory")
        if not (path / "config.json").is_file():
            fail(f"--model is {model!r}, and that directory holds no model: config.json is missing")
    else:
        validate_repo_id(model)
