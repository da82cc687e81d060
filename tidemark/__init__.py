"""Tidemark's view: a vector index that is a materialised view of one Kafka topic partition.

Both services use this package: the consumer applies records to a `view.View` and checkpoints it, the api
follows the same log with the same code and searches it. Start reading at `view.py`; ARCHITECTURE.md has
the picture. This package knows nothing of HTTP and nothing of metrics.
"""

__version__ = "0.1.0"
