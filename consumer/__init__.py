"""The indexer service: a consumer-group member that applies records, checkpoints, then commits."""
