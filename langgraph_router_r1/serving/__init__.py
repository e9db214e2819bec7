"""Servers: a local vLLM for the router's tokens."""
