"""What the processes of a command have in common."""

from types import SimpleNamespace

import pytest

from ituning_hf.utils.distributed import OtherProcessError, tell_once


def test_what_every_process_found_is_told_by_the_main_one():
    error = ValueError("3 images could not be read")
    with pytest.raises(ValueError, match=r"^3 images could not be read$") as raised:
        tell_once(SimpleNamespace(is_main_process=True), error)
    assert raised.value is error
    with pytest.raises(OtherProcessError, match=r"^3 images could not be read$") as raised:
        tell_once(SimpleNamespace(is_main_process=False), error)
    assert raised.value.exit_code == 2
