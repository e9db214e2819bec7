"""Training of the router: run from a clone with the `[train]` extra. Not part of the wheel."""
