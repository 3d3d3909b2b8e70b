"""What the policy and admission ask others for."""

from typing import Protocol

from .queue import Group, QueuedJob


class Costs(Protocol):
    """What work costs on this device, in milliseconds unless a name says otherwise."""

    def cap(self, group: Group) -> int:
        """The most images that share a call."""

    def call(self, group: Group, count: int) -> float:
        """A UNet call of this many images."""

    def encode(self, job: QueuedJob) -> float:
        """The texts and pictures of a job."""

    def decode(self, group: Group, count: int) -> float:
        """Latents to this many pictures."""

    def swap_seconds(self, model: str) -> float:
        """A change of a model's weights, in seconds."""
