"""The `tidemark` command: what an operator and a newcomer type. Services are started as child processes."""
