from soundstage.core.progress import Progress


def event(step):
    return Progress(stage="denoise", step=step, num_steps=10, seconds=6.0)


def test_time_left_is_the_mean_step_times_what_remains():
    assert event(3).seconds_left == 14.0


def test_time_left_is_unknown_before_the_first_step_and_zero_at_the_end():
    assert event(0).seconds_left is None
    assert event(10).seconds_left == 0
