from serve.observe.recent import MAX_VALUES, WINDOW_S, Recent, Summary


def test_percentiles_are_values_that_were_there() -> None:
    recent = Recent()
    assert recent.summary(0) is None
    for value in range(100, 0, -1):
        recent.add(10.0, float(value))
    assert recent.summary(11.0) == Summary(100, 50.0, 90.0, 99.0)
    assert Recent().summary(0) is None


def test_a_single_value_is_each_percentile() -> None:
    recent = Recent()
    recent.add(0.0, 0.25)
    assert recent.summary(0.0) == Summary(1, 0.25, 0.25, 0.25)


def test_what_is_old_or_too_much_is_forgotten() -> None:
    recent = Recent()
    recent.add(0.0, 5.0)
    recent.add(1.0, 1.0)
    assert recent.summary(WINDOW_S + 0.5) == Summary(1, 1.0, 1.0, 1.0)
    for _ in range(MAX_VALUES + 1):
        recent.add(2.0, 2.0)
    assert recent.summary(2.0) == Summary(MAX_VALUES, 2.0, 2.0, 2.0)
