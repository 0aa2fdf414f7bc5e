"""`ituning demo`: the method in miniature, on drawn scenes, with backbones small enough to ship."""

from .scenes import UNSEEN_PAIRS, compose_scenes
from .scoring import Scores, score_captions
from .story import DemoResult, run_demo

__all__ = ["UNSEEN_PAIRS", "DemoResult", "Scores", "compose_scenes", "run_demo", "score_captions"]
