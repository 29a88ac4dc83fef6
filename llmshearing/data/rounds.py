"""How a training process and its DataLoader workers agree on the rounds.

The training process writes each new :class:`RoundPlan` into a piece of memory that its workers read. Nothing else
passes between them, and every rank does this for itself, with the same plans.
"""

from __future__ import annotations

import dataclasses
import json
import time
import zlib
from multiprocessing.sharedctypes import RawArray
from typing import Any

from numpy.typing import ArrayLike
from torch.utils.data import get_worker_info

from llmshearing.data.plan import RoundPlan, shuffled_places
from llmshearing.data.proportions import distribution
from llmshearing.data.shards import check_parent
from llmshearing.errors import InputError

_POLL = 0.001  # seconds between a waiting worker's looks


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What the training process tells its workers.

    Args:
        plan: the newest plan.
        start: sample number at which iteration begins.
        closed: no further batch will be asked for, so a worker that waits for a plan should stop.
        watched: the training process itself notices a missing plan, so workers may wait for as long as it takes.
    """

    plan: RoundPlan
    start: int = 0
    closed: bool = False
    watched: bool = False


class Rounds:
    """The rounds of a run, as far as they are planned; shared with forked or spawned workers.

    The memory is anonymous: it has no name that another run could meet, and it is gone with its last process, however
    that ends. There is one writer. A reader never takes half a schedule for a whole one, because the checksum of what
    it copied has to fit; there is no lock that a killed process could leave taken.

    Args:
        plan: the first round.
        timeout: seconds that a worker waits for a plan, where the training process does not watch.
    """

    def __init__(self, plan: RoundPlan, *, timeout: float) -> None:
        self._memory = RawArray("c", 512 + 128 * len(plan.used))
        self._timeout = timeout
        self._read: tuple[bytes, Schedule] | None = None  # what was last read, before and after parsing
        self._found: tuple[RoundPlan, RoundPlan] | None = None  # a plan, and the one that was last asked of it
        self._write(Schedule(plan, plan.begin))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_read": None, "_found": None}  # a worker soon has its own

    @property
    def start(self) -> int:
        """The sample number at which iteration begins."""
        return self._schedule.start

    @property
    def _newest(self) -> RoundPlan:
        """The newest plan. In a held run the rounds after it follow from it."""
        return self._schedule.plan

    @property
    def _schedule(self) -> Schedule:
        """The newest schedule that was written in full."""
        while True:
            copied = self._memory.raw
            if self._read is not None and self._read[0] == copied:
                return self._read[1]
            length, checksum = int.from_bytes(copied[:4], "little"), int.from_bytes(copied[4:8], "little")
            data = copied[8 : 8 + length]
            if len(data) == length and zlib.crc32(data) == checksum:
                self._read = copied, _parse(json.loads(data))
                return self._read[1]

    def _covering(self, plan: RoundPlan, sample: int) -> RoundPlan | None:
        """What :meth:`RoundPlan.covering` says, worked out once a round and not with every batch."""
        if self._found is None or self._found[0] is not plan or not 0 <= sample - self._found[1].begin < plan.size:
            if (found := plan.covering(sample)) is None:
                return None
            self._found = plan, found
        return self._found[1]

    def begin(self, plan: RoundPlan, *, start: int) -> None:
        """Let iteration begin at sample ``start``, within ``plan``; what was held stays so."""
        self._write(Schedule(dataclasses.replace(plan, held=self._newest.held), start))

    def update(self, proportions: ArrayLike) -> None:
        """Set the next round's proportions, (domains,), and let the workers go on into it."""
        self._change(plan=self._newest.following(distribution(proportions)))

    def hold(self) -> None:
        """Keep the proportions for all rounds from here on; workers no longer wait at the rounds' edges."""
        self._change(plan=dataclasses.replace(self._newest, held=True))

    def open(self, *, watched: bool = False) -> int:
        """Let workers wait for plans; see :class:`Schedule`. Returns the sample number at which iteration begins."""
        self._change(closed=False, watched=watched)
        return self._schedule.start

    def close(self) -> None:
        """Tell workers that wait for a plan that none will come, until :meth:`open`."""
        self._change(closed=True)

    def at(self, sample: int) -> RoundPlan:
        """The plan in force when the run had trained on ``sample`` samples.

        At a round's edge that is the new plan once it exists, until then the old one.

        Raises:
            InputError: ``sample`` lies in no round that is known.
        """
        plan = self._newest
        found = self._covering(plan, sample) or (plan if sample == plan.end else None)
        if found is None:
            raise InputError(
                f"Training is at sample {sample}, but the data at round {plan.number}, samples {plan.begin} to "
                f"{plan.end}. Resume from a checkpoint that holds the state of this dataset."
            )
        return found

    def wait_for(self, sample: int) -> RoundPlan | None:
        """The plan of the round of ``sample``, or ``None`` if iteration was closed before it came.

        A worker waits for it; the training process, which is about to ask for a batch of that round, does not.

        Raises:
            InputError: it did not come in time, or, in the training process, is not there.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            schedule = self._schedule
            plan = schedule.plan
            if sample < plan.begin:
                raise InputError(
                    f"Iteration began again at sample {sample}, but training is at sample {plan.begin} or later. Call "
                    "load_state_dict(state_dict(samples trained on)) first, or iterate once."
                )
            if (found := self._covering(plan, sample)) is not None or schedule.closed:
                return found
            if get_worker_info() is None or (time.monotonic() > deadline and not schedule.watched):
                raise self._missing(plan)
            check_parent()
            # There is time now, and none when the plan comes.
            shuffled_places(plan.size, plan.seed, plan.number + 1, plan.lanes)
            time.sleep(_POLL)

    def _missing(self, plan: RoundPlan) -> InputError:
        return InputError(
            f"Round {plan.number} is over at sample {plan.end}, but the proportions of the next one did not come "
            f"(update_timeout: {self._timeout:g} s). Add DynamicBatchLoading to the callbacks and evaluate every "
            "domain each update_interval batches, or keep the mix constant with update_type: constant."
        )

    def _change(self, **changes: Any) -> None:
        self._write(dataclasses.replace(self._schedule, **changes))

    def _write(self, schedule: Schedule) -> None:
        data = json.dumps(dataclasses.asdict(schedule)).encode()
        self._memory.raw = len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data


def _parse(values: dict[str, Any]) -> Schedule:
    plan = values.pop("plan")
    for name in ("proportions", "used", "owed"):
        plan[name] = tuple(plan[name])
    return Schedule(plan=RoundPlan(**plan), **values)
