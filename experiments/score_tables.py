"""The report of a benchmark, as Markdown: who is best, by how much, and at what cost."""

import statistics
from collections import Counter
from pathlib import Path

from pgprune.errors import PruningError
from pgprune.experiments.cells import RANDOM
from pgprune.experiments.plan import BenchmarkConfig
from pgprune.experiments.records import read_records
from pgprune.experiments.report import failures_list, page_of, publish
from pgprune.experiments.score_plots import plot_all
from pgprune.experiments.scores import Scores
from pgprune.experiments.statistics import Estimate
from pgprune.utils.jsonl import Record
from pgprune.utils.markdown import grid, plain, spread


def report(config: BenchmarkConfig) -> str:
    """Writes the tables, with the plots in ``plots`` beside them.

    Returns:
        What to print, as ``publish``.

    Raises:
        PruningError: there is nothing to show, or a file cannot be written.
    """
    records = read_records(config.records)
    scores = Scores(records)
    if not scores.agents:
        failed = [record["error"] for record in records if "error" in record]
        why = f"the first cell failed: {failed[0]}" if failed else "leave out --report"
        raise PruningError(f"nothing of the benchmark {config.output} is measured yet; {why}")
    plots = plot_all(scores, page_of(config).parent / "plots")
    text = "\n".join([tables(scores, records, config), *map(_image, plots)])
    return publish(text, config)


def tables(scores: Scores, records: list[Record], config: BenchmarkConfig) -> str:
    """Writes all tables, under a sentence that says what is best.

    Args:
        scores: of the records.
        records: of the benchmark, failures included.
        config: says which agents are compared seed by seed.
    """
    parts = [_summary(scores), _loss_table(scores), _perplexity_table(scores)]
    if pairs := _paired_table(scores, config.recommended, config.against):
        parts.append(pairs)
    parts.append(f"Hyperparameters:\n\n{_hyperparameters(scores)}")
    return "\n".join(filter(None, [*parts, failures_list(records)]))


def _summary(scores: Scores) -> str:
    if not scores.ranked:
        return "No agent has runs on all tasks, and random masks on them, yet.\n"
    best, *others = scores.ranked
    said = f"Best on average: {best}, score {_interval(scores.mean(best))}"
    if others:
        said += f"; the next is {others[0]}, {_interval(scores.mean(others[0]))}"
    return said + ".\n"


def _loss_table(scores: Scores) -> str:
    """Tabulates scores, losses by task, and costs."""
    head = ["agent", "score", *map(plain, scores.tasks), "seconds", "tokens", "seeds"]
    lines = []
    random = [RANDOM] if scores.ends else []
    for agent in [*_ordered(scores), *random]:
        score = _interval(scores.mean(agent)) if agent in scores.ranked else "–"
        losses = [spread(scores.losses(agent, task)) for task in scores.tasks]
        costs = [_costs(scores, agent, name) for name in ("seconds", "tokens")]
        seeds = {seed for task in scores.tasks for seed in scores.runs(agent, task)}
        shown = [score, *losses, *costs] if agent != RANDOM else ["0", *losses, "–", "–"]
        name = "random masks" if agent == RANDOM else plain(agent)
        lines.append([name, *shown, str(len(seeds))])
    return (
        "Loss of the answer on the validation batch (nats a token), mean ± standard deviation over "
        "the seeds. The score is the interquartile mean over seeds and tasks of (random loss - "
        "loss) / (random loss - best known loss), with its 95 % bootstrap interval. Seconds and "
        "tokens are what a run takes without its evaluation, means over the tasks.\n\n"
        + grid(head, lines)
    )


def _perplexity_table(scores: Scores) -> str:
    """Tabulates perplexities by task and evaluation set."""
    some = {task: scores.some_run(task) for task in scores.tasks}
    columns = [(task, name) for task in some for name in some[task]["dense"]]
    lines = [
        [plain(agent), *(spread(scores.perplexities(agent, *column)) for column in columns)]
        for agent in _ordered(scores)
    ]
    dense = ["dense", *(spread([some[task]["dense"][name]]) for task, name in columns)]
    head = ["agent", *(plain(f"{task} {name}") for task, name in columns)]
    about = "Perplexity of the answer on the evaluation text, mean ± standard deviation.\n\n"
    return about + grid(head, [*lines, dense])


def _paired_table(scores: Scores, one: str, other: str) -> str:
    """Tabulates paired differences in log-perplexity of two agents on shared tasks."""
    lines = []
    for task, (found, pairs) in scores.differences(one, other).items():
        # One pair has no spread, hence no interval and no verdict.
        sure = [f"[{found.low:+.4f}, {found.high:+.4f}]", _verdict(found)]
        interval = sure if pairs > 1 else "––"
        lines.append([plain(task), f"{found.value:+.4f}", *interval, str(pairs)])
    if not lines or one == other:
        return ""
    head = ["task", "difference", "95 % interval", "", "seeds"]
    return (
        f"Log-perplexity of {one} minus that of {other}, seed by seed, with the mean over the "
        f"evaluation sets; below 0, {one} is better.\n\n{grid(head, lines)}"
    )


def _hyperparameters(scores: Scores) -> str:
    """Lists each agent's hyperparameters, and the tasks if they differ between tasks."""
    # Agents may have other settings on other tasks; one line holds the tasks that share them.
    said = dict[tuple[str, str], list[str]]()
    for agent in scores.agents:
        for task in scores.tasks:
            for run in list(scores.runs(agent, task).values())[:1]:
                own = ", ".join(f"{name} {value}" for name, value in run["hyperparameters"].items())
                said.setdefault((agent, own or "the defaults"), []).append(task)
    counts = Counter(agent for agent, _ in said)
    return "".join(
        f"- {plain(agent + (_on(tasks) if counts[agent] > 1 else '') + f': {own}')}\n"
        for (agent, own), tasks in said.items()
    )


def _on(tasks: list[str]) -> str:
    return f" on {', '.join(tasks)}"


def _ordered(scores: Scores) -> list[str]:
    """Returns the agents, best first; those that lack a task come last."""
    return [*scores.ranked, *(one for one in scores.agents if one not in scores.ranked)]


def _costs(scores: Scores, agent: str, name: str) -> str:
    """Computes the mean cost of a run over tasks."""
    means = [
        statistics.fmean(run[name] for run in runs.values())
        for task in scores.tasks
        if (runs := scores.runs(agent, task))
    ]
    return f"{statistics.fmean(means):,.0f}"


def _interval(one: Estimate) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _verdict(one: Estimate) -> str:
    return "better" if one.high < 0 else "worse" if one.low > 0 else "undecided"


def _image(path: Path) -> str:
    return f"![{path.stem.replace('_', ' ')}](plots/{path.name})\n"
