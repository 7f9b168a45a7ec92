"""Writes the README.md of an exported model: what it is, its numbers, how they were obtained."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pgprune.repair.config import RepairConfig, describe
from pgprune.runs.finished import FinishedRun
from pgprune.runs.run import Run
from pgprune.utils.files import user_path
from pgprune.utils.markdown import grid, plain

CARD = "README.md"
"""The file of the card, which people may edit."""

_NAMES = {
    "builtin": "pgprune's built-in model",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "gemma3-270m": "google/gemma-3-270m",
}
_ROWS = {
    "dense": "dense model",
    "initial": "pruned by the initialising metric alone",
    "learned": "pruned by the run's own mask",
    "masked": "pruned, without repair",
    "pruned": "this model",
}

_LLAMA_CPP = """```sh
llama-cli -m model.gguf -p "Once upon a time"   # llama.cpp
echo "FROM ./model.gguf" > Modelfile && ollama create pruned   # Ollama
llama-quantize model.gguf smaller.gguf Q8_0   # 8 bits a weight
```

llama.cpp calls the architecture `deci` where layers may differ in size. Quantised, a tensor whose
width is no multiple of 32 stays in half precision, and one of the K formats whose width is no
multiple of 256 takes a larger format; exporting with `--round-to 32` or `--round-to 256` avoids
that."""


def model_card(
    run: FinishedRun, kind: str, remote_code: bool, parameters: int, notes: Sequence[str] = ()
) -> str:
    """Writes the card: Markdown with the hub's metadata on top.

    Args:
        run: with the results and settings of what is shipped.
        kind: the export format.
        remote_code: whether loading needs ``trust_remote_code`` where pgprune is not imported.
        parameters: of the exported model, tied ones once.
        notes: paragraphs on what is special about this model.
    """
    base, results, sections = base_name(run), run.results, run.sections
    metadata: dict[str, Any] = {
        "library_name": "gguf" if kind == "gguf" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pgprune", "pruning", "text-generation"],
    }
    if base.count("/") == 1:  # a hub id
        metadata["base_model"] = base
    # The hub reads the metadata between the two lines of dashes.
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {plain(base)}, pruned",
        _what(plain(base), kind, parameters, results),
        *notes,
        _LLAMA_CPP if kind == "gguf" else _loading(remote_code),
        "## Perplexity",
        _perplexities(results),
        "## How these numbers were obtained",
        _evaluation(results, sections),
        _search(results, sections),
    ]
    if not results.get("completed", True):
        parts.insert(2, "**The search for this mask was interrupted before its end.**")
    return "\n\n".join(parts) + "\n"


def _what(base: str, kind: str, parameters: int, results: Mapping[str, Any]) -> str:
    counts, rate = results["parameters"], results["prune_rate"]
    kept = counts["pruned"]
    text = (
        f"{base} without {rate['achieved']:.2%} of its prunable parameters "
        f"(granularity `{results['granularity']}`, asked: {rate['requested']:.0%}): "
        f"{kept:,} of {counts['dense']:,} parameters are left, {kept / counts['dense']:.1%}."
    )
    if kind == "masked":
        text += (
            f" The pruned ones are zeros in the dense shapes, so this file still holds "
            f"{parameters:,} numbers and is neither smaller nor faster."
        )
    return text


def _loading(remote_code: bool) -> str:
    option = ", trust_remote_code=True" if remote_code else ""
    text = (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained(DIRECTORY{option})\n"
        f"tokenizer = AutoTokenizer.from_pretrained(DIRECTORY{option})\n"
        "```"
    )
    if remote_code:
        text += (
            "\n\nNeeds transformers 5.15 or newer. Stock architectures cannot express its layers; "
            "the `modeling_*.py` beside the weights builds them from transformers' own. After "
            "`pgprune.register()`, `trust_remote_code` is not needed."
        )
    return text


def _perplexities(results: Mapping[str, Any]) -> str:
    table, errors = results["perplexity"], results.get("standard_error", {})
    rows = [row for row in _ROWS if row in table]
    sets = list(table[rows[0]]) if rows else []
    lines = [
        [
            _ROWS[row],
            *(
                perplexity_text(table[row].get(text), errors.get(row, {}).get(text))
                for text in sets
            ),
        ]
        for row in rows
    ]
    return grid(["", *map(plain, sets)], lines).rstrip()


def _evaluation(results: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> str:
    evaluation, data = results["evaluation"], sections["data"]
    windows = ", ".join(
        f"{n} of {plain(text)}" for text, n in evaluation.get("windows", {}).items()
    )
    return (
        f"Perplexity: exp of the mean cross-entropy over all predicted tokens of the first windows "
        f"of {evaluation['sequence_length']} tokens each (or as the text's name says after @) of "
        "the evaluation text "
        f"({windows or 'number not recorded'}), each read on its own; BOS: {evaluation['bos']}; "
        f"evaluation text: {public_names(data['evaluation'])}. Perplexities compare only at the "
        "same text, window length, BOS rule and tokenizer; ± is the standard error over windows. "
        "They were measured on the masked model, with its repair where it has one, whose logits "
        "surgery does not change beyond rounding."
    )


def _search(results: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> str:
    method = results.get("agent", results.get("method", "unknown"))
    round_to = sections.get("pruning", {}).get("round_to", 1)
    multiples = f", channels in multiples of {round_to}" if round_to > 1 else ""
    facts = {
        "method": method,
        "budget": f"{results['budget']}, {results.get('scope', 'global')}{multiples}",
        "repair": _repair(results, sections),
        "calibration text": public_names(sections["data"]["calibration"]),
        "masks evaluated": f"{results['mask_evaluations']:,.0f} (on 1,024 tokens each)",
        "tokens read by the model": f"{results['tokens']:,}",
        "seconds": f"{results['seconds']:,.0f}",
        "seed": results["seed"],
        "versions": ", ".join(f"{name} {v}" for name, v in results["versions"].items()),
    }
    return grid(["", ""], [[name, str(fact)] for name, fact in facts.items()]).rstrip()


def _repair(results: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Names the repair that the model was shipped with."""
    config = RepairConfig(**sections.get("repair", {}))
    table, chosen = results["perplexity"], results.get("repair", {})
    name = "weights of levels" if chosen.get("asked") == "levels" else describe(config)
    if name == "auto":  # of a method that brings one, or of none
        brought = "masked" in table and table["pruned"] != table["masked"]
        return "the method's own" if brought else "none"
    dropped = not chosen.get("shipped", True) and name != "none"
    return f"none; {name} does harm on held-out text" if dropped else name


def base_name(run: Run) -> str:
    """Returns the name of the dense model of a run, without the folders of this machine."""
    return public_name(run.sections["model"]["model"])


def public_name(model: str) -> str:
    """Returns a model's name without the folders that hold it on this machine."""
    if model in _NAMES:
        return _NAMES[model]
    path = user_path(model)
    return path.resolve().name if path.exists() else model


def public_names(source: str) -> str:
    """Returns a text source without the folders of the machine that it was read on."""
    items = (item.rpartition("/")[2] if _is_path(item) else item for item in source.split(","))
    # Code, unless it would end early.
    return ", ".join(f"`{it}`" if plain(it) == it else plain(it) for it in items)


def _is_path(item: str) -> bool:
    return item.count("/") > 1 or item.strip().startswith((".", "/", "~"))


def perplexity_text(value: float | None, error: float | None = None) -> str:
    """Writes a perplexity for a card, where None is what results.json has for infinity."""
    if value is None:
        return "not finite"
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"
