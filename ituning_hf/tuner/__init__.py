"""I-Tuning as a method of PEFT, under the name "ituning".

```python
from peft import get_peft_model
from ituning_hf.tuner import ITuningTunerConfig

model = get_peft_model(gpt2, ITuningTunerConfig(vision_hidden_size=768))
model(input_ids, encoder_hidden_states=visual_features)
```

A process that loads an adapter imports `ituning_hf` first: a PEFT that has not heard of the method says no
more than `KeyError: 'ITUNING'`.
"""

from ..utils.requirements import check_requirements

check_requirements(optional=True)

from .config import ITuningTunerConfig
from .conversion import to_peft
from .layer import ITuningLayer
from .model import ITuningTuner
from .registration import register

register(ITuningTunerConfig, ITuningTuner)

__all__ = ["ITuningLayer", "ITuningTuner", "ITuningTunerConfig", "to_peft"]
