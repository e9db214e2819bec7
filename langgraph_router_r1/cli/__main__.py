"""`python -m langgraph_router_r1.cli`."""

from langgraph_router_r1.cli import main

main()
