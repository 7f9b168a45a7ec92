"""Every reader of a file answers any content with what it holds, or with one sentence.

The short profile runs with all tests; the long one tries 100,000 inputs: ``pytest -m fuzz``.
"""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from helpers.hostile import damaged, json_files, json_values, numbers, one_sentence, texts
from helpers.tiny import CONFIGS, tiny_arguments
from pgprune import PruningError
from pgprune.data.documents import calibration_parts, iterate
from pgprune.data.instructions import read_instructions
from pgprune.evaluation.task_files import read_items
from pgprune.experiments.hyperparameters import read_hyperparameters
from pgprune.experiments.records import read_records
from pgprune.models.load import ModelConfig, check_model
from pgprune.runs.learned_mask import LearnedMask
from pgprune.runs.run import Run
from pgprune.surgery.stream_slices import Slices
from pgprune.utils.markdown import check_page

SHORT, LONG = 20, 7_000


class Reader(NamedTuple):
    """A reader of files.

    Attributes:
        name: of the file.
        content: what may be in it.
        read: reads the file.
    """

    name: str
    content: st.SearchStrategy[bytes]
    read: Callable[[Path], Any]


def documents(path: Path) -> list[str]:
    return [text for part in calibration_parts(str(path)) for text in iterate(part.documents)]


def instructions(path: Path) -> list[Any]:
    return list(read_instructions(str(path)) or ())


def settings_of(path: Path) -> None:
    run = Run.open(path.parent)
    json.dumps(run.sections, sort_keys=True)  # as the checkpoint's digest does


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """Parquet files of columns of any type."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    kinds = [texts.filter(is_plain), st.binary(max_size=5), st.booleans(), st.floats()]
    kinds += [st.integers(-(2**63), 2**63 - 1), st.dates(), st.lists(st.text("ab"), max_size=2)]
    names = st.sampled_from(["text", "body", "instruction", "output"]) | texts.filter(is_plain)
    columns = {}
    rows = draw(st.integers(0, 3))
    for name in draw(st.lists(names, max_size=3, unique=True)):
        cell = st.none() | draw(st.sampled_from(kinds))
        columns[name] = pyarrow.array(draw(st.lists(cell, min_size=rows, max_size=rows)))
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def is_plain(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def mask_files() -> st.SearchStrategy[bytes]:
    names = ["mask", "probabilities", "scores", "initial", "rotations", "order"]
    kinds = [torch.uint8, torch.bool, torch.int64, torch.float64, torch.bfloat16]
    tensor = st.builds(
        lambda values, kind: torch.tensor(values).to(kind),
        st.lists(st.integers(0, 2), max_size=4) | st.just(0),
        st.sampled_from(kinds),
    )
    described = st.fixed_dictionaries(
        {"granularity": st.sampled_from(["heads", "x"]), "channel_block": numbers.map(str)},
        optional={"parameters": numbers.map(lambda number: str(number)[:5000])},
    )
    return st.builds(save, st.dictionaries(st.sampled_from(names), tensor), described)


def items(path: Path) -> list[Any]:
    return list(read_items(path))


def hyperparameters(path: Path) -> None:
    read_hyperparameters("auto", path.parent).trials()


def model_of(path: Path) -> None:
    check_model(ModelConfig(model=str(path.parent), device="cpu"), pruned=True)


@st.composite
def model_configs(draw: st.DrawFn) -> bytes:
    """A model's configuration of which a few values are others."""
    config = CONFIGS[draw(st.sampled_from(list(CONFIGS)))].to_dict()
    keys = st.sampled_from(["model_type", *config])
    config |= draw(st.dictionaries(keys, json_values(["rope_type", "factor"]), max_size=2))
    return json.dumps(config).encode()


YAML = st.text(max_size=40) | json_values(["run", "seed", "default"]).map(json.dumps)
YAML |= st.sampled_from(
    ["2001-99-99", "!!int ''", "&a [1]", "*a", "[" * 2000, "!!set {a}", "? [a]"]
)
NAMES = st.sampled_from(["run", "decided", "default", "search"])
SECTIONS = st.builds("{}:\n  {}: {}\n".format, NAMES, NAMES, YAML)
SETTINGS = (YAML | SECTIONS).map(lambda text: text.encode(errors="replace"))
TEXTS = st.binary(max_size=60) | texts.map(lambda text: text.encode(errors="replace"))
LINES = json_files(["text"], lines=True)
TABLES = tables() | damaged(tables())

READERS = [
    Reader("a.txt", TEXTS, documents),
    Reader("a.jsonl", LINES, documents),
    Reader("a.jsonl.gz", LINES | damaged(LINES.map(gzip.compress)), documents),
    Reader("a.parquet", TABLES, documents),
    Reader("b.parquet", TABLES, instructions),
    Reader("a.json", json_files(["instruction", "output"]), instructions),
    Reader("b.jsonl", json_files(["instruction", "output"], lines=True), instructions),
    Reader("task.jsonl", json_files(["query", "choices", "gold"], lines=True), items),
    Reader("records.jsonl", json_files(["method", "task"], lines=True), read_records),
    Reader("config.yaml", SETTINGS, settings_of),
    Reader("auto.yaml", SETTINGS, hyperparameters),
    Reader("mask.safetensors", mask_files() | damaged(mask_files()), LearnedMask.read),
    Reader("slices.json", json_files(["layers", "width"]), lambda path: Slices.load(path.parent)),
    Reader("page.md", TEXTS, lambda path: check_page(path, "marker")),
    Reader("config.json", model_configs() | json_files(["model_type"]), model_of),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny model, whose configuration is replaced."""
    return Path(tiny_arguments(tmp_path_factory.mktemp("model"))["model"])


@pytest.mark.parametrize("examples", [SHORT, pytest.param(LONG, marks=pytest.mark.fuzz)])
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_any_content_is_read_or_refused_by_one_sentence(reader, examples, tmp_path, model):
    path = (model if reader.name == "config.json" else tmp_path) / reader.name

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(reader.content)
    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        try:
            reader.read(path)
        except PruningError as error:
            one_sentence(error)

    attempt()


@pytest.mark.parametrize("examples", [SHORT, pytest.param(LONG, marks=pytest.mark.fuzz)])
def test_lines_of_json_give_exactly_their_texts(examples, tmp_path):
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.none() | st.text(max_size=9), min_size=1))
    def attempt(values: list[str | None]) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
        expected = [value for value in values if value and not value.isspace()]
        if expected:
            assert documents(path) == expected
        else:
            with pytest.raises(PruningError, match="is empty"):
                documents(path)

    attempt()
