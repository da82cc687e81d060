"""Settings of all tests: one search thread, as in the services, and Hypothesis without deadlines."""

import pytest
from hypothesis import HealthCheck, settings

from tidemark.exact import use_one_thread_per_search

settings.register_profile(
    "tidemark",
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("tidemark")


@pytest.fixture(autouse=True)
def _one_thread_per_search() -> None:
    use_one_thread_per_search()
