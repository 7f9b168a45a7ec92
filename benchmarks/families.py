"""Measures how exact masks and surgery are in each family, and makes the table of docs/families.md.

    python benchmarks/families.py --output DIR                      # minutes; --families for some
    python benchmarks/families.py --output DIR --report --into docs/families.md

Every family has a tiny random model, that of its tests: three layers or four, all sliding windows
shorter than the texts. A stock model with zeros in place of pruned weights is what masked and
sliced evaluation, the cut model with a cache and without, and the cut model saved and loaded again
are compared with, over all patterns of masks. A router would send tokens to experts of zeros, so in
mixtures masked evaluation is what the others are compared with, over patterns that keep as many
experts as a token uses. A record is one line of DIR/families.jsonl.
"""

import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import pgprune
from pgprune.errors import PruningError
from pgprune.surgery.layers import prune
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.jsonl import Record, add_line, read_lines
from pgprune.utils.markdown import check_page, grid, renew_page
from pgprune.utils.options import Config, option

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # their models and patterns
from helpers.masks import Case, case_of, with_enough_experts  # noqa: E402
from helpers.mixtures import MIXTURES  # noqa: E402
from helpers.pruned import in_pieces  # noqa: E402
from helpers.tiny import CONFIGS, tiny_model  # noqa: E402

MARKER = "families"
GRANULARITIES = ("heads+channels", "values+channels", "channels", "blocks", "layers")
OF_MIXTURES = ("experts", "experts+channels", "heads+experts", "values", "blocks", "layers")
FORMATS = ("float64", "float32", "bfloat16")


@dataclass(frozen=True)
class FamiliesConfig(Config):
    """Records: where they are, and what is made of them."""

    families: tuple[str, ...] = option(
        (*CONFIGS, *MIXTURES), "which to measure", choices=[*CONFIGS, *MIXTURES]
    )
    output: str = option("families", "directory of families.jsonl", metavar="DIR")
    report: bool = option(False, "measure nothing: the table of what is in --output")
    into: tuple[str, ...] | None = option(
        None, "Markdown pages with a place for the table", unset="none", metavar="FILE"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Adds the records of families, and shows the table of all records."""
    parser = ArgumentParser(__doc__, FamiliesConfig)
    config = from_arguments(FamiliesConfig, parser.parse_args(words))
    pages = [Path(page) for page in config.into or ()]
    for page in pages:
        check_page(page, MARKER)
    records = Path(config.output) / "families.jsonl"
    records.parent.mkdir(parents=True, exist_ok=True)
    pgprune.register()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    for family in () if config.report else config.families:
        for record in measure(family):
            add_line(records, record)
    text = table(read_lines(records))
    for page in pages:
        renew_page(page, MARKER, text)
    if not pages:
        print(text)
    return 0


def measure(family: str) -> Iterator[Record]:
    """Yields a record for each granularity of a family."""
    for granularity in OF_MIXTURES if family in MIXTURES else GRANULARITIES:
        record: Record = {"family": family, "granularity": granularity}
        try:
            case = case_of(tiny_model(family), granularity)
            if family in MIXTURES:
                case = with_enough_experts(case)
            wide = {dtype: difference(case, getattr(torch, dtype)) for dtype in FORMATS[:2]}
            # In bfloat16 a token may take another expert, and nothing is to be compared.
            half = {} if family in MIXTURES else {FORMATS[2]: more_rounding(case)}
            yield record | wide | half
        except PruningError as error:
            reason = str(error).partition(", because ")[2].partition(";")[0]
            yield record | {"refused": reason}


def difference(case: Case, dtype: torch.dtype) -> float:
    """Computes the largest difference of logits, relative to the largest logit of its pattern."""
    masked = _is_mixture(case.model)
    expected = case.logits("masked", dtype) if masked else case.reference(dtype)
    sizes = expected.abs().amax((1, 2, 3))  # (K,)
    every = all_logits(case, expected, dtype)
    return max(float(((each - expected).abs().amax((1, 2, 3)) / sizes).max()) for each in every)


def more_rounding(case: Case) -> float:
    """Computes the largest error in bfloat16, as a multiple of the stock model's own.

    Both are root mean squares of differences from the stock model in float32, pattern by pattern.
    """
    case = copy.copy(case)
    case.model = copy.deepcopy(case.model).to(torch.bfloat16).to(torch.float64)
    exact, stock = case.reference(torch.float32), case.reference(torch.bfloat16)
    own = case.size(stock - exact).clamp(min=1e-9)  # (K,)
    every = all_logits(case, stock, torch.bfloat16)
    return max(float((case.size(each - exact) / own).max()) for each in every)


def all_logits(case: Case, expected: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Computes logits (K, B, T, vocabulary) in all ways that there are to run masks."""
    model = copy.deepcopy(case.model).to(dtype)
    found = [case.logits(executor, dtype) for executor in ("masked", "sliced")]
    gone = torch.tensor([not mask.any() for mask in case.masks])  # whole models are not cut away
    cuts = [
        expected[k].to(dtype).repeat(3, 1, 1, 1) if gone[k] else cut_logits(model, case, mask)
        for k, mask in enumerate(case.masks)
    ]
    return [*found, *torch.stack(cuts).double().unbind(1)]


@torch.no_grad()
def cut_logits(model: PreTrainedModel, case: Case, mask: Tensor) -> Tensor:
    """Computes logits of the cut model as it is, with a cache and saved: (3, B, T, vocabulary)."""
    cut = prune(model, case.units, mask)
    with tempfile.TemporaryDirectory() as folder:
        cut.save_pretrained(folder)
        known = {"experts_implementation": "eager"} if _is_mixture(model) else {}  # in float64
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=cut.dtype, **known)
    return torch.stack([cut(case.ids).logits, in_pieces(cut, case.ids), loaded(case.ids).logits])


def table(records: Sequence[Record]) -> str:
    """Makes the tables, families by granularity; of several records of a cell the last counts."""
    cells = {(record["family"], record["granularity"]): _cell(record) for record in records}
    families = dict.fromkeys(record["family"] for record in records)
    reasons = {record["refused"]: None for record in records if "refused" in record}
    text = ""
    for title, columns, of in (("family", GRANULARITIES, False), ("mixture", OF_MIXTURES, True)):
        rows = [f for f in families if (f in MIXTURES) == of]
        lines = [[f"`{f}`", *(cells.get((f, each), "") for each in columns)] for f in rows]
        text += f"\n{grid([title, *columns], lines)}" if rows else ""
    for number, reason in enumerate(reasons, start=1):
        text = text.replace(reason, f"refused ({number})") + f"\n({number}) {reason}.\n"
    return f"{text}\n"


def _is_mixture(model: PreTrainedModel) -> bool:
    return model.config.model_type in MIXTURES


def _cell(record: Record) -> str:
    """Formats a cell: float64, float32, bfloat16."""
    if "refused" in record:
        return str(record["refused"])
    double, single, half = (record.get(name) for name in FORMATS)
    more = "" if half is None else f" · {half:.2f}"
    return f"{'exact' if double <= 1e-14 else f'{double:.0e}'} · {single:.0e}{more}"


if __name__ == "__main__":
    run_command(main)
