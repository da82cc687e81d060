"""The age of a position by our own clock."""

from tidemark.caught_up import ENDS_MAX, CaughtUp, now_ms


def test_a_position_is_as_of_the_question_whose_end_it_has_reached_not_of_the_moment_it_got_there() -> None:
    caught_up = CaughtUp()
    caught_up.note_end(500, 1_000)
    caught_up.reach(499)
    assert caught_up.as_of_ms == 0
    caught_up.note_end(600, 2_000)
    caught_up.reach(599)
    assert caught_up.as_of_ms == 1_000
    caught_up.reach(600)
    assert caught_up.as_of_ms == 2_000


def test_a_log_at_rest_is_as_of_the_last_question() -> None:
    caught_up = CaughtUp(500)
    for asked_ms in range(1_000, 200_000, 1_000):
        caught_up.note_end(7, asked_ms)
        caught_up.reach(7)
    assert caught_up.as_of_ms == 199_000


def test_a_long_backlog_costs_precision_never_truth() -> None:
    caught_up = CaughtUp()
    for second in range(10 * ENDS_MAX):
        caught_up.note_end(100 * (second + 1), 1_000 * second)
    caught_up.reach(100 * 5 * ENDS_MAX)
    assert caught_up.as_of_ms == 1_000 * (ENDS_MAX - 1)
    caught_up.note_end(100_000, 999_000)
    caught_up.reach(100_000)
    assert caught_up.as_of_ms == 999_000


def test_a_clock_that_was_ahead_and_was_set_right_is_not_believed_any_more() -> None:
    caught_up = CaughtUp(now_ms() + 365 * 86_400_000)
    asked_ms = now_ms()
    caught_up.note_end(500, asked_ms)
    caught_up.reach(500)
    assert caught_up.as_of_ms == asked_ms


def test_ends_of_a_log_that_was_cut_back_do_not_count_any_more() -> None:
    caught_up = CaughtUp()
    caught_up.note_end(500, 1_000)
    caught_up.note_end(100, 2_000)
    caught_up.reach(100)
    assert caught_up.as_of_ms == 2_000
