"""Loads a model that a command is given: a dense one, an exported one, or the one of a run.

Exported models are built by pgprune's own registered classes; the code beside their weights is
never executed.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pgprune.masking.pruned import check_logits
from pgprune.models.load import (
    ModelConfig,
    check_model,
    choose_dtype,
    load_model,
    move_model,
)
from pgprune.models.read_config import PRUNED
from pgprune.models.registration import attention_kernel
from pgprune.models.rows import FAMILIES
from pgprune.runs.files import RunFile
from pgprune.runs.finished import FinishedRun
from pgprune.runs.sweep import is_sweep, run_at_rate
from pgprune.utils.devices import choose_device
from pgprune.utils.files import user_path


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with what tables need to name it.

    Attributes:
        source: what the user typed.
        name: the same, shortened for tables.
        model: on its device, in evaluation mode, without gradients. Its configuration has
            ``use_cache`` on, as transformers loads it; pass ``use_cache=False`` where no text is
            generated.
        tokenizer: of the model.
        run: the run whose mask was cut out of the model, None for a model's directory or hub id.
    """

    source: str
    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    run: FinishedRun | None

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def load_any(
    source: str, *, device: str = "auto", dtype: str = "auto", attn_implementation: str = "sdpa"
) -> LoadedModel:
    """Loads a dense model, an exported pruned model, or a finished run's pruned model.

    Args:
        source: ``builtin``, ``smollm2``, a hub id, a GGUF file, a model's directory (dense, or
            exported by pgprune), or the directory of a finished run, whose mask is then cut out of
            its model in memory, and its repair put in.
        device: as ``ModelConfig``.
        dtype: as ``ModelConfig``; for a run, auto is float32 on the CPU and else what its export
            would have.
        attn_implementation: attention kernel of transformers.

    Raises:
        PruningError: what ``load_model`` refuses; a run that is not finished, or whose
            mask is damaged or of another model.
    """
    config = ModelConfig(source, device, dtype, attn_implementation=attn_implementation)
    run = run_at(source)
    if run is None:
        model, tokenizer = load_model(config, pruned=True)
        if not (kind := model.config.model_type).startswith(PRUNED) and kind not in FAMILIES:
            check_logits(model)
    else:
        model, tokenizer = _load_run(run, config)
    # Evaluating masks does without a cache; whoever generates text needs it.
    model.config.use_cache = True
    if model.generation_config is not None:
        model.generation_config.use_cache = True
    return LoadedModel(source, short_name(source), model, tokenizer, run)


def check_source(
    source: str, *, device: str = "auto", dtype: str = "auto"
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Checks what ``load_any`` would load, without reading weights.

    Returns:
        The configuration (for a run, of its dense model), and the tokenizer.

    Raises:
        PruningError: as ``load_any``.
    """
    run = run_at(source)
    if run is None:
        return check_model(ModelConfig(source, device, dtype), pruned=True)
    # Both are read and dropped: loading reads them again, when there is room for them.
    run.repair()
    run.learned_mask()
    return check_model(replace(run.config("model", ModelConfig), device=device, dtype=dtype))


def short_name(source: str) -> str:
    """Shortens a source for tables: to the last part of a path, after the run's if it is in one."""
    path = user_path(source)
    if not path.exists():
        return source
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if is_run(path.parent) else path.name


def run_at(source: str) -> FinishedRun | None:
    """Opens the run at a source; None where the source is a model.

    Raises:
        PruningError: the source is a run that has no results or cannot be read.
    """
    path = user_path(source)
    if is_sweep(path):
        run_at_rate(source, None)  # refuses it, and says which runs there are
    return FinishedRun.open(path) if is_run(path) else None


def is_run(path: Path) -> bool:
    """Whether a directory is that of a run, finished or not."""
    # Runs have config.yaml, models config.json; an export inside a run has the latter.
    return (path / RunFile.CONFIG).is_file() and not (path / "config.json").exists()


def _load_run(
    run: FinishedRun, config: ModelConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the pruned model of a run, and its tokenizer."""
    device = choose_device(config.device)
    dtype = choose_dtype(config, device)
    loaded = run.load()
    model = loaded.pruned()
    # The run is exported in its own format; the user may evaluate it in another.
    if dtype != "auto":
        model = model.to(dtype)  # type: ignore[arg-type]
    model.set_attn_implementation(attention_kernel(type(model), config.attn_implementation))
    return move_model(model, device).eval().requires_grad_(False), loaded.tokenizer
