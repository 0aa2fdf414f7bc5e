"""Features of the frozen vision encoder, computed once for each image and stored."""

from .spec import MIXED_PRECISIONS, STORAGES, FeatureSpec, feature_bytes
from .store import FeatureStore

__all__ = ["MIXED_PRECISIONS", "STORAGES", "FeatureSpec", "FeatureStore", "feature_bytes"]
