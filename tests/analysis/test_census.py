"""What a model is made of, and what less of it needs: against sums of its weights."""

import pytest
import torch

from helpers.finished_run import run_of_pattern
from helpers.masks import patterns
from helpers.mixtures import MIXTURES
from helpers.tiny import CONFIGS, tiny_model
from pgprune.analysis.census import census
from pgprune.analysis.needs import needs
from pgprune.export.export import ExportConfig, export
from pgprune.masking.units import PruningUnits
from pgprune.models.families import family_of
from pgprune.models.shapes import layer_shapes
from pgprune.runs.any_model import load_any
from pgprune.surgery.layers import prune


@pytest.mark.parametrize("family", [*CONFIGS, *MIXTURES])
def test_every_parameter_is_counted_once_and_has_a_kind(family):
    model = tiny_model(family)
    expected = sum(parameter.numel() for parameter in model.parameters())
    found = census(model)
    assert found.total == expected and "other" not in found.parameters
    shapes = list(layer_shapes(model))
    for shape, layer in zip(shapes, found.layers, strict=True):
        rest = sum(layer.values()) - shape.attention_cost - shape.mlp_cost
        assert (rest > 0) == family_of(model.config).rest
    if family_of(model.config).query:  # else its heads are not known
        assert found.cache == [2 * shape.kv_heads * shape.head_dim for shape in shapes]


def test_kinds_of_a_layer_are_those_of_its_modules():
    model = tiny_model("llama")
    layer, found = model.model.layers[0], census(model)
    of = {name: sum(p.numel() for p in part.parameters()) for name, part in layer.named_children()}
    norms = of["input_layernorm"] + of["post_attention_layernorm"]
    assert found.layers[0] == {"attention": of["self_attn"], "mlp": of["mlp"], "norms": norms}


def test_a_pruned_model_has_what_is_left(tmp_path):
    run = run_of_pattern(tmp_path, "layer 0 and some")
    for source in (run.path, export(run, ExportConfig())):
        found = census(load_any(str(source), device="cpu").model)
        assert found.total == run.results["parameters"]["pruned"]
        assert found.layers[0]["attention"] < found.layers[1]["attention"]  # a bias is left
        assert found.cache[0] == 2 < found.cache[1]  # one key and value of nothing


@pytest.mark.parametrize("granularity", ["heads+channels", "values+channels", "channels"])
def test_the_rate_that_parameters_need_is_that_of_surgery(granularity):
    model = tiny_model("llama")
    units, found = PruningUnits.of(model, granularity), census(model)
    need = needs(found, units, 2, 100, shares=(0.999, 0.01))[0]
    assert need.dense == found.total and need.least == found.total - units.prunable
    rate, impossible = need.rates
    assert impossible is None
    assert rate * units.prunable == pytest.approx(0.001 * found.total)


def test_memory_is_that_of_weights_and_the_cache_that_heads_leave():
    model = tiny_model("llama")
    units, found = PruningUnits.of(model), census(model)
    tokens, itemsize = 100, 2
    memory = needs(found, units, itemsize, tokens, shares=(0.5,))[1]
    assert memory.dense == itemsize * (found.total + tokens * sum(found.cache))
    mask = patterns(units)["some"]
    smaller = census(prune(model, units, mask))
    kept = units.kept_counts(mask[None])[0, ::2] / units.sizes[::2]  # heads of each layer
    left = [int(share * cache) or 2 for share, cache in zip(kept, found.cache, strict=True)]
    assert smaller.cache == left != found.cache
    assert memory.least == itemsize * (found.total - units.prunable)


def test_experts_that_a_token_uses_bound_the_rate():
    model = tiny_model("mixtral")
    units = PruningUnits.of(model, "heads+experts")
    parameters = needs(census(model), units, 2, 0, shares=(0.9, 0.5))[0]
    assert parameters.rates[0] is not None and parameters.rates[1] is None
    assert torch.tensor(parameters.least / parameters.dense) > 0.5
