"""What is built next, as a function of sizes and dead shares alone."""

from hypothesis import given
from hypothesis import strategies as st

from tidemark.merge_policy import (
    FILES_TIER_SEGMENTS,
    QUIET_TIER_SEGMENTS,
    TIER_SEGMENTS,
    UNBUILT_SEGMENTS,
    Candidate,
    next_build,
    next_merge,
)

ANN_MIN, ROWS_MAX = 1_000, 1_000_000


def _built(name: str, rows: int, dead: int = 0) -> Candidate:
    return Candidate(name, rows, dead, True)


def _flat(name: str, rows: int) -> Candidate:
    return Candidate(name, rows, 0, False)


def _next(*segments: Candidate, quiet: bool = True) -> list[str]:
    return next_build(segments, ANN_MIN, ROWS_MAX, quiet)


def test_a_few_small_flats_are_left_to_the_exact_scan() -> None:
    assert _next(_flat("a", 10), _flat("b", 20)) == []


def test_many_small_flats_are_made_one() -> None:
    flats = [_flat(str(number), 10) for number in range(TIER_SEGMENTS + 1)]
    assert _next(*flats) == [flat.name for flat in flats]


def test_flats_with_enough_rows_are_built_with_segments_of_like_size() -> None:
    assert _next(_built("big", 50_000), _built("small", 900), _flat("a", 600), _flat("b", 600)) == ["small", "a", "b"]


def test_while_rows_arrive_the_unbuilt_are_built_alone_when_there_are_some() -> None:
    unbuilt = [_flat(str(number), 1_200) for number in range(UNBUILT_SEGMENTS)]
    assert _next(_built("small", 900), *unbuilt[1:], quiet=False) == []
    assert _next(_built("small", 900), *unbuilt, quiet=False) == [segment.name for segment in unbuilt]


def test_a_segment_that_is_more_than_a_fifth_dead_is_built_again() -> None:
    assert _next(_built("a", 7_900, 2_100)) == ["a"]
    assert _next(_built("a", 8_100, 1_900)) == []


def test_when_nothing_arrives_built_segments_of_like_size_are_merged() -> None:
    segments = [_built("big", 90_000), _built("a", 6_000), _built("b", 5_000), _built("c", 30_000)]
    assert _next(*segments, quiet=True) == ["a", "b"]
    assert _next(*segments, quiet=False) == []


def test_segments_of_one_tier_are_merged() -> None:
    assert _next(*[_built(str(number), 5_000 + number) for number in range(TIER_SEGMENTS)]) == ["0", "1", "2", "3"]
    assert _next(_built("a", 5_000), _built("b", 50_000), _built("c", 300_000)) == []


SEGMENTS = st.lists(
    st.builds(lambda rows, dead, built: (rows, dead, built), st.integers(0, 9_000), st.integers(0, 900), st.booleans()),
    max_size=30,
)


@given(SEGMENTS, st.integers(1_000, 100_000))
def test_building_until_nothing_is_wanted_ends_with_few_segments_and_every_live_row(
    sizes: list[tuple[int, int, bool]], rows_max: int
) -> None:
    segments = [Candidate(str(n), rows, dead, built) for n, (rows, dead, built) in enumerate(sizes)]
    live = sum(segment.live_rows for segment in segments)
    for turn in range(200):
        names = next_build(segments, ANN_MIN, rows_max)
        if not names:
            break
        merged = sum(segment.live_rows for segment in segments if segment.name in names)
        kept = [segment for segment in segments if segment.name not in names]
        segments = [*kept, Candidate(f"m{turn}", merged, 0, merged >= ANN_MIN)] if merged else kept
    else:
        raise AssertionError(f"never ends: {segments}")
    assert sum(segment.live_rows for segment in segments) == live
    assert len([segment for segment in segments if not segment.built]) <= TIER_SEGMENTS


# -- rows that one index finds whatever segment they are in ------------------------------------------------------


def test_rows_that_one_index_finds_are_merged_when_there_are_many_files_of_a_size() -> None:
    tier = [_built(str(number), 10_000 + number) for number in range(FILES_TIER_SEGMENTS)]
    assert next_merge([_built("big", 500_000), *tier], ROWS_MAX) == [segment.name for segment in tier]
    assert next_merge([_built("big", 500_000), *tier[1:]], ROWS_MAX) == []
    assert next_merge(tier, rows_max=50_000) == []
    assert next_merge([_built("big", 500_000), *tier[:QUIET_TIER_SEGMENTS]], ROWS_MAX, quiet=True) == [
        "0",
        "1",
        "2",
        "3",
    ]


def test_small_files_are_of_one_size_whatever_is_in_them() -> None:
    small = [_built(str(number), 3**number) for number in range(FILES_TIER_SEGMENTS)]
    assert len(next_merge(small, ROWS_MAX)) == FILES_TIER_SEGMENTS


def test_a_segment_of_which_a_quarter_is_dead_is_written_anew_together_with_smaller_ones() -> None:
    others = [_built("bigger", 90_000), _built("small", 900)]
    assert next_merge([_built("a", 7_400, 2_600), *others], ROWS_MAX) == ["a", "small"]
    assert next_merge([_built("a", 7_600, 2_400), *others], ROWS_MAX) == []
    assert next_merge([_built("a", 7_600, 2_400), *others], ROWS_MAX, quiet=True) == ["a", "small"]


def test_a_few_dead_rows_of_a_small_segment_wait_until_it_is_merged_anyway() -> None:
    assert next_merge([_built("a", 100, 900)], ROWS_MAX) == []
    assert next_merge([_built("a", 100, 900)], ROWS_MAX, quiet=True) == ["a"]


def test_while_reading_is_held_back_dead_rows_without_codes_go_first() -> None:
    segments = [_built("a", 7_900), Candidate("b", 100, 200, False), _flat("c", 100)]
    assert next_merge(segments, ROWS_MAX, held=True) == ["b", "c"]
    assert next_merge(segments, ROWS_MAX) == []


@given(SEGMENTS, st.integers(1_000, 100_000), st.booleans())
def test_merging_until_nothing_is_wanted_ends_with_every_live_row_and_few_files_of_a_size(
    sizes: list[tuple[int, int, bool]], rows_max: int, quiet: bool
) -> None:
    segments = [Candidate(str(n), rows, dead, built) for n, (rows, dead, built) in enumerate(sizes)]
    live = sum(segment.live_rows for segment in segments)
    for turn in range(200):
        names = next_merge(segments, rows_max, quiet)
        if not names:
            break
        merged = sum(segment.live_rows for segment in segments if segment.name in names)
        assert merged <= rows_max or len(names) == 1
        kept = [segment for segment in segments if segment.name not in names]
        segments = [*kept, Candidate(f"m{turn}", merged, 0, True)] if merged else kept
    else:
        raise AssertionError(f"never ends: {segments}")
    assert sum(segment.live_rows for segment in segments) == live
    small = [segment for segment in segments if segment.live_rows <= min(4_096, rows_max // FILES_TIER_SEGMENTS)]
    assert len(small) < FILES_TIER_SEGMENTS
