"""What is committed: never a message that is open, and little that is done is done again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from webhooks.progress import METADATA_BYTES_MAX, Done, Progress


def test_the_first_open_message_is_committed() -> None:
    progress = Progress(10, Done())
    for offset, deliveries in ((10, 1), (11, 0), (12, 2), (15, 1)):
        progress.begin(offset, deliveries)
    assert progress.position()[0] == 10
    progress.finish(10)
    progress.finish(12)
    first, metadata = progress.position()
    assert first == 12
    done = Done.read(first, metadata)
    assert [offset in done for offset in (12, 13, 15, 16)] == [False, True, False, False]
    progress.finish(12)
    progress.finish(15)
    assert progress.position() == (16, "")


@given(st.data())
def test_any_history_of_restarts_does_each_message_and_few_twice(data: st.DataObject) -> None:
    """A run reads some way, ends some of what it read, commits, and is killed; the next goes on."""
    messages, offset, done, ended = 40, 0, Done(), set[int]()
    for _ in range(data.draw(st.integers(1, 4))):
        progress = Progress(offset, done)
        opened: set[int] = set()
        for at in range(offset, data.draw(st.integers(offset, messages))):
            if progress.was_done(at):
                assert at in ended
                progress.begin(at, 0)
            else:
                assert at not in ended, "what was ended before the commit is known"
                progress.begin(at, 1)
                opened.add(at)
        for at in data.draw(st.permutations(sorted(opened)))[: data.draw(st.integers(0, len(opened)))]:
            progress.finish(at)
            ended.add(at)
        offset, metadata = progress.position()
        assert all(at in ended for at in range(offset)), "nothing open is committed"
        done = Done.read(offset, metadata)


def test_what_does_not_fit_is_done_again_never_left_out() -> None:
    progress = Progress(0, Done())
    for offset in range(100_000):
        progress.begin(offset, 1)
    for offset in range(1, 100_000, 2):
        progress.finish(offset)
    first, metadata = progress.position()
    assert (first, len(metadata) <= METADATA_BYTES_MAX + 20) == (0, True)
    done = Done.read(first, metadata)
    assert all(offset not in done for offset in range(0, 100_000, 2))
    assert sum(offset in done for offset in range(1, 3000, 2)) > 1000


def test_somebody_elses_metadata_says_nothing() -> None:
    for text in ("", "1:", "2:a,b", "1:ü", "whatever", "1:-"):
        assert 5 not in Done.read(0, text)
