"""The first 2,000 damaged files of tests/fuzz.py: each ends in a result, a counted skip or one line of error."""

import fuzz


def test_damaged_files_end_in_a_result_a_skip_or_one_line() -> None:
    tally = fuzz.fuzz(range(2000))
    assert not tally.failures, "\n".join(f"{len(cases)} x {kind}; first: {cases[0]}" for kind, cases in tally.failures.items())
    assert set(tally.outcomes) == set(fuzz.TARGETS)
