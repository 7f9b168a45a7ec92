"""Reads the configuration of a model, and refuses what cannot be pruned."""

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from pgprune.errors import PruningError
from pgprune.inspection.checkpoint_kind import check_floats, check_kind
from pgprune.models.families import check_layers, family_of
from pgprune.models.registration import register
from pgprune.models.rows import FAMILIES
from pgprune.models.source import unreadable

PRUNED = "pgprune_"
"""Prefix of the ``model_type`` of pruned models."""


def read_config(source: str, pruned: bool, choice: str) -> PretrainedConfig:
    """Reads the configuration of a known family, of a pruned model, or of one to be found.

    Args:
        source: a directory or a hub id.
        pruned: whether exports of pgprune are allowed, and others that are only to be measured.
        choice: as ``ModelConfig.family``.

    Raises:
        PruningError: it cannot be read, or is of another family or variant.
    """
    try:
        raw, _ = PretrainedConfig.get_config_dict(source)
        family = str(raw.get("model_type"))
    except Exception as error:  # a list in place of an object, or one nested too deeply
        raise PruningError(unreadable(source, "configuration", error)) from error
    check_floats(source, raw)
    dense = family.removeprefix(PRUNED).removeprefix("slicegpt_")  # the family before pruning
    known = dense in FAMILIES or (dense in CONFIG_MAPPING and "layout" in raw)  # or found
    is_pruned = known and family.startswith(PRUNED)
    if is_pruned:
        if not pruned:
            raise PruningError(f"the model {source!r} is already pruned; give the dense model")
        register(dense)  # so that it loads like any other model
    # Before transformers reads it, which fails otherwise on families that it does not know.
    if not is_pruned and family not in FAMILIES:
        check_kind(source, raw, FAMILIES)
        if choice == "known" and not pruned:
            raise PruningError(
                f"the model {source!r} is of the family {family!r}, which pgprune does not list; "
                "--family auto finds where its layers are and proves it, known families are "
                f"{', '.join(FAMILIES)}"
            )
    if not isinstance(raw.get("pgprune", {}), dict):
        raise PruningError(f"the config.json of {source!r} is damaged (pgprune); restore it")
    check_layers(raw, f"config.json of the model {source!r}")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if family in FAMILIES:
            family_of(config)  # raises for variants that cannot be pruned
    except PruningError:
        raise
    except Exception as error:  # configuration classes raise errors of many types
        raise PruningError(unreadable(source, "configuration", error)) from error
    if not is_pruned:
        # Code of the model's own is never run, so what is made of the model must not ask for it.
        config.__dict__.pop("auto_map", None)
    config.use_cache = False  # masks are evaluated on whole windows
    config.return_dict = True  # a tuple has no names
    config.output_attentions = False  # which only the slowest attention kernel can
    return config
