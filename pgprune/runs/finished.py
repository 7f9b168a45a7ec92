"""Reads a finished run: its mask, its results, and the dense model that they belong to."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pgprune.data.stream import DataConfig, evaluation_windows, first_windows
from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig, fingerprint, load_model
from pgprune.repair.repair import Repair, check_repair
from pgprune.runs.files import RunFile
from pgprune.runs.learned_mask import LearnedMask
from pgprune.runs.results_file import read_results
from pgprune.runs.run import Run
from pgprune.surgery.layers import prune
from pgprune.surgery.slice_model import slice_model
from pgprune.surgery.stream_slices import Slices
from pgprune.utils.manifest import Manifest

_HALF = ("bfloat16", "float16")


class FinishedRun(Run):
    """A run that has results; ``FinishedRun.open`` reads them, and the methods read the rest.

    Args:
        path: the directory.
        sections: the content of config.yaml, as plain values.
        results: the content of results.json; None reads it.

    Attributes:
        path: the directory.
        sections: the content of config.yaml, as plain values.
        results: the content of results.json.

    Raises:
        PruningError: there are no results yet, or they are damaged, changed or incomplete.
    """

    def __init__(
        self, path: Path, sections: dict[str, dict[str, Any]], results: dict[str, Any] | None = None
    ) -> None:
        super().__init__(path, sections)
        known = read_results(path) if results is None else results
        if known is None:
            again = "prune again" if "method" in sections else "start a new run"
            remedy = f"resume it with --resume {path}" if self.resumable else again
            raise PruningError(f"{path} has no results yet; {remedy}")
        self.results = known

    @property
    def repair_windows(self) -> int:
        """Calibration windows that a repair reads: its own, or those of the method or the start."""
        if own := self.sections.get("repair", {}).get("repair_samples"):
            return int(own)
        samples = self.sections.get("init", {}).get("init_samples", 128)
        return int(self.sections.get("method", {}).get("method_samples", samples))

    def evaluation_windows(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
        """Reads the windows that the run was evaluated on, (N, T) by the name of their set.

        Raises:
            PruningError: a text cannot be read.
        """
        counts: dict[str, int] = self.results.get("evaluation", {}).get("windows", {})
        data = self.config("data", DataConfig)
        if data.until_sure:  # the run has decided
            data = replace(data, evaluation_windows=max(counts.values()))
        return first_windows(evaluation_windows(data, tokenizer), counts)

    def learned_mask(self) -> LearnedMask:
        """Reads the mask that the run has learned.

        Raises:
            PruningError: there is none, or it is damaged, changed or not a mask.
        """
        self._file(RunFile.MASK)
        return LearnedMask.read(self.path / RunFile.MASK)

    def repair(self) -> Repair | None:
        """Reads the repair of the mask; None where the run has none.

        Raises:
            PruningError: it is missing, damaged or changed.
        """
        found = self._file(RunFile.REPAIR)
        # A repair changes perplexity: where the two differ, its file must be there.
        table = self.results.get("perplexity", {})
        # A repair of earlier versions may be there without the row ``masked``.
        differs = "masked" in table and table.get("pruned") != table["masked"]
        return Repair.load(self.path / RunFile.REPAIR) if differs or found else None

    def slices(self) -> Slices | None:
        """Reads what is kept of the residual stream; None where the method did not slice it.

        Raises:
            PruningError: a file of it is missing, damaged or changed.
        """
        found = self._file(RunFile.SLICES)
        self._file(RunFile.ROTATIONS)
        return None if found is None else Slices.load(self.path)

    def _file(self, name: str) -> Path | None:
        """Compares a file with the manifest, if there is one; returns it, None where it is not."""
        if (manifest := Manifest.read(self.path)) is not None:
            return manifest.file(name)
        path = self.path / name
        return path if path.exists() else None

    def load(self) -> "LoadedRun":
        """Loads the dense model on the CPU, with the mask and what belongs to it.

        Raises:
            PruningError: a file of the run is missing or damaged, the model cannot be loaded, or
                the mask or the repair is of another model.
        """
        learned, asked = self.learned_mask(), self.config("model", ModelConfig)
        model, tokenizer = load_model(
            # Surgery and repair change weights in place, which the CPU has room for.
            replace(asked, device="cpu", device_map=None, dtype=export_dtype(asked))
        )
        units = PruningUnits.of(model, learned.granularity, learned.channel_block)
        self._check_model(asked.model, model, units, learned)
        slices, repair = self.slices(), self.repair()
        notes: tuple[str, ...] = () if slices is None else (str(slices),)
        notes += learned.basis.apply(model)
        if repair is not None:
            check_repair(model, repair)
        return LoadedRun(
            run=self,
            model=model,
            tokenizer=tokenizer,
            units=units,
            learned=learned,
            mask=learned.mask,
            repair=repair,
            slices=slices,
            round_to=self.sections.get("pruning", {}).get("round_to", 1),
            notes=notes,
        )

    def _check_model(
        self, name: str, model: PreTrainedModel, units: PruningUnits, learned: LearnedMask
    ) -> None:
        """Refuses a model that the run was not started on."""
        if units.n != len(learned.mask) or units.prunable != learned.parameters:
            raise PruningError(
                f"the mask of {self.path} is of another model: it is over {len(learned.mask):,} "
                f"units of {learned.parameters:,} parameters, but {name!r} has {units.n:,} of "
                f"{units.prunable:,}; put the model back that the run was started on"
            )
        # Runs of the first versions have no fingerprint; counts are all that can be compared.
        expected = self.sections.get("decided", {}).get("model_fingerprint")
        if expected not in (None, fingerprint(*model.parameters())):
            raise PruningError(
                f"the model {name!r} has other weights than when the run {self.path} was started; "
                "put the old ones back"
            )


@dataclass(frozen=True)
class LoadedRun:
    """A finished run with its dense model: everything that an export needs.

    An export may ship another mask or repair than the run's own; ``replace`` makes that copy.

    Attributes:
        run: with the results and the settings of what is shipped.
        model: the dense model, on the CPU; a writer may change it.
        tokenizer: of the model.
        units: of the model, as the mask counts them.
        learned: the mask that the run ended with, and what it was rounded from.
        mask: what is shipped, (n,) uint8, 1 keeps.
        repair: what comes with the mask.
        slices: what is kept of the residual stream, where the method sliced it.
        round_to: the number of channels of every layer should be a multiple of this.
        notes: sentences on how the mask differs from the learned one, for people.
    """

    run: FinishedRun
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    units: PruningUnits
    learned: LearnedMask
    mask: Tensor
    repair: Repair | None = None
    slices: Slices | None = None
    round_to: int = 1
    notes: tuple[str, ...] = ()

    @property
    def has_learned_mask(self) -> bool:
        """Whether the mask is the one that the run ended with."""
        return torch.equal(self.mask, self.learned.mask)

    def pruned(self) -> PreTrainedModel:
        """Makes the physically smaller model.

        Raises:
            PruningError: the mask leaves no layer, or the slices are of another model.
        """
        if self.slices is not None:
            # A sliced run keeps all units, so its mask is all ones and prunes nothing.
            return slice_model(self.model, self.slices)
        return prune(self.model, self.units, self.mask, self.repair)


def export_dtype(config: ModelConfig) -> str:
    """Chooses the number format to export in: the run's, else the checkpoint's half precision.

    Half-precision weights that a run has evaluated in float32 lose nothing by going back.
    """
    if config.dtype != "auto":
        return config.dtype
    try:
        source = config.source()
        if config.model == "builtin" or source.gguf_file is not None:
            return "float32"  # as every run on the CPU evaluates it
        values, _ = PretrainedConfig.get_config_dict(source.place)
    except Exception:  # loading says what is wrong
        return "float32"
    # Checkpoints of transformers 4 say ``torch_dtype``.
    saved = str(values.get("dtype", values.get("torch_dtype"))).removeprefix("torch.")
    return saved if saved in _HALF else "float32"
