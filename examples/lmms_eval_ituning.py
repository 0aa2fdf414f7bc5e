"""Evaluate a captioner with lmms-eval, for example on COCO (Karpathy split), Flickr30k and NoCaps.

    pip install lmms_eval==0.7.3
    python examples/lmms_eval_ituning.py --model_args pretrained=my-captioner --batch_size 16 \
        --tasks coco_karpathy_test,flickr30k_test,nocaps_val --gen_kwargs num_beams=5,max_new_tokens=20
    accelerate launch --multi_gpu examples/lmms_eval_ituning.py ...    # distributes the images

The options are those of `lmms-eval`. `--model_args` has the arguments of `ituning_hf.load_captioner`, such as
`pretrained=my-captioner,dtype=bfloat16,revision=main`. The tasks set greedy search (`num_beams: 1`) and
`max_new_tokens: 64`; `--gen_kwargs` overrides them. A captioner follows no instructions, so the prompt of a
task is not used. The scorers of the tasks need Java.
"""

from __future__ import annotations

import sys
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.__main__ import cli_evaluate
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

import ituning_hf

SAMPLING = {"temperature", "top_p", "top_k"}  # tasks also set them where they do not sample


class ITuning(lmms):
    """A captioner as a model of lmms-eval.

    Args:
        pretrained: The captioner's folder or Hub id.
        batch_size: Images in a batch.
        device: By default that of the process.
        **options: Further arguments of `ituning_hf.load_captioner`.
    """

    def __init__(
        self, pretrained: str, batch_size: int | str = 1, device: str | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        distributed = self.accelerator.num_processes > 1
        self.device = self.accelerator.device if device is None or distributed else torch.device(device)
        self.batch_size = int(batch_size)
        self.captioner, self.processor = ituning_hf.load_captioner(pretrained, device=self.device, **options)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Caption the image of each request; consecutive requests with equal settings are batched."""
        captions: list[Any] = []
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc="captioning")
        for settings, group in groupby((request.args for request in requests), key=lambda args: args[1]):
            rows = list(group)
            options = {name: value for name, value in settings.items() if name != "until"}
            if not options.get("do_sample"):
                options = {name: value for name, value in options.items() if name not in SAMPLING}
            for start in range(0, len(rows), self.batch_size):
                images = [self._image(*args) for args in rows[start : start + self.batch_size]]
                captions += ituning_hf.caption(
                    self.captioner, images, self.processor, batch_size=self.batch_size, **options
                )
                progress.update(len(images))
        progress.close()
        return captions

    def _image(self, prompt: str, settings: Any, to_visual: Any, doc_id: int, task: str, split: str) -> Any:
        images = to_visual(self.task_dict[task][split][doc_id])
        if len(images) != 1:
            raise ValueError(f"{task} has {len(images)} images in document {doc_id}; a captioner takes one.")
        return images[0]

    def loglikelihood(self, requests: list[Instance]) -> Any:
        """Refuse: a captioner runs tasks of the output type `generate_until` only."""
        raise NotImplementedError("ituning runs tasks of output_type generate_until only.")

    generate_until_multi_round = loglikelihood


MODEL_REGISTRY_V2.register_manifest(ModelManifest("ituning", simple_class_path=f"{__name__}.ITuning"))

if __name__ == "__main__":
    sys.argv[1:1] = ["--model", "ituning"]
    cli_evaluate()
