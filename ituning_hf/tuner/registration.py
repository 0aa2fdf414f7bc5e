"""The one place that reaches into PEFT: its methods are members of an enum that nothing else may join.

Its maintainers keep that enum closed (huggingface/peft, pull request 2282), so a method from outside has to
extend it before `register_peft_method`, which is public, takes it.
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
# What the tuner overrides. A PEFT without them never calls ours, and saves keys that nothing finds again.
_OVERRIDDEN = (
    *("_check_merge_allowed", "_post_injection_hook"),
    *("_get_adapter_state_dict", "_remove_adapter_name_from_key"),
)


def register(config_class: type[PeftConfig], tuner_class: type[BaseTuner]) -> None:
    """Make PEFT know the method; a second time does nothing.

    Args:
        config_class: Its configuration.
        tuner_class: What injects it into a model.

    Raises:
        ImportError: if PEFT does not take it, or has another method of that name.
    """
    known = PEFT_TYPE_TO_TUNER_MAPPING.get(PEFT_TYPE)  # type: ignore[call-overload]
    if known is not None:
        if known.__module__ != tuner_class.__module__:
            raise ImportError(
                f"peft {peft_version} has a method named {NAME!r} already, {known.__module__}."
                f"{known.__qualname__}, so ituning_hf.tuner cannot be used beside it. The captioner itself "
                "does not need it."
            )
        return
    try:
        for name in _OVERRIDDEN:
            getattr(BaseTuner, name)
        if PEFT_TYPE not in PeftType.__members__:
            extend_enum(PeftType, PEFT_TYPE, PEFT_TYPE)
        register_peft_method(name=NAME, config_cls=config_class, model_cls=tuner_class)
    except Exception as error:  # whatever a PEFT of other insides raises
        raise ImportError(
            f"peft {peft_version} does not take the method {NAME!r} ({type(error).__name__}: {error}). "
            "ituning_hf.tuner was made for peft 0.21: install that one. The captioner itself does not need "
            "it."
        ) from error


__all__ = ["NAME", "PEFT_TYPE", "register"]
