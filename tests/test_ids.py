"""Ids: ordered by time, unique, and derivable."""

import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest

from continuum import ids
from continuum.ids import derived, derived_child, smallest_uuid7, uuid7, uuid7_time_us

MOMENT = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PARENT = uuid.UUID("019ca95e-0a63-7f00-8000-0123456789ab")


def microseconds(moment):
    return (moment - EPOCH) // timedelta(microseconds=1)


@pytest.fixture
def clock(monkeypatch):
    """A clock for uuid7() that stands where it is put; ids made before the test do not count."""

    def put(moment):
        monkeypatch.setattr(ids.time, "time_ns", lambda: microseconds(moment) * 1000)

    monkeypatch.setattr(ids, "_last", 0)
    return put


class TestUuid7:
    def test_is_a_version_7_uuid_of_rfc_9562(self):
        made = uuid7()
        assert made.version == 7
        assert made.variant == uuid.RFC_4122

    def test_behaves_like_any_other_uuid(self):
        made = uuid7()
        same = uuid.UUID(str(made))
        assert made == same
        assert hash(made) == hash(same)
        assert made.is_safe is same.is_safe
        with pytest.raises(TypeError):
            made.int = 0

    def test_holds_its_time_to_the_microsecond(self, clock):
        for offset in (0, 1, 499, 543, 999):
            moment = MOMENT.replace(microsecond=123000 + offset)
            clock(moment)
            assert uuid7_time_us(uuid7()) == microseconds(moment)

    def test_is_greater_than_the_one_before(self):
        made = [uuid7() for _ in range(5_000)]
        assert made == sorted(set(made))

    def test_grows_on_while_the_clock_stands_still_or_is_set_back(self, clock):
        clock(MOMENT)
        made = [uuid7(), uuid7()]
        clock(MOMENT - timedelta(hours=1))
        made.append(uuid7())
        assert made == sorted(set(made))

    def test_is_unique_and_ordered_in_each_of_many_threads(self):
        def some(_):
            return [uuid7() for _ in range(2_000)]

        with ThreadPoolExecutor(8) as pool:
            batches = list(pool.map(some, range(8)))
        assert all(batch == sorted(batch) for batch in batches)
        assert len(set().union(*batches)) == 8 * 2_000

    @pytest.mark.skipif(not hasattr(ids.os, "fork"), reason="this system does not fork")
    def test_differs_between_a_process_and_its_fork(self):
        script = (
            "import os, sys; from continuum import ids; ids.uuid7(); ids.time.time_ns = lambda: 0\n"
            "reader, writer = os.pipe()\n"
            "if os.fork() == 0: os.write(writer, ids.uuid7().bytes); os._exit(0)\n"
            "theirs, ours = os.read(reader, 16), ids.uuid7().bytes; os.wait()\n"
            "assert theirs[:8] == ours[:8], 'the clocks stand still, so only randomness tells the two apart'\n"
            "sys.exit(theirs == ours)"
        )
        assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == 0


class TestTimeOfAnId:
    def test_ids_of_another_make_are_read_to_the_millisecond(self):
        assert uuid7_time_us(PARENT) // 1000 == 0x019CA95E0A63

    def test_an_id_without_time_is_refused(self):
        with pytest.raises(ValueError, match="not a UUID of version 7"):
            uuid7_time_us(uuid.uuid4())


class TestSmallestUuid7:
    def test_bounds_the_ids_of_its_millisecond(self, clock):
        bound = smallest_uuid7(MOMENT)
        clock(MOMENT - timedelta(milliseconds=1))
        earlier = uuid7()
        clock(MOMENT)
        assert earlier < bound < uuid7()
        assert uuid7_time_us(bound) == microseconds(MOMENT.replace(microsecond=123000))

    def test_is_itself_of_version_7(self):
        assert smallest_uuid7(MOMENT).version == 7
        assert smallest_uuid7(MOMENT).variant == uuid.RFC_4122

    def test_time_zones_are_converted(self):
        assert smallest_uuid7(MOMENT) == smallest_uuid7(MOMENT.astimezone(timezone(timedelta(hours=-8))))

    @pytest.mark.parametrize("moment", [MOMENT.replace(tzinfo=None), datetime(1969, 12, 31, tzinfo=UTC)])
    def test_naive_and_too_early_moments_are_refused(self, moment):
        with pytest.raises(ValueError, match="smallest_uuid7"):
            smallest_uuid7(moment)


class TestDerived:
    def test_stays_what_it_is_for_ever(self):
        # Keys in databases depend on these.
        assert derived("start", "default", "shop.order", "o-1") == uuid.UUID("07f2d779-ff2c-88fa-bfe7-49da495aaa09")
        assert derived_child(PARENT, "0.2:3", "k") == uuid.UUID("019ca95e-0a63-75c2-a271-30d031032c34")

    def test_is_a_version_8_uuid_of_rfc_9562(self):
        assert derived("a").version == 8
        assert derived("a").variant == uuid.RFC_4122

    def test_parts_are_told_apart_by_length_type_and_place(self):
        asked = [("a", "bc"), ("ab", "c"), ("abc",), ("abc", ""), ("", "abc"), ("abc", None), (b"abc",), ("bc", "a")]
        asked += [(1,), ("1",), (PARENT,), (str(PARENT),), (PARENT.bytes,), (), ("1:a", "b"), ("1", ":ab"), ("\udc80",)]
        assert len({derived(*parts) for parts in asked}) == len(asked)

    @pytest.mark.parametrize("part", [1.0, True, ["a"], {}])
    def test_parts_without_one_clear_text_are_refused(self, part):
        with pytest.raises(TypeError, match="cannot be derived"):
            derived(part)


class TestDerivedChild:
    def test_is_the_same_for_the_same_command_and_differs_for_another(self):
        first = derived_child(PARENT, "0:1")
        assert derived_child(PARENT, "0:1") == first
        others = {derived_child(PARENT, "0:2"), derived_child(PARENT, "0:1", "k"), derived_child(uuid7(), "0:1")}
        assert len(others | {first}) == 4

    def test_has_the_layout_of_version_7_and_its_parents_time(self):
        child = derived_child(PARENT, "0:1")
        assert child.version == 7
        assert child.variant == uuid.RFC_4122
        assert child.int >> 80 == PARENT.int >> 80

    def test_another_time_can_be_shown_without_changing_the_rest(self):
        child, moved = derived_child(PARENT, "0:1"), derived_child(PARENT, "0:1", time_us=microseconds(MOMENT))
        assert moved.int >> 80 == microseconds(MOMENT) // 1000
        assert moved.int & (1 << 80) - 1 == child.int & (1 << 80) - 1
