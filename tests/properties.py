"""How much a property is tried: the same few examples in every ordinary run, many new ones in the long form.

A property test is one function with two forms. Under `-m stress` each counts as a stress test, and tries the
second number of examples, another draw each time; otherwise the first number, always the same ones.
"""

import re

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

SHORT, LONG = 100, 2000  # examples of a property that says nothing of its own

# No deadline, and no complaint of slowness: other work on the machine is no fault of the code. Fixtures are
# made once for all examples of a test: `faults` is to gather what all of them did.
_FORMS = settings(
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("short", _FORMS, max_examples=SHORT, derandomize=True)
settings.register_profile("long", _FORMS, max_examples=LONG)


def choose_form(config: pytest.Config) -> None:
    """Choose by the run's marks; to be called before any test is imported."""
    wanted = re.search(r"(?<!not )\bstress\b", config.option.markexpr)
    settings.load_profile("long" if wanted else "short")


def mark_long_forms(items: list[pytest.Item]) -> None:
    """Let `-m stress` select the property tests."""
    if is_long():
        for item in items:
            if is_hypothesis_test(getattr(item, "obj", None)):
                item.add_marker("stress")


def examples(short: int, long: int) -> settings:
    """Say how many examples a property is worth: as a decorator below which stands `given`."""
    return settings(max_examples=long if is_long() else short)


def is_long() -> bool:
    """Tell whether this run is of the long forms."""
    return settings.get_current_profile_name() == "long"
