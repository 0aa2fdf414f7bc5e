"""Train a captioner.

    accelerate launch examples/train.py                      # drawn scenes, bundled miniatures
    accelerate launch examples/train.py --dataset photos/    # needs photos/metadata.jsonl
    accelerate launch examples/train.py --config run.yaml
    torchrun --nproc_per_node 2 examples/train.py ...        # several processes, also on CPUs

`--help` lists all settings, which are those of `ituning train`.
"""

import sys

from ituning_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
