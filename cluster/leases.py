"""LeaseTable: which member may be which EP rank, and which members are still alive. Pure: time is passed in.

A member lives as long as it renews within the time to live; when it dies its rank becomes free for a replacement. No
rank ever has two holders. What others say of a member counts until somebody speaks for himself. Knows nothing of
endpoints, views or Ray.
"""

from __future__ import annotations


class LeaseTable:
    """Members with a time to live, each holding at most one of `num_ranks` ranks.

    Times are seconds of one monotonic clock. A member that was never enrolled, or has expired, is unknown.
    """

    def __init__(self, num_ranks: int, ttl_s: float) -> None:
        self._num_ranks = num_ranks
        self._ttl_s = ttl_s
        self._renewed_at: dict[str, float] = {}
        self._holder: dict[int, str] = {}
        self._hearsay: set[str] = set()

    def enroll(self, member_id: str, now: float) -> None:
        """Make a member known, or renew it: it has spoken itself."""
        self._renewed_at[member_id] = now
        self._hearsay.discard(member_id)

    def assume(self, member_id: str, now: float, ep_rank: int | None = None) -> None:
        """Believe another's word that a member lives, and holds `ep_rank`. Its time to live begins now.

        The later word replaces an earlier one, but neither takes a rank from a member that spoke itself.
        """
        if member_id not in self._renewed_at:
            self._renewed_at[member_id] = now
            self._hearsay.add(member_id)
        if ep_rank is not None and self.rank_of(member_id) is None:
            self._drop_hearsay(ep_rank)
            self._holder.setdefault(ep_rank, member_id)

    def is_known(self, member_id: str) -> bool:
        return member_id in self._renewed_at

    def renew(self, member_id: str, now: float) -> bool:
        """False if the member is unknown: it must register again."""
        if member_id not in self._renewed_at:
            return False
        self.enroll(member_id, now)
        return True

    def acquire(self, member_id: str, now: float, wanted: int | None = None) -> int | None:
        """Give the member a rank and enroll it: the one it holds, else `wanted` if free, else the lowest free one.

        With `wanted` no other rank is given, because the member has that rank's weights; a holder that never spoke
        itself gives way to it. None: nothing suits.
        """
        self.enroll(member_id, now)
        held = self.rank_of(member_id)
        if held is not None:
            return held if wanted in (None, held) else None
        if wanted is not None:
            self._drop_hearsay(wanted)
        candidates = range(self._num_ranks) if wanted is None else [wanted] if 0 <= wanted < self._num_ranks else []
        for ep_rank in candidates:
            if ep_rank not in self._holder:
                self._holder[ep_rank] = member_id
                return ep_rank
        return None

    def release(self, member_id: str) -> int | None:
        """Forget a member; returns the rank it held."""
        self._renewed_at.pop(member_id, None)
        self._hearsay.discard(member_id)
        ep_rank = self.rank_of(member_id)
        if ep_rank is not None:
            del self._holder[ep_rank]
        return ep_rank

    def expire(self, now: float) -> tuple[str, ...]:
        """Release every member that was silent longer than the time to live; returns them."""
        dead = self.silent(now, self._ttl_s)
        for member_id in dead:
            self.release(member_id)
        return dead

    def silent(self, now: float, for_s: float) -> tuple[str, ...]:
        """Members that have not renewed within the last `for_s` seconds."""
        return tuple(member_id for member_id, at in self._renewed_at.items() if now - at > for_s)

    def members(self) -> tuple[str, ...]:
        return tuple(self._renewed_at)

    def holder(self, ep_rank: int) -> str | None:
        return self._holder.get(ep_rank)

    def rank_of(self, member_id: str) -> int | None:
        return next((ep_rank for ep_rank, holder in self._holder.items() if holder == member_id), None)

    def holders(self) -> dict[int, str]:
        """Holder of each leased rank, by rank."""
        return dict(sorted(self._holder.items()))

    def _drop_hearsay(self, ep_rank: int) -> None:
        holder = self._holder.get(ep_rank)
        if holder is not None and holder in self._hearsay:
            self.release(holder)
