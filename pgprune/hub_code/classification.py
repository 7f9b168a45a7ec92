"""The head of reward models and other classifiers of texts, beside the code of the decoders."""

from typing import Any

import transformers
from torch import nn
from transformers.modeling_layers import GenericForSequenceClassification


class SequenceClassifier(GenericForSequenceClassification, transformers.PreTrainedModel):
    """Scores a text by the hidden state of its last token, as stock classifiers do."""

    _auto_class = "AutoModelForSequenceClassification"
    _base_class: type[transformers.PreTrainedModel]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.base_model_prefix = cls._base_class.base_model_prefix

    def __init__(self, config: Any) -> None:
        # The stock class asks AutoModel for its base, which does not know this code.
        transformers.PreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, self._base_class(config))
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
