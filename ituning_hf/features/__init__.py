"""Features of the frozen vision encoder, computed once for each image and stored."""

from .arguments import MIXED_PRECISIONS, STORAGES
from .build import BuildError, BuildResult, build_features
from .encoder import describe_encoder
from .plan import BuildPlan, format_bytes, plan_build
from .spec import FeatureSpec, feature_bytes
from .store import FeatureStore

__all__ = [
    "MIXED_PRECISIONS",
    "STORAGES",
    "BuildError",
    "BuildPlan",
    "BuildResult",
    "FeatureSpec",
    "FeatureStore",
    "build_features",
    "describe_encoder",
    "feature_bytes",
    "format_bytes",
    "plan_build",
]
