"""The exit codes of errors, errors that every process has found, launches that are refused."""

from types import SimpleNamespace

import pytest

from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.training.errors import TrainingError
from ituning_hf.utils.distributed import create_accelerator, raise_on_main
from ituning_hf.utils.errors import OtherProcessError, UserError, WorkError, exit_code_of


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("a setting"), 2),
        (CaptionerError("a captioner"), 2),
        (FileNotFoundError("a file"), 2),
        (ImportError("an extra"), 2),
        (WorkError("a full disk"), 1),
        (TrainingError("NaN"), 1),
        (ModuleNotFoundError("a bug"), None),
        (ValueError("a bug"), None),
        (RuntimeError("a bug"), None),
    ],
)
def test_exit_codes(error: Exception, code: int | None):
    assert exit_code_of(error) == code


def test_the_main_process_raises_what_every_process_has_found():
    error = UserError("3 images could not be read")
    with pytest.raises(UserError, match=r"^3 images could not be read$") as raised:
        raise_on_main(SimpleNamespace(is_main_process=True), error)
    assert raised.value is error
    with pytest.raises(OtherProcessError, match=r"^3 images could not be read$") as raised:
        raise_on_main(SimpleNamespace(is_main_process=False), error)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "ACCELERATE_USE_FSDP is set, and the model cannot be sharded"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "accumulates 4 steps: give --gradient_accumulation"),
    ],
)
def test_an_unsupported_launch_is_refused(monkeypatch, variable: str, value: str, message: str):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message):
        create_accelerator()
