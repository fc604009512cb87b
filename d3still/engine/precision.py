"""What a run computes in: float32, bfloat16 or float16."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from d3still.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BFLOAT16_CAPABILITY = (8, 0)  # CUDA compute capability from which bfloat16 has tensor cores


@dataclass(frozen=True)
class Precision:
    """The type that networks run in; losses between images stay in float32 (see ``losses.full_precision``)."""

    name: str
    device: torch.device

    def autocast(self) -> AbstractContextManager:
        """Context for the forward pass; does nothing in float32."""
        return torch.autocast(self.device.type, DTYPES[self.name], enabled=self.name != "float32")

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaler, active for float16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "float16")


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """``EXPERIMENT.PRECISION`` on this device.

    ``auto`` is bfloat16 where the card or processor gains from it, float16 on older cards, else float32.

    Raises:
        UserError: for an unknown name, or float16 on a CPU, where training in it does not work.
    """
    if wanted == "auto":
        return Precision(_fastest(device), device)
    if wanted not in DTYPES:
        raise UserError(f"EXPERIMENT.PRECISION '{wanted}' is not known; choose auto, {', '.join(DTYPES)}")
    if wanted == "float16" and device.type == "cpu":
        raise UserError("EXPERIMENT.PRECISION float16 needs a GPU; on a CPU choose bfloat16, float32 or auto")
    return Precision(wanted, device)


def _fastest(device: torch.device) -> str:
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY else "float16"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"
