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
        """Return this worker's device, such as "cpu" or "cuda:1"."""
        return self._devices(cuda_devices)[self.worker]

    def sharers(self, cuda_devices: int) -> int:
        """Count the workers on this worker's device, itself included. They divide the device's memory and CPU threads among them."""
        devices = self._devices(cuda_devices)
        return devices.count(devices[self.worker])

    def _devices(self, cuda_devices: int) -> list[str]:
        """The device of every worker. A device with an index is taken as it is; all other workers are spread round-robin over the CUDA
        devices, across models.
        """
        devices, next_cuda = [], 0
        for setting in self.requested:
            spread = setting == "cuda" or (setting == "auto" and cuda_devices > 0)
            devices.append(f"cuda:{next_cuda % max(1, cuda_devices)}" if spread else setting.replace("auto", "cpu"))
            next_cuda += spread
        return devices
