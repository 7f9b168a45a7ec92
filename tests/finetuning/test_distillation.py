"""The distillation loss: against plain autograd on all logits, and what it does not depend on."""

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from helpers.finetuning_toy import pruned, same, trained, trainer, weights, windows
from helpers.tiny import VOCABULARY, exact_norms, layers_of, tiny_model
from pgprune.finetuning.distillation import Distillation, DistillationConfig
from pgprune.finetuning.objectives import CrossEntropy, autocast, states_after
from pgprune.finetuning.parts import listed_family
from pgprune.finetuning.training import recomputing

EXACT = {"rtol": 0, "atol": 1e-11}
LAYERS = (0, 1, 2)


def dense():
    return exact_norms(tiny_model("llama"))


def student():
    return exact_norms(pruned())


def lesson(teacher=None, precision: str = "full", layers=LAYERS, **options) -> Distillation:
    usual = {"top_k": VOCABULARY, "hidden_loss_weight": 0.0}
    config = DistillationConfig(distill=True, **usual | options)
    products = autocast(precision, torch.device("cpu"))
    return Distillation(teacher or dense(), config, layers, products)


def gradients(objective: Distillation, model) -> tuple[float, torch.Tensor]:
    """The loss of a few windows, and its gradient in all weights."""
    made, data = trainer(model, objective, train="all"), windows(4)
    count = int(data.trained[:, 1:].sum())
    loss = objective.backward(model, data.ids, data.trained, count)
    of = (p.grad if p.grad is not None else 0 * p for p in made.part.parameters.values())
    return loss, parameters_to_vector(of).detach()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top_k", [3, VOCABULARY])
def test_the_loss_is_that_of_all_logits(temperature, top_k):
    """With k below the vocabulary, the others are one entry of both distributions."""
    teacher, data = dense(), windows(4)
    reference = student().requires_grad_()
    wanted = data.trained[:, 1:]
    q = (reference(data.ids).logits[:, :-1][wanted] / temperature).softmax(1)
    with torch.no_grad():
        p = (teacher(data.ids).logits[:, :-1][wanted] / temperature).softmax(1)
    top = p.topk(top_k, 1).indices
    parts = [torch.cat([x.gather(1, top), x.scatter(1, top, 0).sum(1, True)], 1) for x in (p, q)]
    p, q = (part[:, : top_k + (top_k < VOCABULARY)] for part in parts)
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    expected.backward()
    objective = lesson(teacher, top_k=top_k, temperature=temperature)
    loss, found = gradients(objective, student())
    assert loss == pytest.approx(float(expected.detach()), rel=1e-10)
    of = (p.grad if p.grad is not None else 0 * p for p in reference.parameters())
    torch.testing.assert_close(found, parameters_to_vector(of), **EXACT)


def test_it_is_mixed_with_the_cross_entropy():
    text = gradients(CrossEntropy(autocast("full", torch.device("cpu"))), student())
    taught, mixed = (
        gradients(lesson(cross_entropy_weight=w, top_k=3), student()) for w in (0.0, 0.25)
    )
    assert mixed[0] == pytest.approx(0.75 * taught[0] + 0.25 * text[0])
    torch.testing.assert_close(mixed[1], 0.75 * taught[1] + 0.25 * text[1], **EXACT)


def test_the_hidden_loss_is_the_relative_error_after_each_kept_layer():
    teacher, data = dense(), windows(4)
    plain, with_states = (
        gradients(lesson(teacher, hidden_loss_weight=w), student()) for w in (0.0, 2.0)
    )
    reference, wanted = student().requires_grad_(), data.trained[:, 1:]
    right, found = [], []
    for model, states in ((teacher, right), (reference, found)):
        for layer in layers_of(model):
            layer.register_forward_hook(lambda *args, s=states: s.append(args[2]))
        model(data.ids)
    errors = [
        ((a - b.detach()).square().sum(-1) / b.square().sum(-1))[:, :-1][wanted].mean()
        for a, b in zip(found, right, strict=True)
    ]
    expected = 2.0 * torch.stack(errors).mean()
    expected.backward()
    of = (p.grad if p.grad is not None else 0 * p for p in reference.parameters())
    assert with_states[0] - plain[0] == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(with_states[1] - plain[1], parameters_to_vector(of), **EXACT)


def test_a_model_has_nothing_to_learn_of_itself():
    objective = lesson(top_k=4, hidden_loss_weight=1.0)
    loss, found = gradients(objective, dense().requires_grad_(False))
    assert loss == pytest.approx(0, abs=1e-12)
    assert found.abs().max() < 1e-12


@pytest.mark.parametrize("options", [{"top_k": 4, "hidden_loss_weight": 0.5}, {"temperature": 2.0}])
def test_chunks_and_micro_batches_only_save_memory(options, monkeypatch):
    whole = trained(student(), train="all", objective=lesson(**options))
    monkeypatch.setattr("pgprune.losses.tokens.LOGITS_BYTES", 1)
    monkeypatch.setattr("pgprune.losses.tokens.chunk_tokens", lambda vocabulary: 5)
    monkeypatch.setattr("pgprune.finetuning.objectives.chunk_tokens", lambda vocabulary: 5)
    parts = trained(student(), train="all", objective=lesson(**options), micro_batch_size=1)
    assert whole.losses == pytest.approx(parts.losses, rel=1e-10)
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(parts)[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize("train", ["lora", "layers"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_layers_that_are_computed_again_give_the_same(family, train):
    options = {"objective": lesson(tiny_model(family), hidden_loss_weight=0.5), "train": train}
    usual, model = trained(pruned(family), **options, dropout=0.2), pruned(family)
    made = trainer(model, **options, dropout=0.2)
    with recomputing(model, listed_family(model.config)):
        while made.step < made.total:
            made.advance()
    assert made.losses == usual.losses
    assert same(weights(made), weights(usual))
    assert not any("forward" in vars(module) for module in model.modules())


def test_no_more_logits_than_a_chunk_exist_of_either_model(monkeypatch):
    monkeypatch.setattr("pgprune.finetuning.objectives.chunk_tokens", lambda vocabulary: 5)
    teacher, small, rows = dense(), student(), []
    for model in (teacher, small):
        product, head = torch.mm, model.get_output_embeddings()
        head.register_forward_hook(lambda head, args, logits: rows.append(len(logits)))

    def mm(*args, **options):
        found = product(*args, **options)
        rows.append(len(found) if found.shape[1] == VOCABULARY else 0)
        return found

    monkeypatch.setattr(torch, "mm", mm)
    gradients(lesson(teacher), small)
    assert max(rows) == 5
    assert len(rows) > 10


def test_bfloat16_autocast_is_close():
    teacher = tiny_model("llama").float()
    full, mixed = (
        trained(pruned().float(), 1, train="layers", objective=lesson(teacher, precision))
        for precision in ("full", "bfloat16")
    )
    assert mixed.losses[0] == pytest.approx(full.losses[0], rel=0.05)
    assert mixed.losses[0] != full.losses[0]


def test_states_are_those_after_the_asked_layers():
    model, family = tiny_model("llama"), listed_family(tiny_model("llama").config)
    ids = windows(2).ids
    with states_after(model, family, [1]) as states:
        output = model.base_model(ids, output_hidden_states=True)
    assert torch.equal(states[0], output.hidden_states[2])
    model(ids)
    assert len(states) == 1
