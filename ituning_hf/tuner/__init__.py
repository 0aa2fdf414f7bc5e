"""I-Tuning as the PEFT method "ituning".

```python
from peft import get_peft_model
from ituning_hf.tuner import ITuningTunerConfig

model = get_peft_model(language_model, ITuningTunerConfig(vision_hidden_size=768))
model(input_ids, visual_features=features)
```

Import `ituning_hf` before loading an adapter: without it PEFT raises `KeyError: 'ITUNING'`.
"""

from typing import TYPE_CHECKING

from ..utils.imports import lazy_names

if TYPE_CHECKING:
    from .config import ITuningTunerConfig as ITuningTunerConfig
    from .conversion import to_peft as to_peft
    from .layer import ITuningLayer as ITuningLayer
    from .model import ITuningTuner as ITuningTuner

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "config": ["ITuningTunerConfig"],
        "conversion": ["to_peft"],
        "layer": ["ITuningLayer"],
        "model": ["ITuningTuner"],
    },
)
