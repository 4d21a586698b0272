"""What jobs run on."""

from dataclasses import dataclass

from graft.errors import UserError
from graft.planning.costs import Costs

# Dense bf16 TFLOP/s and GB of memory, from the makers' data sheets.
GPUS = {"h100": (989.4, 80), "h200": (989.4, 141), "a100": (312.0, 80), "a100-40": (312.0, 40), "b200": (2250.0, 180),
        "l40s": (362.0, 48), "a6000": (154.8, 48), "4090": (165.2, 24), "3090": (71.0, 24)}


@dataclass(frozen=True)
class Device:
    """TFLOP/s of which jobs reach a `share`, and bytes of memory (0: not known)."""

    name: str
    peak: float
    memory: float
    share: float
    measured: bool = False  # the rate is what was seen, whatever the precision

    def hours(self, found: Costs) -> float:
        """Of one job. TF32, in which fp32 runs multiply, has half of bf16's rate."""
        rate = self.peak * (1.0 if self.measured else self.share * (1 if found.half else 0.5))
        return found.flops / (rate * 1e12) / 3600

    @property
    def text(self) -> str:
        """How hours follow from FLOPs, in words."""
        if self.measured:
            return f"at {self.peak:g} TFLOP/s as measured"
        return f"at {self.share:.0%} of {self.name}'s {self.peak:g} TFLOP/s in bf16, half of that in fp32 (TF32)"


def device(gpu: str, peak: float | None, memory: float | None, share: float, rate: float | None) -> Device:
    """From the command line. Raises UserError for a GPU whose rate is not known."""
    if rate is not None:
        return Device("measured", rate, (memory or 0) * 1e9, 1.0, True)
    if peak is not None:
        return Device("this device", peak, (memory or 0) * 1e9, share)
    if gpu not in GPUS:
        raise UserError(f"--gpu: expected one of {', '.join(GPUS)}, got {gpu}; or --peak TFLOPS --memory GB")
    return Device(gpu, GPUS[gpu][0], (memory or GPUS[gpu][1]) * 1e9, share)
