"""Measures the table of docs/recovery.md: masks of the built-in model, finetuned on its own text.

    python benchmarks/recovery.py --output DIR                          # all of it, 2 cores
    python benchmarks/recovery.py --output DIR --seeds 1 --samples 64 --timesteps 20    # a look
    python benchmarks/recovery.py --output DIR --report --into docs/recovery.md

For each seed, train_agent.py learns a mask by policy gradient at the prune rate; the one-shot mask
that it started from is Wanda-sp's. Both pruned models are finetuned by finetune.py on the
calibration text. What DIR holds is not done again, so the command can be killed and repeated.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from pgprune.utils.markdown import grid, renew, spread

SCRIPTS = Path(__file__).parents[1] / "scripts"
METHODS = {"wanda-sp": "Wanda-sp", "policy-gradient": "policy gradient"}


def main(arguments: list[str] | None = None) -> int:
    """Does what is missing, then prints the table or renews it in a page."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.report:
        for seed in range(options.seeds):
            measure(seed, options)
    text = table(options)
    if options.into:
        page = options.into.read_text()
        options.into.write_text(renew(page, "recovery", text))
    else:
        print(text)
    return 0


def measure(seed: int, options: argparse.Namespace) -> None:
    """Prunes and finetunes under one seed, as far as that is not done yet."""
    run = run_of(seed, options)
    if not (run / "results.json").exists():
        start = ["--resume", run] if run.exists() else ["--output", run, "--seed", seed]
        if not run.exists():
            start += ["--prune-rate", options.prune_rate, "--total-timesteps", options.timesteps]
        command("train_agent.py", *start, "--quiet")
    one_shot(run, model_of("wanda-sp", seed, options))
    for method in METHODS:
        output = finetuned_of(method, seed, options)
        if not output.exists():
            settings = ["--data", "builtin", "--evaluation", "builtin", "--seed", seed]
            settings += ["--evaluation-windows", "400"]
            settings += ["--samples", options.samples]
            settings += ["--sequence-length", options.sequence_length, "--resume"]
            settings += ["--learning-rate", options.learning_rate]
            model = model_of(method, seed, options)
            command("finetune.py", model, "--output", output, *settings)


def one_shot(run: Path, output: Path) -> None:
    """Writes the model that the mask leaves which a run started from, unless it is there."""
    # The mask that the run started from is in its mask file, so nothing is pruned again.
    if output.exists():
        return
    from pgprune.runs.finished import FinishedRun
    from pgprune.surgery.layers import prune
    from pgprune.utils.files import new_directory

    source = FinishedRun.open(run).load()
    model = prune(source.model, source.units, load_file(run / "mask.safetensors")["initial"])
    with new_directory(output) as directory:
        model.save_pretrained(directory)
        source.tokenizer.save_pretrained(directory)


def table(options: argparse.Namespace) -> str:
    """Tabulates perplexities before and after, as Markdown: means ± sample deviations."""
    records = {method: _records(method, options) for method in METHODS}
    found = [record for rows in records.values() for record in rows]
    if not found:
        return "Nothing is measured yet.\n"
    sets = list(found[0]["perplexity"]["before"])
    head = ["mask", "parameters"]
    head += [f"{name}, {when}" for name in sets for when in ("pruned", "finetuned")]
    lines = [_dense(options, sets)]
    for method, rows in records.items():
        cells = [METHODS[method], f"{rows[0]['parameters']:,}" if rows else "–"]
        for name in sets:
            for when in ("before", "after"):
                cells.append(spread([row["perplexity"][when][name] for row in rows]))
        lines.append(cells)
    counts = ", ".join(f"{METHODS[name]} {len(rows)}" for name, rows in records.items())
    data, evaluation = (found[0][key] for key in ("data", "evaluation"))
    lora = found[0].get("training") or found[0]["lora"]  # of earlier versions
    windows = ", ".join(f"{count} of {name}" for name, count in evaluation["windows"].items())
    return (
        f"{grid(head, lines)}\nPrune rate {options.prune_rate:g}, "
        f"{options.timesteps:,} mask evaluations; finetuned "
        f"on {data['windows']:,} windows of {data['sequence_length']} tokens of the training part "
        f"of the built-in code ({found[0]['updates']['planned']:,} updates of "
        f"{lora['batch_size']}, step size {lora['learning_rate']:g}). "
        f"Perplexity on held-out text, windows of {evaluation['sequence_length']} tokens "
        f"({windows}). Seeds: {counts}.\n"
    )


def run_of(seed: int, options: argparse.Namespace) -> Path:
    """Returns the run of a seed."""
    name = f"policy-gradient-{options.prune_rate:g}-{options.timesteps}-seed{seed}"
    return Path(options.output / name)


def model_of(method: str, seed: int, options: argparse.Namespace) -> Path:
    """Returns the path to finetune: the run, or the model of its one-shot mask."""
    run = run_of(seed, options)
    return run if method == "policy-gradient" else run.with_name(f"{method}-of-{run.name}")


def finetuned_of(method: str, seed: int, options: argparse.Namespace) -> Path:
    """Returns the directory of a method's finetuned model, which depends on the settings."""
    model = model_of(method, seed, options)
    # The settings are in the name: other ones do not find these results.
    size = f"{options.samples}x{options.sequence_length}"
    return model.with_name(f"{model.name}-finetuned-{size}-{options.learning_rate:g}")


def _records(method: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    paths = [finetuned_of(method, s, options) / "finetuning.json" for s in range(options.seeds)]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def _dense(options: argparse.Namespace, sets: list[str]) -> list[str]:
    results = json.loads((run_of(0, options) / "results.json").read_text())
    cells = ["none (dense)", f"{results['parameters']['dense']:,}"]
    for name in sets:
        cells += [spread([results["perplexity"]["dense"][name]]), "–"]
    return cells


def command(script: str, *options: object) -> None:
    """Runs a script of the project; Ctrl-C kills it, as it would else keep half of the work."""
    words = [sys.executable, str(SCRIPTS / script), *map(str, options)]
    print("$", script, *words[2:], file=sys.stderr, flush=True)
    # In another session Ctrl-C does not reach it: it is killed, and keeps no half of the work.
    process = subprocess.Popen(words, start_new_session=True)
    try:
        if process.wait():
            sys.exit(f"{script} failed with status {process.returncode}")
    except BaseException:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="directory of all runs and models")
    add("--seeds", type=int, default=3, help="0, 1, ... (default 3)")
    add("--prune-rate", type=float, default=0.5, help="default 0.5")
    add("--timesteps", type=int, default=2000, help="mask evaluations (default 2000)")
    add("--samples", type=int, default=4000, help="windows to finetune on (default 4000)")
    add("--sequence-length", type=int, default=512, help="their tokens (default 512, the most)")
    add("--learning-rate", type=float, default=1e-2, help="AdamW's highest (default 0.01)")
    add("--report", action="store_true", help="measure nothing, show what there is")
    add("--into", type=Path, metavar="PAGE", help="renew the table of this page")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the command ends too
    sys.exit(main())
