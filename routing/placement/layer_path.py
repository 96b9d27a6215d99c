"""The way of one layer from its slots to sets of experts, step by step, each of them legal. Pure.

A step fills slots that were empty before it, and lets go of what has a copy elsewhere after it. When nothing can be
filled, experts stand in each other's way in a circle; then one of them goes to a free slot elsewhere for a while, or a
redundant copy gives way and comes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from routing.experts import EMPTY_SLOT

NO_SLOT = "experts cannot move without a slot to spare: at least one redundant slot per rank is needed"


class LayerPath:
    """Owns the slots of one layer on their way. missing, surplus: by rank, what is to come and what is to go."""

    def __init__(self, slots: Sequence[Sequence[int]], wanted: Sequence[set[int]]) -> None:
        """slots: by rank, logical ids or EMPTY_SLOT. wanted: by rank."""
        self.slots = [list(row) for row in slots]
        self._held = [{expert: slot for slot, expert in enumerate(row) if expert != EMPTY_SLOT} for row in slots]
        self._empty = [[slot for slot, expert in enumerate(row) if expert == EMPTY_SLOT] for row in slots]
        self.missing = [target - held.keys() for target, held in zip(wanted, self._held, strict=True)]
        self.surplus = [held.keys() - target for target, held in zip(wanted, self._held, strict=True)]
        self._holders: dict[int, set[int]] = {}
        for rank, held in enumerate(self._held):
            for expert in held:
                self._holders.setdefault(expert, set()).add(rank)

    def steps(self) -> Iterator[list[list[int]]]:
        """The slots after each step. Raises ValueError when there is no slot to spare."""
        while any(self.missing) or any(self.surplus):
            has_filled = self._fill()
            if self._let_go() or has_filled:
                yield self._now()
            else:
                yield from self._make_way()

    def _fill(self) -> bool:
        """What is missing, into empty slots: first what makes room where that is needed most."""
        ranks = [rank for rank, missing in enumerate(self.missing) if missing and self._empty[rank]]
        need = [len(missing) - len(empty) for missing, empty in zip(self.missing, self._empty, strict=True)]
        for rank in ranks:
            for expert in sorted(self.missing[rank], key=lambda expert: (-self._relief(expert, need), expert)):
                if not self._empty[rank]:
                    break
                self._put(expert, rank)
        return bool(ranks)

    def _relief(self, expert: int, need: Sequence[int]) -> float:
        """How short of slots the rank is that can let the expert go once it is here; minus infinity if none can."""
        sources = [need[rank] for rank in self._holders[expert] if expert in self.surplus[rank]]
        return max(sources, default=float("-inf"))

    def _let_go(self) -> bool:
        """All that has a copy elsewhere and is not wanted; of two such copies the one whose slot is needed more."""
        let_go = False
        for rank in sorted(range(len(self.slots)), key=lambda rank: (-len(self.missing[rank]), rank)):
            for expert in sorted(self.surplus[rank]):
                if len(self._holders[expert]) > 1:
                    self._take(expert, rank)
                    let_go = True
        return let_go

    def _make_way(self) -> Iterator[list[list[int]]]:
        """For one expert of each circle. Every rank that misses something is full, and some of it is elsewhere."""
        blocked = [rank for rank in range(len(self.slots)) if self._comes_by_leaving(rank)]
        circles = list(self._one_of_each_circle(blocked))
        # Loans first: what is taken in this step leaves no slot that may be filled in it.
        lent = {rank: expert for rank in circles if (expert := self._lend_slot(rank)) is not None}
        for rank, expert in lent.items():
            self._take(expert, rank)
        has_dropped = [self._drop_copy(rank) for rank in circles if rank not in lent]
        if not lent and not any(has_dropped):
            # The only redundant copies are on ranks that do not matter here: one of them lends its slot.
            if not any(self._drop_copy(rank) for rank in range(len(self.slots))):
                raise ValueError(NO_SLOT)
            yield self._now()
            expert = self._lend_slot(circles[0])
            assert expert is not None, "a slot has just become free"
            self._take(expert, circles[0])
        yield self._now()

    def _comes_by_leaving(self, rank: int) -> bool:
        return any(expert in self.surplus[other] for expert in self.missing[rank] for other in self._holders[expert])

    def _one_of_each_circle(self, blocked: Sequence[int]) -> Iterator[int]:
        """Ranks such that no one waits for another one's slot, by any number of steps."""
        seen: set[int] = set()
        for rank in blocked:
            if rank not in seen:
                reached = [rank]
                while reached:
                    seen.add(here := reached.pop())
                    sources = {other for expert in self.missing[here] for other in self._holders[expert]}
                    targets = {other for other in blocked if self.missing[other] & self.surplus[here]}
                    reached += sorted(((sources & set(blocked)) | targets) - seen)
                yield rank

    def _lend_slot(self, rank: int) -> int | None:
        """A copy of an expert that is to leave this rank goes to a free slot elsewhere, on its way. Returns which."""
        for expert in sorted(self.surplus[rank]):
            for other, empty in enumerate(self._empty):
                if empty and other not in self._holders[expert]:
                    self._put(expert, other)
                    return expert
        return None

    def _drop_copy(self, rank: int) -> bool:
        """A redundant copy gives way; it is missing from now on."""
        for expert in sorted(self._held[rank]):
            if len(self._holders[expert]) > 1:
                self._take(expert, rank)
                return True
        return False

    def _put(self, expert: int, rank: int) -> None:
        slot = self._empty[rank].pop(0)
        self.slots[rank][slot], self._held[rank][expert] = expert, slot
        self._holders[expert].add(rank)
        self._swap_sides(expert, self.missing[rank], self.surplus[rank])

    def _take(self, expert: int, rank: int) -> None:
        slot = self._held[rank].pop(expert)
        self.slots[rank][slot] = EMPTY_SLOT
        self._empty[rank] = sorted([*self._empty[rank], slot])
        self._holders[expert].remove(rank)
        self._swap_sides(expert, self.surplus[rank], self.missing[rank])

    @staticmethod
    def _swap_sides(expert: int, settled: set[int], other: set[int]) -> None:
        """What was due is done; what was not is due in the other direction."""
        if expert in settled:
            settled.remove(expert)
        else:
            other.add(expert)

    def _now(self) -> list[list[int]]:
        return [list(row) for row in self.slots]
