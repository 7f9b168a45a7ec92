"""Trains weights themselves: those of the layers, or all of a model."""

from transformers import PreTrainedModel

from pgprune.finetuning.lora import listed_family, refuse_float16


class Weights:
    """Weights of a model, as a ``Trainable``.

    Weights of 16 bits are trained in float32, as most steps are below their last bit; ``merge``
    rounds them.

    Args:
        model: a causal LM without gradients; ``merge`` gives it back.
        layers: whether only the weights of the layers are trained: no embeddings, head, final norm.

    Attributes:
        model: the model.
        parameters: its trained weights by name.

    Raises:
        PruningError: the model is in float16.
    """

    def __init__(self, model: PreTrainedModel, layers: bool) -> None:
        refuse_float16(model)
        prefix = f"{listed_family(model.config).layers}." if layers else ""
        self._dtype, self.model = model.dtype, model
        if model.dtype.itemsize < 4:
            model.float()
        self.parameters = {n: p for n, p in model.named_parameters() if n.startswith(prefix)}
        for parameter in self.parameters.values():
            parameter.requires_grad_()

    def merge(self) -> PreTrainedModel:
        """Returns the model in its number format, without gradients."""
        self.model.zero_grad()
        return self.model.to(self._dtype).requires_grad_(False)  # type: ignore[arg-type]
