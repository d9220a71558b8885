"""What the parser of flags complains about, as one line: it draws boxes of many.

╭─ Invalid choice ─────────────────────╮
│ invalid choice 'fst' for argument .. │
│ ──────────────────────────────────── │      where the terminal has only ASCII: the title in a section of
│ For full helptext, run ...           │      its own, no corners, no sides
╰──────────────────────────────────────╯
"""

import re
import textwrap

from soundstage.core.config import nearest

_CHOICE = re.compile(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)")
_FORM = re.compile(r"Error parsing (\S+): no type matching (.*) could be instantiated from \[(.*)\]")
_LIST = re.compile(r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]")
_NUMBER = re.compile(
    r"Error parsing (\S+): (invalid literal for int|could not convert string to float).*: ('.*?')$"
)
_RULE = re.compile(r"[\s│]*(─{8,}|-{8,})[\s│]*")
_NOT_A_CHOICE = "None"  # how the parser lists that a flag may be absent; it cannot be typed


def one_line(box: str) -> str:
    """Say what a box of the parser says: the first paragraph, and the nearest right word."""
    first, *others = _sections(box)
    told = _first_paragraph(first)
    if choice := _CHOICE.search(told):
        value, flag, listed = choice.groups()
        allowed = sorted(set(re.findall("'(.*?)'", listed)) - {_NOT_A_CHOICE})
        return f"{flag} {value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}"
    if form := _FORM.search(told):
        flag, wanted, value = form.groups()
        return f"{flag} {value} is not of the form {wanted}"
    if number := _NUMBER.search(told):
        kind = "a whole number" if "int" in number[2] else "a number"
        return f"{number[1]} {number[3]} is not {kind}"
    if values := _LIST.search(told):
        return f"{values[1]} cannot be {values[2]}"
    if told.startswith("Missing from "):
        return "missing: " + "; ".join(row.strip() for row in first[1:] if _is_flag(row))
    return told.rstrip(".") + _suggestion(others)


def _sections(box: str) -> list[list[str]]:
    """Split what the box holds at its rules; each section as its rows."""
    inner = [line.strip("│") for line in box.splitlines() if line[:1] not in ("╭", "╰")]
    sections: list[list[str]] = [[]]
    for row in inner:
        if _RULE.fullmatch(row):
            sections.append([])
        else:
            sections[-1].append(row)
    has_title = "╭" not in box and len(sections) > 1
    return [textwrap.dedent("\n".join(rows)).splitlines() for rows in sections[has_title:]]


def _first_paragraph(rows: list[str]) -> str:
    text = "\n".join(row.strip() for row in rows).strip()
    return " ".join(text.partition("\n\n")[0].split())


def _suggestion(sections: list[list[str]]) -> str:
    for rows in sections:
        if rows and rows[0].startswith("Perhaps you meant"):
            flag = next((row.split()[0].rstrip(",") for row in rows if _is_flag(row)), None)
            return f" (did you mean {flag!r}?)" if flag else ""
    return ""


def _is_flag(row: str) -> bool:
    """Tell a flag from its help, which stands further in."""
    return row.startswith("    ") and row[4:5].strip() != ""
