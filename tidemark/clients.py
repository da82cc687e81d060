"""The operator's librdkafka settings, tried on every kind of client before a service starts.

A mistake in them would else be met by whichever client is made first: in a follower's thread or in an HTTP worker,
which are started again, for ever. No broker is asked, and it takes a few milliseconds. Used by the services' mains.
"""

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from tidemark.errors import BadConfiguration
from tidemark.kafka_settings import Settings, admin_settings, producer_settings
from tidemark.log import Log


def try_settings(settings: Settings, group: str) -> None:
    """Raise BadConfiguration, in the client's words, when one of our clients cannot be made with them."""
    # Quiet: that there is no address would be a warning of each client.
    alone = {"log_level": 0, **{name: value for name, value in settings.items() if name != "bootstrap.servers"}}
    try:
        Log(alone, group).close()
        Producer(producer_settings(alone))
        AdminClient(admin_settings(alone))
    except KafkaException as error:
        raise BadConfiguration(f"[kafka]: {error.args[0].str().strip()}") from None
