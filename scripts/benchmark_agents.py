r"""Compare agents: agents x tasks x seeds at equal numbers of mask evaluations.

    pgprune benchmark --agents auto reinforce ppo --tasks builtin:0.5 --seeds 3
    pgprune benchmark --agents all --tasks DIR:0.3 DIR:0.5:layers \
        --calibration a.jsonl --evaluation b.jsonl --output benchmark
    pgprune benchmark --output benchmark --report --into docs/benchmark/README.md

Every cell is a run in the output directory, and its figures are a line of benchmark.jsonl. What is
there is not measured again, so the command can be killed and repeated at any time. Agents have the
settings of experiments/benchmark_settings, chosen at 500 evaluations, not the defaults of pgprune
train. Options of pgprune train may follow a name: ppo:action=density,ppo-clip=0.1.
"""

if __name__ == "__main__":
    import startup

    startup.begin()


from pgprune.experiments.experiment import Experiment
from pgprune.experiments.plan import BenchmarkConfig, BenchmarkedConfig, agent_cells
from pgprune.experiments.score_tables import report
from pgprune.utils.command_line import run_command

BENCHMARK = Experiment(
    __doc__,
    BenchmarkedConfig,
    BenchmarkConfig,
    lambda compared, config: [agent_cells(compared.agents, compared.tasks, config.all_seeds)],
    report,
)

main, make_parser = BENCHMARK.main, BENCHMARK.make_parser

if __name__ == "__main__":
    run_command(main)
