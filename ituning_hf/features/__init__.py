"""Features of the frozen vision encoder, computed once for each image and stored."""

import importlib
from typing import Any

_MODULES = {
    "build": ("BuildPlan", "BuildResult", "build_features", "plan_build"),
    "spec": ("FeatureSpec", "describe_encoder", "feature_bytes"),
    "store": ("FeatureStore",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
