"""Every option of every command takes a value of its kind, or refuses it by one sentence."""

from importlib import import_module

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.hostile import numbers, one_sentence, scalars, texts
from pgprune import PruningError
from pgprune.data.sources import items
from pgprune.utils.command_names import COMMANDS
from pgprune.utils.options import check, typed_fields

SHORT, LONG = 40, 1_000

WORDS = numbers.map(lambda number: str(number)[:5000]) | texts | st.sampled_from(["none", "", "-1"])


@pytest.mark.parametrize("examples", [SHORT, pytest.param(LONG, marks=pytest.mark.fuzz)])
@pytest.mark.parametrize("command", COMMANDS)
def test_any_words_are_parsed_or_refused_by_one_sentence(command, examples):
    parser = import_module(f"pgprune.commands.{COMMANDS[command]}").make_parser()
    flags = [flag for action in parser._actions for flag in action.option_strings if flag != "-h"]
    flags.remove("--help")

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.sampled_from(flags), WORDS), min_size=1, max_size=3))
    def attempt(pairs: list[tuple[str, str]]) -> None:
        try:
            parser.parse_args(["model", *(word for pair in pairs for word in pair)])
        except PruningError as error:
            one_sentence(error)

    attempt()


@pytest.mark.parametrize("examples", [SHORT, pytest.param(LONG, marks=pytest.mark.fuzz)])
def test_any_value_in_a_file_is_taken_or_refused_by_one_sentence(examples):
    from pgprune.agents.training.settings import Settings

    fields = [field for config in Settings.configs().values() for field in typed_fields(config)]

    @settings(max_examples=20 * examples, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(fields), scalars | st.lists(scalars, max_size=2))
    def attempt(field, value) -> None:
        try:
            taken = check(*field, value)
        except PruningError as error:
            assert len(str(error)) < 1500
        else:
            assert taken == (tuple(value) if isinstance(value, list) else value)

    attempt()


@pytest.mark.parametrize("examples", [SHORT, pytest.param(LONG, marks=pytest.mark.fuzz)])
def test_any_source_of_text_is_parsed_or_refused_by_one_sentence(examples):
    part = st.sampled_from(["a.jsonl", "[1:2]", ":3", ",", "[", "builtin", "c4", "9" * 400]) | texts

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(st.lists(part, max_size=5).map("".join))
    def attempt(source: str) -> None:
        try:
            for item in items(source):
                assert item.start >= 0 and (item.name or item.domains or item.known)
        except PruningError as error:
            one_sentence(error)

    attempt()
