"""Names of others in pages."""

import pytest

from pgprune.utils.markdown import plain


@pytest.mark.parametrize(
    "name", ["meta-llama/Llama-2-7b-hf", "wiki.test", "sample_c4-rp1", "a:b:c"]
)
def test_an_ordinary_name_is_written_as_it_is(name):
    assert plain(name) == name


def test_a_name_begins_no_html_link_or_cell():
    name = "x](javascript:alert(1)) <img src=x> | `y` https://z \x1b[1m"
    written = plain(name)
    assert written == (
        r"x\](javascript:alert(1)) &lt;img src=x&gt; \| \`y\` https\://z \ufffd\[1m".replace(
            r"\ufffd", "\ufffd"
        )
    )
