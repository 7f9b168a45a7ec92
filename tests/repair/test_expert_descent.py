"""Down projections of experts in turns, against one least-squares problem of all of them."""

import pytest
import torch

from pgprune import PruningError
from pgprune.repair.expert_descent import ExpertDescent, Tokens

EXPERTS, INPUTS, OUTPUTS, COUNT = 4, 3, 5, 60
DAMPING = 0.01


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def tokens() -> Tokens:
    """Tokens that use two of the first three experts each, and count differently."""
    choice = torch.stack([torch.arange(COUNT) % 3, (torch.arange(COUNT) // 3 % 2 + 1)], dim=1)
    choice[:, 1] = (choice[:, 0] + choice[:, 1]) % 3
    weights, counts = normal(COUNT, 2).abs(), normal(COUNT).square() + 0.1
    return Tokens(normal(COUNT, OUTPUTS), choice, weights, normal(COUNT, OUTPUTS, seed=1), counts)


def inputs_of(expert: int, states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return weights[:, None] * (states @ normal(OUTPUTS, INPUTS, seed=expert)).square()


def dense() -> dict[int, torch.Tensor]:
    return {expert: normal(OUTPUTS, INPUTS, seed=10 + expert) for expert in range(EXPERTS)}


def descent_of(tokens: Tokens) -> ExpertDescent:
    parts = zip(*(part.split(25) for part in tokens), strict=True)
    return ExpertDescent([Tokens(*part) for part in parts], dense(), inputs_of)


def joint_inputs(tokens: Tokens) -> torch.Tensor:
    """g h of all experts side by side, zero where a token does not use one: (t, E * inputs)."""
    columns = []
    for expert in range(EXPERTS):
        weights = (tokens.weights * (tokens.experts == expert)).sum(1)
        columns.append(inputs_of(expert, tokens.states, weights))
    return torch.cat(columns, dim=1)


def solution_of(tokens: Tokens) -> torch.Tensor:
    """The joint solution, (outputs, E * inputs)."""
    inputs, start = joint_inputs(tokens), torch.cat(list(dense().values()), dim=1)
    rows = tokens.counts[:, None] * inputs
    gram = rows.T @ inputs
    ridge = DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return start + torch.linalg.solve(gram + ridge, rows.T @ tokens.missing).T


def test_sweeps_come_to_the_joint_solution(tokens):
    fitted = descent_of(tokens).fit(DAMPING, sweeps=400)
    found = torch.cat(list(fitted.values()), dim=1)
    torch.testing.assert_close(found, solution_of(tokens), rtol=0, atol=1e-9)


def test_no_sweep_raises_the_error_and_three_are_nearly_enough(tokens):
    descent = descent_of(tokens)
    errors = [descent.error(descent.fit(0.0001, sweeps), [tokens]) for sweeps in range(5)]
    assert errors == sorted(errors, reverse=True)
    best = descent.error(descent.fit(0.0001, 400), [tokens])
    assert errors[3] - best <= 0.02 * (errors[0] - best)


def test_the_error_is_that_of_the_changed_experts_on_any_tokens(tokens):
    descent = descent_of(tokens)
    fitted = descent.fit(DAMPING)
    change = torch.cat([fitted[e] - dense()[e] for e in range(EXPERTS)], dim=1)
    other = tokens._replace(states=normal(COUNT, OUTPUTS, seed=2))
    left = other.missing - joint_inputs(other) @ change.T
    expected = float((other.counts[:, None] * left.square()).sum())
    assert descent.error(fitted, [other]) == pytest.approx(expected, rel=1e-12)


def test_experts_keep_their_weights_without_tokens_and_nearly_with_one(tokens):
    tokens.experts[0, 1] = 3  # its only token
    few = descent_of(tokens).fit(DAMPING)
    tokens.weights[0, 1] = 0  # as of a token that has no second expert left
    none = descent_of(tokens).fit(DAMPING)
    assert torch.equal(none[3], dense()[3])
    changes = [float((few[e] - dense()[e]).norm()) for e in range(EXPERTS)]
    assert 0 < changes[3] < min(changes[:3])


@pytest.mark.parametrize(
    ("states", "damping", "message"),
    [
        (torch.inf, DAMPING, "activations at expert 0 of layer 7 overflow"),
        (0, 0, "second moments of the 3 inputs of expert 0 of layer 7 are singular; damp them"),
    ],
)
def test_what_cannot_be_solved_names_the_expert(states, damping, message, tokens):
    tokens.states[:] = states
    descent = ExpertDescent([tokens], dense(), inputs_of, "layer 7")
    with pytest.raises(PruningError, match=message):
        descent.fit(damping)
