"""Targets are read as people write them; what is none is refused in one sentence."""

import pytest

from pgprune import PruningError
from pgprune.budget.problem import PruningConfig
from pgprune.budget.targets import Target, parse_targets


@pytest.mark.parametrize(
    "text, quantity, limit, batch, length",
    [
        ("parameters<=100M", "parameters", 1e8, 0, 0),
        ("parameters<=1.5B", "parameters", 1.5e9, 0, 0),
        ("parameters <= 100_000", "parameters", 1e5, 0, 0),
        ("memory<=6GB@8x8192", "memory", 6e9, 8, 8192),
        ("memory<=512MiB", "memory", 2**29, 0, 0),
        ("prefill<=0.7@8x512", "prefill", 0.7, 8, 512),
        ("decode≤70%@1x512", "decode", 0.7, 1, 512),
    ],
)
def test_a_target_is_read(text, quantity, limit, batch, length):
    target = Target.parse(text)
    assert (target.quantity, target.batch, target.length) == (quantity, batch, length)
    assert target.limit == pytest.approx(limit)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("100M", "not of the form QUANTITY<=VALUE"),
        ("parameters<100M", "not of the form"),
        ("memroy<=6GB@8x8192", "limits 'memroy', which is none of parameters, active"),
        ("parameters<=-5M", "needs a number above 0, not '-5M'"),
        ("parameters<=0", "needs a number above 0"),
        ("parameters<=many", "needs a number above 0"),
        ("parameters<=5MB", "has the unit 'MB', but parameters is in K, M, B"),
        ("memory<=6@8x8192", "needs a unit: one of B, KB, MB, GB"),
        ("parameters<=5M@8x8", "does not depend on a batch; leave out @8x8"),
        ("memory<=6GB@8", "needs @BATCHxLENGTH"),
        ("memory<=6GB@0x8192", "needs @BATCHxLENGTH"),
        ("prefill<=0.7", "needs @BATCHxLENGTH"),
        ("prefill<=1.2@8x512", "must be below 1"),
    ],
)
def test_what_is_no_target_is_refused_in_a_sentence(text, sentence):
    with pytest.raises(PruningError) as refused:
        PruningConfig(target=(text,))
    assert sentence in str(refused.value)
    assert text.split("<")[0] in str(refused.value)


def test_two_limits_of_the_same_are_refused():
    with pytest.raises(PruningError, match="limit the same"):
        parse_targets(("parameters<=5M", "parameters<=6M"))
    assert len(parse_targets(("memory<=5MB", "memory<=9MB@1x64"))) == 2


def test_a_rate_and_a_target_are_one_too_many():
    with pytest.raises(PruningError, match="prune_rate 0.3 and target parameters<=5M both say"):
        PruningConfig(prune_rate=0.3, target=("parameters<=5M",))


def test_a_name_of_a_run_says_its_targets():
    assert PruningConfig(prune_rate=0.3).amount == "0.3"
    targets = "parameters<=5M", "memory<=6GB@8x8192"
    assert PruningConfig(target=targets).amount == "parameters-5M+memory-6GB-8x8192"
