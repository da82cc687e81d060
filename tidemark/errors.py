"""The errors an operator or a caller can act on; each class is one decision.

A message names both sides of what disagrees, the coordinates, and what to do. Anything that is not one of
these ends the process: replay from the last checkpoint is the recovery path.
"""


class TidemarkError(Exception):
    """Base of all errors below; its text is shown as it is."""


class BadConfiguration(TidemarkError):
    """A setting is unknown, missing or contradicts another: mend the settings and start again."""


class BadQuery(TidemarkError):
    """A search request that can never succeed as it stands: mend the request."""


class BrokerUnreachable(TidemarkError):
    """No broker answered within the time given: check the address, the network and the security settings."""


class ClientEnded(TidemarkError):
    """The Kafka client of this process takes part no more, for good: start the process again."""


class TopicMissing(TidemarkError):
    """The topic does not exist; only `tidemark up` creates topics."""


class LogGap(TidemarkError):
    """The log no longer holds the records between our position and its start, or ends before our position."""


class TopicReplaced(TidemarkError):
    """The topic is not the one the checkpoint was made from: its id or its cluster differs."""


class CorruptCheckpoint(TidemarkError):
    """A checkpoint file's bytes do not match the manifest."""


class NewerFormat(TidemarkError):
    """A checkpoint is whole, and written by a version of Tidemark that this one cannot read: run that version."""


class CheckpointMismatch(TidemarkError):
    """The checkpoint was made under another configuration: rebuild with `tidemark replay`."""


class StaleOwner(TidemarkError):
    """Another writer has claimed this partition: stop writing it."""


class StoreUnavailable(TidemarkError):
    """The checkpoint store cannot be read or written; nothing is concluded about its contents."""


class StoreFull(StoreUnavailable):
    """The checkpoint store has no room: make some; the write is tried again."""


class FsyncFailed(StoreUnavailable):
    """What was written may not be on the disk: restart this process when the disk is well."""


class NotFreshEnough(TidemarkError):
    """The positions a search asked for were not reached in time."""


class Overloaded(TidemarkError):
    """More work is waiting than the service takes: try again later."""
