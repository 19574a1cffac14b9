"""The reserve takes what room there is, and the rest once there is more."""

from app.ledger.room import RESERVE, RESERVE_BYTES, Reserve


def test_a_reserve_that_found_little_room_is_filled_up_later(tmp_path):
    reserve, path = Reserve(tmp_path), tmp_path / RESERVE
    path.touch()
    assert not reserve.free() and not path.exists(), "an empty one gives no room"
    path.write_bytes(b"little")
    for _ in range(2):
        reserve.keep()
        assert path.stat().st_size == RESERVE_BYTES and path.read_bytes().startswith(b"little")
    assert reserve.free() and not reserve.free()
