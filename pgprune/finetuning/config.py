"""Options of finetuning, with defaults that follow the run that is finetuned."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from pgprune.data.stream import DataConfig
from pgprune.errors import PruningError
from pgprune.models.load import ModelConfig
from pgprune.runs.finished import FinishedRun
from pgprune.runs.model_card import public_name
from pgprune.utils.files import user_path
from pgprune.utils.options import SEEDS, Config, option, same_option
from pgprune.utils.progress import note


@dataclass(frozen=True)
class FinetuningConfig(Config):
    """Finetuning: evaluation, and where the result goes."""

    evaluation: str | None = option(
        None,
        "text for perplexity before and after, as --evaluation of pgprune train",
        unset="the run's own, else builtin",
        metavar="TEXT",
    )
    evaluation_length: int | None = option(
        None, "tokens per evaluation window", minimum=2, unset="the run's own, else 128"
    )
    evaluation_windows: int | None = option(
        None,
        "windows of each evaluation text, from its beginning",
        minimum=1,
        unset="the run's own, else as pgprune train",
    )
    output: str | None = option(
        None, "new directory", unset="RUN/finetuned, or DIR-finetuned", metavar="DIR"
    )
    device: str = same_option(ModelConfig, "device", "auto")
    dtype: str = option(
        "auto",
        "number format of the weights and the result; auto is float32 on the CPU",
        choices=["auto", "float32", "bfloat16", "float64"],
    )
    attn_implementation: str = same_option(ModelConfig, "attn_implementation", "sdpa")
    seed: int = option(0, "seed of all random numbers", minimum=0, maximum=SEEDS)
    resume: bool = option(False, "resume the same command from its last checkpoint")
    checkpoint_every: int = option(50, "updates between checkpoints", minimum=1)
    quiet: bool = option(False, "print only errors")


def length_of(asked: int, model_config: PretrainedConfig) -> int:
    """Limits the length of windows to the model's context, and says so."""
    limit = getattr(model_config, "max_position_embeddings", None) or asked
    if asked > limit:
        note(f"--sequence-length is {limit:,}, the model's context, and not {asked:,}")
    return min(asked, limit)


def output_of(source: str, run: FinishedRun | None, asked: str | None) -> Path:
    """Chooses the directory of the result: the asked one, else one in the run or beside the model.

    Raises:
        PruningError: nothing is asked, and the source is no directory.
    """
    if asked is not None:
        return Path(asked)
    if run is not None:
        return run.path / "finetuned"
    path = user_path(source)
    if not path.is_dir():
        raise PruningError(f"there is no place beside {source!r}; give --output")
    # Beside the model, not in it: a directory of a model is left as it is.
    return path.resolve().with_name(f"{path.resolve().name}-finetuned")


def refuse_zeros(source: str, model_config: PretrainedConfig) -> None:
    """Refuses dense shapes with zeros in them.

    Raises:
        PruningError: the model is one.
    """
    # LoRA adds to every weight, so pruned ones would not stay zero.
    if getattr(model_config, "pgprune", {}).get("format") == "masked":
        raise PruningError(
            f"{source!r} holds its mask as zeros, which finetuning would fill; give the run, or "
            "its export with --format hf"
        )


def data_of(source: str, run: FinishedRun | None, model_config: PretrainedConfig) -> str:
    """Returns the text that a model was calibrated on.

    Raises:
        PruningError: nothing says so.
    """
    if run is not None:
        return str(run.sections.get("data", {}).get("calibration", "builtin"))
    # An export names the model that it was pruned from.
    base = getattr(model_config, "pgprune", {}).get("base_model")
    if source == "builtin" or base == public_name("builtin"):
        return "builtin"
    raise PruningError(f"nothing says what {source!r} was calibrated on; give --data")


def evaluation_of(config: FinetuningConfig, run: FinishedRun | None) -> DataConfig:
    """Chooses the evaluation text: the run's where nothing else is asked.

    Raises:
        PruningError: the run's configuration is damaged.
    """
    default = run.config("data", DataConfig) if run is not None else DataConfig()
    return DataConfig(
        evaluation=config.evaluation or default.evaluation,
        sequence_length=config.evaluation_length or default.sequence_length,
        evaluation_windows=config.evaluation_windows or default.evaluation_windows,
    )
