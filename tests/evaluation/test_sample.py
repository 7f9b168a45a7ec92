"""A sample of text: what the models would write by themselves, and how it is shown."""

import copy
import io

import pytest
import torch
from rich.console import Console

from helpers.masks import patterns
from helpers.tiny import letters_tokenizer, masked_lm, tiny_model
from pgprune.evaluation.sample import continue_greedily, sample_text
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.runs.view import print_samples
from pgprune.surgery.layers import prune

LETTERS = 26  # of the tokenizer; the models know a few tokens more


def windows(seed: int, count: int = 4, length: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(LETTERS, (count, length), generator=generator)


@torch.no_grad()
def naive(model, prompts: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """Greedy decoding without a cache."""
    ids = prompts
    for _ in range(new_tokens):
        likeliest = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, likeliest], dim=1)
    return ids[:, prompts.shape[1] :]


def test_decoding_with_a_cache_is_greedy_decoding(model):
    prompts = windows(0)[:, :5]
    assert torch.equal(continue_greedily(model, prompts, 12), naive(model, prompts, 12))


@pytest.mark.parametrize("pattern", ["some", "all heads of layer 1", "layer 0 and some"])
def test_the_texts_are_those_of_the_dense_and_of_the_smaller_model(model, pattern):
    units = PruningUnits.of(model)
    mask = patterns(units)[pattern]
    dense, smaller = copy.deepcopy(model), prune(model, units, mask)
    lm, tokenizer = MaskedLM(model, units), letters_tokenizer()
    ids = windows(0)
    samples = sample_text(lm, mask, tokenizer, {"letters": ids})
    prompts = ids[[0, 2]]  # the beginning and the middle of the only text
    for kind, expected in (("dense", dense), ("pruned", smaller)):
        for sample, prompt, new in zip(samples, prompts, naive(expected, prompts, 44), strict=True):
            assert sample["text"] == "letters"
            assert sample["prompt"] == tokenizer.decode(prompt)
            whole = tokenizer.decode(torch.cat([prompt, new]))
            assert sample[kind] == whole.removeprefix(sample["prompt"])
    assert torch.equal(model(prompts).logits, dense(prompts).logits), "the model is dense again"
    assert lm.meter.tokens == 2 * 2 * (20 + 44 - 1), "a context of 64 tokens is full with 20 + 44"


def test_each_of_the_first_two_texts_gives_a_prompt():
    lm = masked_lm(tiny_model("llama"))
    texts = {name: windows(seed) for seed, name in enumerate(["code", "prose", "more"])}
    samples = sample_text(lm, lm.units.ones(), letters_tokenizer(), texts)
    assert [sample["text"] for sample in samples] == ["code", "prose"]
    for sample in samples:
        assert sample["prompt"] == letters_tokenizer().decode(texts[sample["text"]][0])
        assert sample["dense"] == sample["pruned"] != ""


def test_prompts_of_texts_in_windows_of_several_lengths_are_equally_long():
    lm, tokenizer = masked_lm(tiny_model("llama")), letters_tokenizer()
    texts = {"long": windows(0), "short": windows(1, length=7)}
    samples = sample_text(lm, lm.units.ones(), tokenizer, texts)
    expected = [tokenizer.decode(texts[name][0, :7]) for name in texts]
    assert [sample["prompt"] for sample in samples] == expected


def test_a_long_window_leaves_half_of_a_short_context_to_the_models():
    model = tiny_model("opt")  # whose positions end where its context ends
    lm = masked_lm(model)
    (sample, _) = sample_text(
        lm, lm.units.ones(), letters_tokenizer(), {"long": windows(0, length=60)}
    )
    assert len(sample["prompt"].replace(" ", "")) == 32


def test_nothing_is_shown_after_the_end_of_a_document():
    model, tokenizer = tiny_model("llama"), letters_tokenizer()
    ids = windows(0, count=1)
    first, second = continue_greedily(model, ids, 2)[0].tolist()
    assert first != second and max(first, second) < LETTERS
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(second)
    lm = masked_lm(model)
    sample = sample_text(lm, lm.units.ones(), tokenizer, {"letters": ids})[0]
    assert sample["dense"].strip() == tokenizer.decode([first])


SAMPLE = {
    "text": "code",
    "prompt": "def read(path):\n    return",
    "dense": " path.read_text()\n\n\tdef write():",
    "pruned": " [bold]path[/bold]\x1b[2J " + "again and again " * 12,
}


@pytest.mark.parametrize("width", [80, 120, 200])
def test_samples_stand_side_by_side(width):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_samples([SAMPLE], console)
    text = console.file.getvalue()
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= min(width, 120)
    assert "code: def read(path): return ..." in lines
    both = next(line for line in lines if "path.read_text()" in line)
    assert "[bold]path[/bold]" in both, "what a model writes is no markup"
    assert "\x1b" not in text, "nor does it steer the terminal"
    assert any(line.startswith("    def write():") for line in lines), "code keeps its lines"
