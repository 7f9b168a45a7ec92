"""Checks that the files of a model are all its weights, without reading them."""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from pgprune.errors import PruningError, first_line
from pgprune.models.source import Source
from pgprune.utils.manifest import MANIFEST, Manifest
from pgprune.utils.progress import phase


def check_export(source: Source) -> None:
    """Compares an exported model with its manifest, if it has one; of GGUF files, the one used.

    Raises:
        PruningError: a file is missing, damaged or changed, or one that transformers may read came
            later.
    """
    folder = Path(source.place)
    manifest = Manifest.read(folder) if folder.is_dir() else None
    if manifest is not None:
        # Files that quantizing has made of an exported one are not of the export.
        names = set(manifest.digests)
        with phase(f"comparing {source} with its manifest"):
            manifest.check(names if source.gguf_file is None else names & {source.gguf_file})
        for file in sorted(folder.iterdir()) if source.gguf_file is None else ():
            if file.suffix in _READ and file.name not in names | {MANIFEST}:
                raise PruningError(
                    f"{file} came later than {MANIFEST} and would be read; remove it, or delete "
                    f"{MANIFEST} if it was meant"
                )


_READ = (".json", ".safetensors", ".jinja", ".model")  # what changes a model or its tokenizer
_LAYER = re.compile(r"(?:^|\.)[a-z]\w*\.(\d+)\.")  # the first: of a layer, not of an expert in it
_WHOLE = "model.safetensors"
_FLOATS = ("F16", "BF16", "F32", "F64")  # names of safetensors


def check_adapter(place: str) -> None:
    """Refuses an adapter beside a model's weights, which transformers would put into them.

    It does so only where peft is installed, so one model would have two answers.

    Args:
        place: a directory or a hub id.

    Raises:
        PruningError: there is an adapter.
    """
    try:
        found = find_adapter_config_file(place)
    except OSError:  # the hub cannot be reached, which loading the model says
        return
    if found is not None:
        raise PruningError(
            f"the model {place!r} has an adapter beside its weights (adapter_config.json), which "
            "would change them; merge it into them and save the result, or move its files away"
        )


def check_weights(directory: Path, config: PretrainedConfig) -> None:
    """Checks that a model's directory holds all its weights in whole safetensors files.

    Args:
        directory: of the model.
        config: of the model, whose layers must be those of the files.

    Raises:
        PruningError: a file is missing, cut short or a pickle, or holds what is no floating-point
            number; the index is unreadable, or names other tensors than there are; or there are
            more or fewer layers than configured.
    """
    named = getattr(config, "transformers_weights", None)
    if not isinstance(named, str | None):
        raise PruningError(
            f"the config.json of the model {str(directory)!r} names its weights by {named!r} "
            "(transformers_weights), which is no text; give the name of a file, or leave it out"
        )
    tensors = _tensors(directory, named)
    layers = {match[1] for name in tensors if (match := _LAYER.search(name))}
    configured = config.num_hidden_layers
    if config.is_heterogeneous:  # a layer that lacks both blocks has no weights
        configured -= sum(len(own.skip) == 2 for own in config.per_layer_config)
    if len(layers) != configured:
        raise PruningError(
            f"the weights of the model {str(directory)!r} are of {len(layers)} layers, but its "
            f"config.json says {configured} (num_hidden_layers); give the config.json that "
            "belongs to them"
        )


def check_report(model: str, report: dict[str, Any]) -> None:
    """Checks that each tensor of a model's files became a weight, and each weight was in a file.

    Args:
        model: its name, for the error.
        report: of transformers, which fills missing weights with random numbers and skips others.

    Raises:
        PruningError: there is a difference.
    """
    if missing := sorted(report["missing_keys"]):
        raise PruningError(
            f"the model {model!r} lacks {len(missing)} of its weights, such as {missing[0]}; "
            "give a complete checkpoint of a causal LM"
        )
    if unexpected := sorted(report["unexpected_keys"]):
        raise PruningError(
            f"the model {model!r} has {len(unexpected)} tensors that its config.json has no place "
            f"for, such as {unexpected[0]}; give the config.json that belongs to them, or remove "
            "them from the file"
        )


def check_values(what: str, model: PreTrainedModel) -> None:
    """Checks that all weights of a model are finite numbers.

    Args:
        what: words for the model, for the error.
        model: with its weights loaded.

    Raises:
        PruningError: one, or what its configuration gives, is infinite or not a number.
    """
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise PruningError(
                f"the weights {name} of the {what} are not all finite numbers; copy or download "
                "them again, or choose a wider dtype"
            )
    for name, buffer in model.named_buffers():  # made from the configuration
        if not bool(buffer.isfinite().all()):
            raise PruningError(
                f"the configuration of the {what} gives numbers that are not finite ({name}); "
                "restore it"
            )


def share_weights(directory: Path) -> None:
    """Lets those read a new model's weights who may read its configuration.

    The umask says who that is; safetensors lets only the owner.
    """
    mode = (directory / "config.json").stat().st_mode & 0o777
    for file in directory.glob("*.safetensors"):
        file.chmod(mode)


def _tensors(directory: Path, named: str | None) -> set[str]:
    """Returns the names of all tensors.

    Args:
        directory: of the model.
        named: the file or index that the configuration names in place of the usual ones.
    """
    index = directory / (named or f"{_WHOLE}.index.json")
    if named is None and (directory / _WHOLE).exists() or index.suffix != ".json":
        return _names(directory, directory / (named or _WHOLE))
    if not index.exists():
        return _names(directory, directory / _WHOLE)  # says that it is missing
    places = _places(index)  # name of the file by name of the tensor
    found = {file: _names(directory, directory / file) for file in sorted(set(places.values()))}
    for tensor, file in places.items():
        if tensor not in found[file]:
            raise PruningError(
                f"the weight index {str(index)!r} names the tensor {tensor!r}, which {file} does "
                "not hold; copy or download both again"
            )
    # What no index names is loaded all the same, and may take the place of another tensor.
    for file, names in found.items():
        if extra := sorted(name for name in names if places.get(name) != file):
            raise PruningError(
                f"the file {file} of the model {str(directory)!r} holds the tensor {extra[0]!r}, "
                "which its weight index does not name there; copy or download both again"
            )
    return set(places)


def _places(index: Path) -> dict[str, str]:
    """Reads the file of each tensor from an index."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        # A file outside the directory is no part of the model.
        if places and all(Path(file).name == file != ".." for file in places.values()):
            return places
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        pass
    raise PruningError(f"the weight index {str(index)!r} is corrupted; copy or download it again")


def _names(directory: Path, file: Path) -> set[str]:
    """Reads the names of a file's tensors."""
    if not file.exists():
        if any(directory.glob("*.bin")):
            raise PruningError(
                f"the model {str(directory)!r} has its weights in a pickle (.bin), which is not "
                "loaded because it can run code; convert it to safetensors with transformers' "
                "save_pretrained"
            )
        raise PruningError(f"the model {str(directory)!r} has no weights: {file.name} is missing")
    try:
        with safe_open(file, framework="pt") as opened:  # compares the header with the length
            kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise PruningError(
            f"the weights {str(file)!r} are truncated or corrupted ({first_line(error)}); copy "
            "or download them again"
        ) from error
    # Quantized ones, without the scales that belong to them, would be taken as they are.
    if odd := sorted(name for name, kind in kinds.items() if kind not in _FLOATS):
        raise PruningError(
            f"the weights {str(file)!r} hold {odd[0]} as {kinds[odd[0]]}, which is no "
            "floating-point number of 16, 32 or 64 bits; give the model as it was before it "
            "was quantized"
        )
    return set(kinds)
