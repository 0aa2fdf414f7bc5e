"""Train a captioner.

    accelerate launch examples/train.py                      # built-in scenes, small backbones
    accelerate launch examples/train.py --dataset photos/    # your own: photos/metadata.jsonl
    accelerate launch examples/train.py --config run.yaml
    torchrun --nproc_per_node 2 examples/train.py ...        # several processes on CPUs

`--help` lists every setting; `ituning train` takes the same.
"""

import sys

from ituning_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
