"""Memory and descriptors of the server's processes over time, and how fast the memory grows."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

MB = 1e6
MIN_SAMPLES = 60  # a line through fewer says nothing
WARM_UP_SHARE = 0.2  # of the time
MAX_WARM_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """`resident` in bytes, by process; `worker` names the youngest worker."""

    at_s: float
    resident: Mapping[int, int]
    descriptors: int
    worker: int | None = None

    @property
    def total(self) -> int:
        return sum(self.resident.values())


def measure(processes: Sequence[psutil.Process], at_s: float, worker: int | None) -> Sample:
    """A process that ends meanwhile is left out."""
    resident, descriptors = {}, 0
    for process in processes:
        try:
            resident[process.pid] = process.memory_info().rss
            descriptors += process.num_fds()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            resident.pop(process.pid, None)
    return Sample(at_s, resident, descriptors, worker)


def steady(samples: Sequence[Sample], since_s: float) -> list[Sample]:
    """The samples from which growth is read: those since then, without a warm-up."""
    after = [sample for sample in samples if sample.at_s >= since_s]
    if not after:
        return []
    warm_up_s = min(MAX_WARM_UP_S, WARM_UP_SHARE * (after[-1].at_s - since_s))
    return [sample for sample in after if sample.at_s >= since_s + warm_up_s]


def growth_mb_per_hour(samples: Sequence[Sample]) -> float | None:
    """Slope of the memory of all processes that live in every sample: workers are killed and start anew, the others stay.

    None for too few samples.
    """
    if len(samples) < MIN_SAMPLES:
        return None
    stayed = set.intersection(*(set(sample.resident) for sample in samples))
    totals = [sum(sample.resident[pid] for pid in stayed) / MB for sample in samples]
    hours = [sample.at_s / 3600 for sample in samples]
    return statistics.linear_regression(hours, totals).slope


def peak_by_worker_mb(samples: Sequence[Sample]) -> list[float]:
    """The largest resident memory of each worker, the first worker first."""
    peaks: dict[int, float] = {}
    for sample in samples:
        if sample.worker is not None and sample.worker in sample.resident:
            peaks[sample.worker] = max(peaks.get(sample.worker, 0.0), sample.resident[sample.worker] / MB)
    return [round(peak, 1) for peak in peaks.values()]
