"""A router over any OpenAI-compatible models, from a registry file.

    export OPENAI_API_KEY=...
    python examples/02_openai_pool.py "Who wrote the novel that Blade Runner is based on?"

Who routes is up to `--router`: a chat model that was not trained for it, or a trained router on a vLLM server:

    python examples/02_openai_pool.py --router http://127.0.0.1:8000/v1 --model router --router-price 0 "..."

Not run here with real endpoints: the tests play them.
"""

import argparse
from pathlib import Path

from langchain.chat_models import init_chat_model
from rich.console import Console

from langgraph_router_r1 import ModelRegistry, create_router
from langgraph_router_r1.engines import ChatModelEngine, RouterEngine, VLLMEngine
from langgraph_router_r1.trace import bill_table, printable


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a pool of OpenAI-compatible models through a router.")
    parser.add_argument("question")
    parser.add_argument("--registry", type=Path, default=Path(__file__).parent / "models.toml", help="the models")
    parser.add_argument("--router", default="openai:gpt-4o-mini", help="address of a vLLM, or a chat model's name")
    parser.add_argument("--model", default="router", help="the router's name on its vLLM")
    # The router is a model that costs money too; what gpt-4o-mini writes has this list price, what it reads less.
    parser.add_argument("--router-price", type=float, default=0.6, help="dollars per million of the router's tokens")
    options = parser.parse_args()

    registry = ModelRegistry.from_file(options.registry)
    router = create_router(engine_for(options.router, options.model), registry, router_price=options.router_price)
    result = router.invoke({"messages": [("user", options.question)]})

    console = Console()
    for call in result["routing"]["calls"]:
        said = call["response"] if call["status"] == "ok" else call["reason"]
        console.print(printable(f"{call['model']}: {call['query']}\n  {said}"), markup=False)
    console.print(printable(result["answer"]), style="bold", markup=False)
    console.print(bill_table([result["routing"]], registry))


def engine_for(router: str, model: str) -> RouterEngine:
    """Return the engine for a vLLM's address or for a chat model's name."""
    if router.startswith(("http://", "https://")):
        return VLLMEngine(router, model=model)
    return ChatModelEngine(init_chat_model(router, temperature=0))


if __name__ == "__main__":
    main()
