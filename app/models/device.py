"""Assigns a device to each worker process of a server, and counts the workers that share one.

Policy without torch: the caller passes the number of CUDA devices.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceAssignment:
    """One worker's place among all workers of a server.

    `requested` holds the device setting of every worker, in the order of the models and of each model's replicas. `worker` is this
    worker's index in it.
    """

    requested: tuple[str, ...] = ("auto",)
    worker: int = 0

    def device(self, cuda_devices: int) -> str:
        """Return this worker's device, such as "cpu", "cuda:1", or "cuda:0,1" for a model that is divided between two cards."""
        return self._devices(cuda_devices)[self.worker]

    def sharers(self, cuda_devices: int) -> int:
        """Count the workers on this worker's device, itself included. They divide the device's memory and CPU threads among them. Of
        several cards the one with the most workers counts.
        """
        cards = [cards_of(device) for device in self._devices(cuda_devices)]
        return max(sum(card in others for others in cards) for card in cards[self.worker])

    def _devices(self, cuda_devices: int) -> list[str]:
        """The device of every worker. Devices with an index are taken as they are; all other workers are spread round-robin over the CUDA
        devices, across models.
        """
        devices, next_cuda = [], 0
        for setting in self.requested:
            spread = setting == "cuda" or (setting == "auto" and cuda_devices > 0)
            devices.append(f"cuda:{next_cuda % max(1, cuda_devices)}" if spread else setting.replace("auto", "cpu"))
            next_cuda += spread
        return devices


def cards_of(device: str) -> tuple[str, ...]:
    """The single devices of "cuda:0,1"; of any other device itself."""
    kind, _, indices = device.partition(":")
    return tuple(f"{kind}:{index}" for index in indices.split(",")) if indices else (kind,)
