"""What Prometheus reads of the service at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from moe_core.service.batching import Batcher
from moe_core.service.following import Following
from moe_core.service.limits import Room
from moe_core.service.mixture import Mixture

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Metrics:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "hardmoe_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "hardmoe_request_seconds", "From a request to its answer.", ["path"], registry=registry, buckets=SECONDS
        )
        self.images = Counter(
            "hardmoe_images", "Images that were answered, or not decoded.", ["how"], registry=registry
        )
        self.batch_images = Histogram(
            "hardmoe_batch_images", "Images computed together.", registry=registry, buckets=IMAGES
        )
        self.batch_seconds = Counter("hardmoe_batch_seconds", "Seconds of computing.", registry=registry)
        self.publications = Counter(
            "hardmoe_publications", "Mixtures that took over, or could not be opened.", ["how"], registry=registry
        )
        self.mixture = Gauge("hardmoe_mixture", "1 for the mixture that answers.", ["version"], registry=registry)
        self.since = Gauge("hardmoe_mixture_since_seconds", "When it began to answer, UNIX time.", registry=registry)
        ProcessCollector(registry=registry)

    def batch(self, images: int, seconds: float) -> None:
        self.batch_images.observe(images)
        self.batch_seconds.inc(seconds)

    def publication(self, mixture: Mixture | None) -> None:
        self.publications.labels("failed" if mixture is None else "opened").inc()
        if mixture is not None:
            self.mixture.clear()
            self.mixture.labels(mixture.version).set(1)
            self.since.set(mixture.since)

    def watch(self, batcher: Batcher, following: Following, queue: Room, device: str) -> None:
        """Adds what is asked of these when the page is read."""
        self.registry.register(_Now(batcher, following, queue, device))

    def page(self) -> bytes:
        return generate_latest(self.registry)


class _Now(Collector):
    def __init__(self, batcher: Batcher, following: Following, queue: Room, device: str) -> None:
        self._batcher, self._following, self._queue, self._device = batcher, following, queue, device

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        experts = self._following.now.bundle.experts_on(self._device)
        return [
            GaugeMetricFamily("hardmoe_queue_images", "Images that wait to be computed.", self._batcher.waiting),
            GaugeMetricFamily("hardmoe_held_images", "Images decoded, waiting or computed.", self._queue.held),
            GaugeMetricFamily("hardmoe_experts_held", "Experts in memory.", len(experts.held)),
            CounterMetricFamily("hardmoe_expert_reads", "Experts read by the mixture that answers.", experts.reads),
        ]
