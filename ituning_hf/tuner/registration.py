"""Registers the method with PEFT, whose methods are members of a closed enum.

PEFT keeps the enum closed (huggingface/peft, pull request 2282), so another package has to extend it before
it calls `register_peft_method`.
"""

from __future__ import annotations

from aenum import extend_enum
from peft import PeftConfig
from peft import __version__ as peft_version
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

NAME = "ituning"
PEFT_TYPE = NAME.upper()
# The tuner overrides these methods. A PEFT without them never calls ours, and saves keys that it cannot load.
_OVERRIDDEN = (
    *("_check_merge_allowed", "_post_injection_hook", "_check_target_module_exists"),
    *("_get_adapter_state_dict", "_remove_adapter_name_from_key"),
)


def register(config_class: type[PeftConfig], tuner_class: type[BaseTuner]) -> None:
    """Register the method; a second call does nothing.

    Args:
        config_class: Its configuration.
        tuner_class: Its tuner.

    Raises:
        ImportError: if this version of PEFT is not supported, or has another method of that name.
    """
    known = PEFT_TYPE_TO_TUNER_MAPPING.get(PEFT_TYPE)  # type: ignore[call-overload]
    if known is not None:
        if known.__module__ != tuner_class.__module__:
            raise ImportError(f"peft {peft_version} already has a method {NAME!r}: {known}.")
        return
    try:
        for name in _OVERRIDDEN:
            getattr(BaseTuner, name)
        if PEFT_TYPE not in PeftType.__members__:
            extend_enum(PeftType, PEFT_TYPE, PEFT_TYPE)
        register_peft_method(name=NAME, config_cls=config_class, model_cls=tuner_class)
    except (AttributeError, TypeError, ValueError) as error:
        raise ImportError(
            f"peft {peft_version} does not accept the method {NAME!r} ({error}): install peft 0.21."
        ) from error


__all__ = ["NAME", "PEFT_TYPE", "register"]
