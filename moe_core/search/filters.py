"""Which posts may be in the answer."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moe_core.errors import BadSetting

MOMENT = re.compile(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?")


@dataclass(frozen=True)
class Filters:
    """Conditions that hold together; None is no condition. Posts without a date are left out where dates are wanted."""

    split: str | None = None
    expert: str | None = None  # key, such as e003
    user: str | None = None
    tag: str | None = None  # a hashtag that the post carries
    since: datetime | None = None
    until: datetime | None = None  # exclusive

    def __bool__(self) -> bool:
        return any(value is not None for value in vars(self).values())


def moment(text: str, end: bool = False) -> datetime:
    """A year, month, day or time (ISO 8601, UTC where it names no zone); with `end`, what follows the period.

    Raises BadSetting.
    """
    try:
        if found := MOMENT.fullmatch(text.strip()):
            year, month, day = (int(part) if part else None for part in found.groups())
            first = date(year or 0, month or 1, day or 1)
            if end:
                first = _after(first, has_month=month is not None, has_day=day is not None)
            return datetime(first.year, first.month, first.day)
        return in_utc(datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError):
        raise BadSetting(f"date {text!r}: wanted such as 2015, 2015-06, 2015-06-30 or 2015-06-30T12:00") from None


def in_utc(time: datetime) -> datetime:
    """Without a zone, in UTC."""
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


def _after(first: date, has_month: bool, has_day: bool) -> date:
    if has_day:
        return first + timedelta(days=1)
    if has_month:
        return date(first.year + first.month // 12, first.month % 12 + 1, 1)
    return date(first.year + 1, 1, 1)


def allowed(table: pa.Table, filters: Filters, experts: list[str], tags: list[str]) -> np.ndarray:
    """(N,) bool: posts that fulfil all conditions. `tags`: spellings of filters.tag. Raises BadSetting.

    Reads the columns that are needed a chunk at a time.
    """
    number = None
    if filters.expert is not None:
        if filters.expert not in experts:
            raise BadSetting(f"no expert {filters.expert!r} in this mixture: it has {', '.join(experts)}")
        number = experts.index(filters.expert)
    allowed_N = np.ones(len(table), bool)
    first = 0
    for batch in table.to_batches():
        conditions = []
        if filters.split is not None:
            conditions.append(pc.equal(batch["split"], filters.split))
        if number is not None:
            conditions.append(pc.equal(batch["expert"], number))
        if filters.user is not None:
            conditions.append(pc.equal(batch["user"], filters.user))
        if filters.since is not None:
            conditions.append(pc.greater_equal(batch["taken_at"], pa.scalar(in_utc(filters.since), pa.timestamp("us"))))
        if filters.until is not None:
            conditions.append(pc.less(batch["taken_at"], pa.scalar(in_utc(filters.until), pa.timestamp("us"))))
        rows = slice(first, first + len(batch))
        for condition in conditions:
            allowed_N[rows] &= pc.fill_null(condition, False).to_numpy(zero_copy_only=False)
        if filters.tag is not None:
            carrying = pc.list_parent_indices(batch["tags"]).filter(
                pc.is_in(pc.list_flatten(batch["tags"]), pa.array(tags, pa.string()))
            )
            has_B = np.zeros(len(batch), bool)
            has_B[carrying.to_numpy()] = True
            allowed_N[rows] &= has_B
        first = rows.stop
    return allowed_N
