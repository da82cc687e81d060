"""Taking over on a side thread, while the partition is revoked."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consumer.take_over import take_over
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection
from tidemark.errors import StaleOwner
from tidemark.generation import Generation
from tidemark.manifest import TopicIdentity
from tidemark.topic_watch import TopicFacts

COLLECTION = Collection("docs", "docs", 4, "l2")
MADE = Generation("g000001", 0, "earliest", COLLECTION.index)


def _watch() -> Any:
    topic, asked_at = TopicIdentity("cluster", "topic", 1), time.monotonic() + 60
    facts = TopicFacts(topic, None, {0: 0}, {0: 0}, {0: 0}, {0: 0}, {}, asked_at, 0, asked_at)
    return SimpleNamespace(facts=facts, error=None, ask_now=lambda: None)


def test_what_was_revoked_while_it_was_loaded_is_not_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revoked = threading.Event()
    late, heir = (Checkpoints(tmp_path, COLLECTION, "g000001", 0) for _ in range(2))
    monkeypatch.setattr(late, "load", lambda: (take_over(COLLECTION, MADE, heir, _watch()), revoked.set(), None)[-1])
    with pytest.raises(StaleOwner, match="revoked"):
        take_over(COLLECTION, MADE, late, _watch(), revoked=revoked)
    assert heir.remove_obsolete() == []
    assert heir.read(heir.versions()[-1]).writer_epoch == heir.epoch == 1
