"""The consumer group's committed offsets, for display: asked on a side thread, at most every few seconds."""

import logging
import threading

from api.serving import Serving
from tidemark.errors import TidemarkError
from tidemark.settings import Settings
from tidemark.topic import Topics

logger = logging.getLogger(__name__)

EVERY_S = 5.0


class CommittedOffsets:
    """The newest answer; empty until the brokers gave one, and again when they do not answer."""

    def __init__(self, settings: Settings, serving: Serving) -> None:
        self._group = settings.consumer.group
        self._serving = serving
        self._topics = Topics(settings.kafka, timeout_s=5.0)
        self._closing = threading.Event()
        self._found: dict[str, dict[int, int]] = {}
        threading.Thread(target=self._run, name="committed-offsets", daemon=True).start()

    def of(self, collection: str) -> dict[int, int]:
        return self._found.get(collection, {})

    def close(self) -> None:
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(EVERY_S):
            self._found = {name: self._ask(name) for name in self._serving.collections}

    def _ask(self, name: str) -> dict[int, int]:
        served = self._serving.collections[name]
        every = [(served.collection.topic, partition) for partition in served.follower.positions]
        try:
            found = self._topics.committed(self._group, every) if every else {}
        except Exception as error:  # for display only: whatever it is, it is not known
            if not isinstance(error, TidemarkError):
                logger.debug("committed offsets not known: %s", error)
            return {}
        return {partition: offset for (_, partition), offset in found.items()}
