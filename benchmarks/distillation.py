"""Measures stages of recovery: a mask, its repair, blocks by themselves, distilled; LoRA on text.

    python benchmarks/distillation.py --run runs/NAME --tokens 256k --output DIR
    python benchmarks/distillation.py --output benchmarks/records --report --into docs/recovery.md

``--run`` takes finished runs, such as those of two seeds. Each is distilled with its blocks fitted
before (``finetune --local --distill``), and finetuned by LoRA on the same tokens, with the same
windows held out. Windows and texts of evaluation are the run's own. Every model is a directory in
DIR and every result a line of DIR/distillation.jsonl, so the command can be killed and repeated.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from recovery import command

from pgprune.utils.jsonl import add_line
from pgprune.utils.markdown import grid, renew, spread

WAYS = {
    "distilled": ("--local", "--distill"),
    "distilled-alone": ("--distill",),
    "lora": ("--train", "lora", "--validation", "builtin:prose"),
}
"""Options of ``finetune`` by the name of a way; the first measures blocks by themselves too."""

STAGES = {
    "dense": "dense",
    "masked": "mask",
    "pruned": "repaired",
    "local": "blocks by themselves",
    "distilled": "blocks, then distilled",
    "distilled-alone": "distilled",
    "lora": "LoRA on the text",
}
RECORDS = "distillation.jsonl"


def main(arguments: list[str] | None = None) -> int:
    """Does what is missing, then prints the table or renews it in a page."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.report:
        for run in options.run:
            for way in options.ways:
                measure(run, way, options)
    text = table(read(options.output))
    if options.into:
        page = options.into.read_text()
        options.into.write_text(renew(page, "distillation", text))
    else:
        print(text)
    return 0


def measure(run: Path, way: str, options: argparse.Namespace) -> None:
    """Finetunes a run in one way, and adds the record, as far as that is not done yet."""
    results = json.loads((run / "results.json").read_text())
    name = f"{run.resolve().name}-{way}-{options.tokens}x{options.sequence_length}"
    found = read(options.output)
    if any(record["name"] == name for record in found):
        return
    output = options.output / name
    if not (output / "finetuning.json").exists():
        words = ["--output", output, "--tokens", options.tokens, "--resume"]
        words += ["--sequence-length", options.sequence_length, "--batch-size", options.batch_size]
        words += ["--precision", options.precision, *WAYS[way]]
        words += ["--attn-implementation", options.attn_implementation]
        words += ["--micro-batch-size", options.micro_batch_size]
        if way == "lora" and options.lora_learning_rate:
            words += ["--learning-rate", options.lora_learning_rate]
        command("finetune.py", run, *words)
    done = json.loads((output / "finetuning.json").read_text())
    add_line(options.output / RECORDS, record_of(name, way, results, done))


def record_of(name: str, way: str, results: dict[str, Any], done: dict[str, Any]) -> dict[str, Any]:
    """Returns what the table needs of a run's results and of a finetuning's record."""
    rows = {
        row: results["perplexity"][row]
        for row in ("dense", "masked", "pruned")
        if row in results["perplexity"]
    }
    rows |= {"local": done["perplexity"]["local"]} if "local" in done["perplexity"] else {}
    stages = {"local" if each["stage"] == "local" else way: each for each in done["stages"]}
    return {
        "name": name,
        "way": way,
        "model": results["model"].rpartition("/")[2],
        "prune_rate": results["prune_rate"]["requested"],
        "parameters": done["parameters"],
        "seed": results["seed"],
        "perplexity": {**rows, way: done["perplexity"]["after"]},
        "pruning_seconds": results["seconds"],
        "stages": {
            stage: {"tokens": each["tokens"], "seconds": each["seconds"]}
            for stage, each in stages.items()
        },
        "training": done["training"],
        "kept": done["kept"]["update"],
        "data": done["data"],
        "held_out": done["validation"]["texts"],
        "windows": done["evaluation"]["windows"],
        "versions": done["versions"],
    }


def read(output: Path) -> list[dict[str, Any]]:
    """Reads the records that there are."""
    path = output / RECORDS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(records: list[dict[str, Any]]) -> str:
    """Tabulates the stages of every model, rate and number of tokens, as Markdown."""
    if not records:
        return "Nothing is measured yet.\n"
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        data = record["data"]
        tokens = data["windows"] * data["sequence_length"]
        key = (record["model"], record["prune_rate"], tokens, data["sequence_length"])
        groups.setdefault(key, []).append(record)
    return "\n".join(_group(*key, records) for key, records in groups.items())


def _group(model: str, rate: float, tokens: int, length: int, records: list[dict[str, Any]]) -> str:
    texts = list(records[0]["perplexity"]["dense"])
    rows = []
    for stage, label in STAGES.items():
        found = _of_seeds(stage, records)
        if not found:
            continue
        times = [each["stages"][stage] for each in found if stage in each["stages"]]
        rows.append(
            [
                label,
                f"{round(mean(each['tokens'] for each in times)):,}" if times else "–",
                f"{mean(each['seconds'] for each in times) / 60:.1f}" if times else "–",
                *(spread([each["perplexity"][stage][text] for each in found]) for text in texts),
                _recovered(stage, found, texts),
            ]
        )
    head = ["stage", "tokens", "minutes", *texts, "of the gap"]
    seeds = ", ".join(map(str, sorted({record["seed"] for record in records})))
    one = records[0]
    held = " and ".join(one["held_out"].values())
    rates = {r["way"]: f"{r['training']['learning_rate']:.2g}" for r in records}
    return (
        f"{model}, prune rate {rate:g}, {one['parameters']:,} parameters, seeds {seeds}:\n\n"
        f"{grid(head, rows)}\n"
        f"{tokens:,} tokens of {one['data']['source']} in windows of {length}; held-out windows "
        f"of {held}; step sizes {', '.join(f'{way} {rate}' for way, rate in rates.items())}. "
        "Of the gap: the share of the repaired model's distance to the dense one in "
        "log-perplexity that is gone, the mean over the texts.\n"
    )


def _of_seeds(stage: str, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a record of each seed that has a stage; what ways share is counted once."""
    return list({r["seed"]: r for r in records if stage in r["perplexity"]}.values())


def _recovered(stage: str, records: list[dict[str, Any]], texts: list[str]) -> str:
    """Returns the share of the gap that is gone, after the repair."""
    from math import log

    if stage in ("dense", "masked", "pruned"):
        return "–"
    shares = []
    for record in records:
        rows = record["perplexity"]
        for text in texts:
            dense, before, after = (log(rows[row][text]) for row in ("dense", "pruned", stage))
            shares.append((before - after) / (before - dense))
    return f"{mean(shares):.0%}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="directory of all models and records")
    add("--run", type=Path, nargs="+", default=[], metavar="DIR", help="finished runs")
    add("--tokens", default="256k", help="to train on, of each way (default 256k)")
    add("--sequence-length", type=int, default=128, help="tokens a window (default 128)")
    add("--batch-size", type=int, default=16, help="windows an update (default 16)")
    add("--lora-learning-rate", type=float, help="of LoRA on text (default that of finetune)")
    add("--precision", default="auto", help="as of finetune (default auto)")
    add("--attn-implementation", default="sdpa", help="as of finetune (default sdpa)")
    add("--micro-batch-size", type=int, default=4, help="as of finetune (default 4)")
    add("--ways", nargs="+", choices=WAYS, default=["distilled", "lora"], help="what is measured")
    add("--report", action="store_true", help="measure nothing, show what there is")
    add("--into", type=Path, metavar="PAGE", help="renew the table of this page")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the command ends too
    sys.exit(main())
