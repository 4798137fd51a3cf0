"""The ranks' agreement on whether to stop: about twice a second, not in each step."""

from distgan.distributed.process_group import World
from distgan.errors import StopReason

AGREE_SEC = 0.5
MOST_STEPS = 1000  # between two agreements


class StopAgreement:
    """Agrees with the other ranks on a reason to stop, once in a number of steps that the speed of the run decides."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._interval = self._steps_left = 1

    def reason(self, own: StopReason) -> StopReason:
        """Return the greatest of all ranks' reasons, the same on each; NONE in steps without an agreement.

        Args:
            own: This rank's reason. It must stay, or be a greater one, until the ranks agree on it.
        """
        if self._world.size == 1:
            return own
        self._steps_left -= 1
        if self._steps_left > 0:
            return StopReason.NONE
        self._steps_left = self._interval
        return StopReason(self._world.all_reduce_max(own))

    def set_pace(self, steps_per_sec: float) -> None:
        """Take the speed of the run, which must be the same number on every rank."""
        self._interval = max(1, min(MOST_STEPS, int(AGREE_SEC * steps_per_sec)))
        self._steps_left = min(self._steps_left, self._interval)  # a new pace delays no agreement
