"""The command line: `router-r1`. A module for each group of commands; each adds its commands to `cli`."""

from langgraph_router_r1.cli import ask, bench, profile, serve, server, shadow, stored  # noqa: F401 - they add their commands
from langgraph_router_r1.cli.app import cli, main

__all__ = ["cli", "main"]
