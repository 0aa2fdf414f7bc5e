"""Caption images with a saved captioner, without the package ituning_hf.

    python use_it.py best scenes/*.png

This requires torch, transformers, safetensors and Pillow. The captioner's folder contains the model code.
"""

import sys

from PIL import Image
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging

if len(sys.argv) < 3:
    sys.exit(__doc__)
folder, *paths = sys.argv[1:]
logging.set_verbosity_error()
logging.disable_progress_bar()

model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

inputs = processor(images=[Image.open(path) for path in paths], return_tensors="pt")
ids = model.generate(pixel_values=inputs["pixel_values"])
for caption in processor.batch_decode(ids, skip_special_tokens=True):
    print(caption)
