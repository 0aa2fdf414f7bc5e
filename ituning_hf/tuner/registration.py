"""Registers the method with PEFT, whose methods are members of a closed enum.

PEFT keeps the enum closed (huggingface/peft, pull request 2282), so another package has to extend it before
it calls `register_peft_method`.
"""

from __future__ import annotations

from aenum import extend_enum
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

NAME = "ituning"
PEFT_TYPE = NAME.upper()


def register(config_class: type[PeftConfig], tuner_class: type[BaseTuner]) -> None:
    """Register the method; a second call does nothing."""
    if PEFT_TYPE not in PeftType.__members__:
        extend_enum(PeftType, PEFT_TYPE, PEFT_TYPE)
        register_peft_method(name=NAME, config_cls=config_class, model_cls=tuner_class)


__all__ = ["NAME", "PEFT_TYPE", "register"]
