"""Names from outside are shown as one line, whatever they hold."""

import logging

import pytest

from d3still.text import VisibleFormatter, visible


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("shoe 17, größe é 😀 ×", "shoe 17, größe é 😀 ×"),
        ("a\nb\r\tc\x00\x85\u2028d", r"a\nb\r\tc\x00\x85\u2028d"),
        ("\x1b[31mred\x9b", r"\x1b[31mred\x9b"),
        ("\u202egnp.exe\u2066\ufeff", r"\u202egnp.exe\u2066\ufeff"),
        ("\udcff", r"\udcff"),
        ("👨\u200d👩\u200d👧 می\u200cخواهم a\u00a0b\u3000c", "👨\u200d👩\u200d👧 می\u200cخواهم a\u00a0b\u3000c"),
        (17, "17"),
    ],
)
def test_names_are_one_line_of_what_can_be_seen(name, shown):
    assert visible(name) == shown


def test_log_lines_hold_no_escape_codes_and_tracebacks_keep_their_lines():
    try:
        raise ValueError("x")
    except ValueError as error:
        raised = (type(error), error, error.__traceback__)
    record = logging.LogRecord("d3still", logging.ERROR, "file.py", 1, "%s\n", ("\x1b[2J",), raised)
    first, *others = VisibleFormatter().format(record).splitlines()
    assert first == r"\x1b[2J\n" and others[-1] == "ValueError: x"
