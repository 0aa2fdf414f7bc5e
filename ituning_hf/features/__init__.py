"""Features of the frozen vision encoder, computed once for each image and stored."""

from typing import TYPE_CHECKING

from ..utils.imports import lazy_names

if TYPE_CHECKING:
    from .build import build_features as build_features
    from .store import FeatureStore as FeatureStore

__getattr__, __dir__, __all__ = lazy_names(__name__, {"build": ["build_features"], "store": ["FeatureStore"]})
