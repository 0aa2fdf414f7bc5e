"""Make the two small backbones that this package ships for drawn scenes: half an hour on one CPU core.

    python examples/pretrain_scene_backbones.py ituning_hf/scene_backbones

They are in the package already; this is how they came about.
"""

import argparse

from ituning_hf.demo.pretraining import pretrain_backbones

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="gets the folders vision and text")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pretrain_backbones(options.folder, seed=options.seed)
