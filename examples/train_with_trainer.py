"""Train a captioner with Transformers' `Seq2SeqTrainer` instead of the package's own loop.

    python examples/train_with_trainer.py --output_dir outputs/trainer  # drawn scenes, bundled miniatures
    accelerate launch examples/train_with_trainer.py --output_dir outputs/trainer \
        --dataset photos/ --vision_model openai/clip-vit-base-patch16 --text_model gpt2 \
        --learning_rate 1e-3 --num_train_epochs 10 --eval_strategy epoch --push_to me/my-captioner

It takes all arguments of `Seq2SeqTrainingArguments`. Requires `pip install 'ituning_hf[eval]'`.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import (
    EvalPrediction,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

import ituning_hf
from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.data import CaptionedImage, load_captioned_images
from ituning_hf.evaluation import compute_caption_metrics
from ituning_hf.training.setup import SCENE_BACKBONES


@dataclass
class ScriptArguments:
    """The data, the two frozen models, and the Hub repository."""

    dataset: str = field(default="scenes", metadata={"help": "a data set in any format of docs/data.md"})
    image_root: str | None = field(default=None, metadata={"help": "the folder of the images"})
    vision_model: str = field(default=str(SCENE_BACKBONES / "vision"), metadata={"help": "a vision encoder"})
    text_model: str = field(default=str(SCENE_BACKBONES / "text"), metadata={"help": "a language model"})
    captions_per_image: int = field(default=5, metadata={"help": "captions of each image in a batch"})
    eval_images: int = field(default=200, metadata={"help": "images of the validation split to caption"})
    push_to: str | None = field(default=None, metadata={"help": "push the captioner to this repository"})


@dataclass
class Collator:
    """Make image-major batches: k rows of text for each image, next to each other."""

    processor: ITuningProcessor
    captions_per_image: int

    def __call__(self, items: list[CaptionedImage]) -> Any:
        """Return `pixel_values`, `input_ids`, `attention_mask` and `labels`."""
        captions = [item.captions[: self.captions_per_image] for item in items]
        return self.processor(images=[item.load() for item in items], captions=captions)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, save, and return the validation loss and the metrics of the captions."""
    parser = HfArgumentParser((ScriptArguments, Seq2SeqTrainingArguments))
    script, training = parser.parse_args_into_dataclasses(argv)
    training.predict_with_generate = True
    set_seed(training.seed)  # before the adapters are initialized
    root = script.image_root
    train_data = load_captioned_images(script.dataset, "train", image_root=root)
    eval_data = load_captioned_images(script.dataset, "val", image_root=root)[: script.eval_images]
    model = ITuningForCaptioning.from_vision_text_pretrained(script.vision_model, script.text_model)
    processor = ITuningProcessor.from_vision_text_pretrained(script.vision_model, script.text_model)

    def caption_metrics(prediction: EvalPrediction) -> dict[str, float]:
        pad = processor.tokenizer.pad_token_id
        ids = np.where(prediction.predictions == -100, pad, prediction.predictions)
        captions = processor.batch_decode(ids[: len(eval_data)], skip_special_tokens=True)
        references = [list(item.captions) for item in eval_data]
        return compute_caption_metrics([caption.strip() for caption in captions], references, java=False)

    trainer = Seq2SeqTrainer(
        model,
        training,
        Collator(processor, script.captions_per_image),
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=processor,
        compute_metrics=caption_metrics,
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)  # to eval_results.json
    if trainer.is_world_process_zero():
        ituning_hf.save_captioner(model, processor, training.output_dir)
        if script.push_to is not None:
            ituning_hf.push_captioner(training.output_dir, script.push_to)
    return metrics


if __name__ == "__main__":
    main()
