"""Numbers of examples of property tests: few and fixed in the suite, many and random under `-m stress`."""

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

# Other work on the machine must not fail a test, so there is no deadline. The examples share the fixtures.
_COMMON = settings(
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("short", _COMMON, derandomize=True)
settings.register_profile("long", _COMMON)


def load_profile(config: pytest.Config) -> None:
    """Select the profile before the tests are imported."""
    settings.load_profile("long" if config.option.markexpr == "stress" else "short")


def examples(short: int, long: int) -> settings:
    """Set the number of examples in each profile; a decorator above `given`."""
    return settings(max_examples=long if _is_long() else short)


def add_stress_mark(items: list[pytest.Item]) -> None:
    """Include the property tests in `-m stress`."""
    for item in items:
        if _is_long() and is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("stress")


def _is_long() -> bool:
    return settings.get_current_profile_name() == "long"
