"""Settings: from dataclasses to options and YAML, and back, and every refusal."""

from dataclasses import dataclass

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from pgprune import PruningError
from pgprune.utils.command_line import ArgumentParser, from_arguments, given, run_command
from pgprune.utils.options import LARGEST, Config, dump_yaml, from_dict, load_yaml, option, to_dict

KNOWN = {"cosine": 1, "constant": 2}


@dataclass(frozen=True)
class Toy(Config):
    """Toy settings.

    Not part of the title.
    """

    model: str = option("builtin", "which model")
    prune_rate: float = option(0.4, "share to remove, 40% say", above=0, below=1)
    batch_size: int = option(8, "sequences", minimum=1)
    samples: int | None = option(None, "samples", unset="endless")
    device_map: str | None = None
    schedule: str = option("cosine", "", choices=KNOWN)
    quiet: bool = option(False, "print nothing")
    rates: tuple[float, ...] = option((0.3, 0.5), "rates to compare", above=0, below=1)
    tasks: tuple[str, ...] | None = option(None, "tasks to do", unset="all")


def parse(*words: str) -> Toy:
    return from_arguments(Toy, ArgumentParser("A toy.", Toy).parse_args(words))


def test_nothing_given_is_the_default():
    assert parse() == Toy()


def test_every_kind_of_option():
    words = "--model m --prune-rate 0.5 --batch-size 2 --samples 7 --schedule constant --quiet "
    lists = "--rates 0.1 0.2 --tasks a"
    expected = Toy("m", 0.5, 2, 7, None, "constant", True, (0.1, 0.2), ("a",))
    assert parse(*(words + lists).split()) == expected


def test_none_and_no():
    assert parse("--samples", "none", "--no-quiet", "--tasks", "none") == Toy()


def test_only_what_was_written_is_given():
    arguments = ArgumentParser(None, Toy).parse_args(["--batch-size", "8"])
    assert given(Toy, arguments) == {"batch_size": 8}


def test_help_explains_every_option_with_its_default():
    text = " ".join(ArgumentParser("A toy.", Toy).format_help().split())
    assert "Toy settings:" in text and "Not part" not in text
    assert "share to remove, 40% say (default: 0.4)" in text
    assert "samples (default: endless)" in text
    assert "print nothing (default: off)" in text
    assert "cosine (default), constant" in text
    assert "rates to compare (default: 0.3 0.5)" in text


def test_choices_are_read_when_they_are_used(monkeypatch):
    late = dataclass(frozen=True)(
        type("Late", (Config,), {"__annotations__": {"x": str}, "x": late_option()})
    )
    with pytest.raises(PruningError, match="polynomial"):
        late("polynomial")
    monkeypatch.setitem(KNOWN, "polynomial", 3)
    assert parse("--schedule", "polynomial").schedule == "polynomial"
    assert late("polynomial").x == "polynomial"
    assert "cosine (default), constant, polynomial" in ArgumentParser(None, Toy).format_help()


def late_option():
    return option("auto", "", choices=lambda: ["auto", *KNOWN])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--prune-rate 1", "--prune-rate: must be a number above 0 and below 1, not 1.0"),
        ("--prune-rate 0", "--prune-rate: must be a number above 0 and below 1, not 0.0"),
        ("--prune-rate nan", "--prune-rate: must be a number above 0 and below 1, not nan"),
        ("--prune-rate half", "--prune-rate: must be a number above 0 and below 1, not 'half'"),
        ("--batch-size 0", "--batch-size: must be a whole number at least 1, not 0"),
        ("--batch-size 2.5", "--batch-size: must be a whole number at least 1, not '2.5'"),
        ("--schedule linear", "--schedule: must be one of cosine, constant, not 'linear'"),
        ("--prune-rat 0.3", "unrecognized arguments: --prune-rat 0.3"),
        ("--prune-rate", "--prune-rate: expected one argument"),
        ("--rates 0.3,0.5", "--rates: is a list: write --rates 0.3 0.5, not 0.3,0.5"),
        ("--rates 0.3 2", "--rates: must be a number above 0 and below 1, not 2.0"),
        ("--rates", "--rates: expected at least one argument"),
        ("--rates none", "--rates: must be a number above 0 and below 1, not 'none'"),
        ("--tasks a none", "tasks must be a text, not None"),
    ],
)
def test_a_wrong_option_is_one_clear_sentence(words, sentence):
    with pytest.raises(PruningError) as caught:
        parse(*words.split())
    assert str(caught.value).startswith(sentence)


@for_all(
    st.builds(
        Toy,
        model=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])),
        prune_rate=st.floats(0, 1, exclude_min=True, exclude_max=True),
        batch_size=st.integers(1, LARGEST[int]),
        samples=st.none() | st.integers(max_value=LARGEST[int]),
        device_map=st.none() | st.text("abc:01 \n#'"),
        quiet=st.booleans(),
        rates=st.lists(st.floats(0.1, 0.9), min_size=1).map(tuple),
    )
)
def test_yaml_gives_back_what_was_written(toy):
    sections = load_yaml(dump_yaml({"toy": toy, "decided": {"executor": "sliced"}}), "config.yaml")
    assert from_dict(Toy, sections["toy"]) == toy
    assert sections["decided"] == {"executor": "sliced"}


def test_a_whole_number_is_a_number():
    wide = dataclass(frozen=True)(type("Wide", (), {"__annotations__": {"x": float}, "x": 0.5}))
    assert to_dict(from_dict(wide, {"x": 2})) == {"x": 2.0}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rate": 0.5}, "config.yaml has an unknown setting 'rate'; the known ones are model, "),
        ({"prune_rate": 2}, "config.yaml: prune_rate: must be a number above 0 and below 1"),
        ({"batch_size": True}, "config.yaml: batch_size: must be a whole number"),
        ({"model": 3}, "config.yaml: model: must be a text, not 3"),
        ({"quiet": "yes"}, "config.yaml: quiet: must be true or false, not 'yes'"),
        ({"rates": 0.3}, "config.yaml: rates: must be a list, not 0.3"),
        ({"rates": []}, "config.yaml: rates: must be a list, not []"),
        (
            {"rates": [0.3, "x"]},
            "config.yaml: rates: must be a number above 0 and below 1, not 'x'",
        ),
    ],
)
def test_a_wrong_value_in_a_file_is_one_clear_sentence(values, sentence):
    with pytest.raises(PruningError) as caught:
        from_dict(Toy, values, "config.yaml")
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("text", ["a: [", "only text", "a: 1", ""])
def test_a_file_that_is_not_sections_of_settings(text):
    with pytest.raises(PruningError, match="config.yaml"):
        load_yaml(text, "config.yaml")


def test_a_word_may_stand_for_a_number():
    step = option(0.1, "step size", above=0, words=("auto",))
    wordy = dataclass(frozen=True)(
        type("Wordy", (Config,), {"__annotations__": {"step": float | str}, "step": step})
    )
    for value, words in (("auto", ["--step=auto"]), (2.0, ["--step=2"]), (0.1, [])):
        read = from_arguments(wordy, ArgumentParser(None, wordy).parse_args(words))
        assert read == wordy(value) == from_dict(wordy, {"step": value})
    for value in ("fast", 0, "0.1"):
        with pytest.raises(PruningError, match=r"must be a number above 0 or auto, not"):
            wordy(value)


def test_a_type_that_no_option_can_have():
    strange = dataclass(type("Strange", (), {"__annotations__": {"x": list}, "x": None}))
    with pytest.raises(TypeError, match="a setting is"):
        ArgumentParser(None, strange)


@pytest.mark.parametrize(("returned", "status"), [(None, None), (0, 0), (3, 3)])
def test_a_command_ends_with_its_status(returned, status):
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: returned)
    assert caught.value.code == status


def test_an_error_is_one_line_and_status_2(capsys):
    def main() -> None:
        raise PruningError("two\nlines")

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: two lines\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch-size", "9" * 26], "--batch-size: must be a whole number at least 1 and at most"),
        (["--batch-size", "9" * 400], "--batch-size: must be a whole number at least 1 and at"),
        (["--batch-size", "9" * 9000], "--batch-size: must be a whole number at least 1, not '9"),
        (["--samples", "9" * 400], "--samples: must be a whole number at most 2,147,483,647, not"),
        (["--prune-rate", "9" * 400], "--prune-rate: must be a number above 0 and below 1, not"),
        (["--model", "a\udce9"], r"'a\udce9' is not UTF-8, in which settings are saved"),
    ],
)
def test_a_value_beyond_all_reason_is_a_short_sentence(words, sentence):
    with pytest.raises(PruningError) as caught:
        parse(*words)
    assert str(caught.value).startswith(sentence)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("value", ["a\udce9", "a\0b"])
def test_a_text_that_no_file_can_hold_is_refused(value):
    with pytest.raises(PruningError, match="model must be a text in UTF-8, not 'a"):
        Toy(value)


@pytest.mark.parametrize(
    "value",
    ["!!int ''", "!!float x", "!!bool x", "!!timestamp x", "!!binary aGk=", "!!set {a}", "{1: 2}"]
    + ["[" * 5000 + "]" * 5000, "&a [1]\n  other: *a", "!!python/object:os.system {}", "9" * 5000],
)
def test_yaml_that_is_no_plain_value_is_one_clear_sentence(value):
    with pytest.raises(PruningError, match=r"^config\.yaml is not readable as YAML: "):
        load_yaml(f"decided:\n  executor: {value}\n", "config.yaml")


@pytest.mark.parametrize("date", ["2001-01-01", "2001-99-99", "2001-01-01 25:61:61"])
def test_a_date_in_yaml_is_a_text(date):
    assert load_yaml(f"run:\n  output: {date}\n", "config.yaml")["run"] == {"output": date}
