"""Settings of text generation of a smaller model, in a form that can be saved."""

import copy
import re
from typing import Any

from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel


def savable_generation_config(model: PreTrainedModel, config: PretrainedConfig) -> GenerationConfig:
    """Copies the dense model's settings of text generation, in a form that can be saved.

    Settings that do nothing, or that contradict others, are left out: transformers warns of them
    when it loads them, but does not save them. A temperature without sampling is one, in Llama 2.
    """
    # A copy, because the settings change here.
    generation: Any = copy.deepcopy(model.generation_config)
    generation.use_cache = config.use_cache
    while True:
        try:
            generation.validate(strict=True)
            return generation
        except ValueError as error:
            # A line for each setting that does nothing, or one sentence on what contradicts.
            text = str(error)
            named = (
                re.findall(r"^- `(\w+)`", text, re.MULTILINE) or re.findall(r"`(\w+)`", text)[:1]
            )
        unused = [name for name in named if getattr(generation, name, None) is not None]
        if not unused:  # nothing that could be left out: only what the model itself says is left
            return GenerationConfig.from_model_config(config)
        for name in unused:
            setattr(generation, name, None)
