"""Rotary tables and their application against the recorded reference."""

import pytest

from golden_cases import cases, load_case
from soundstage.nn.rope import Rope, apply_rope, rope_table

TABLES = [case for case in cases("rope") if ".apply." not in case]
APPLICATIONS = [case for case in cases("rope") if ".apply." in case]


@pytest.mark.parametrize("case_id", TABLES)
def test_tables_match_the_reference(case_id: str):
    case = load_case(case_id)
    for use, dim in case.params["dims"].items():
        rope = rope_table(
            case.inputs[f"{use}_positions"].mean(-1),
            case.params["max_pos"][use],
            dim,
            case.params["heads"],
            case.params["theta"],
            case.params["rope_type"],
            case.params["frequencies_precision"],
        )
        case.check(f"{use}_cos", rope.cos)
        case.check(f"{use}_sin", rope.sin)


@pytest.mark.parametrize("case_id", APPLICATIONS)
def test_rotation_matches_the_reference(case_id: str):
    case = load_case(case_id)
    case.check("y", apply_rope(case.inputs["x"], Rope(case.inputs["cos"], case.inputs["sin"])))
