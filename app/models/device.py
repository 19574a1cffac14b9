"""Where the worker processes of a server sit: which device each of them gets, and how many share it. Policy without torch: how many
CUDA devices there are is told by who knows.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seat:
    """One worker among all of a server's. `asked` is the device setting of each, replica after replica and model after model; `number`
    is this one's place there.
    """

    asked: tuple[str, ...] = ("auto",)
    number: int = 0

    def device(self, cuda: int) -> str:
        """The device of this worker where there are `cuda` CUDA devices."""
        return self._devices(cuda)[self.number]

    def sharers(self, cuda: int) -> int:
        """Workers on this one's device, itself among them: CPU threads and memory are divided by it."""
        devices = self._devices(cuda)
        return devices.count(devices[self.number])

    def _devices(self, cuda: int) -> list[str]:
        """Who named a device by number gets it; the others go round the CUDA devices, whatever model they belong to."""
        found, turn = [], 0
        for asked in self.asked:
            around = asked == "cuda" or (asked == "auto" and cuda > 0)
            found.append(f"cuda:{turn % max(1, cuda)}" if around else asked.replace("auto", "cpu"))
            turn += around
        return found
