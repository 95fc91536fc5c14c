"""One optimizer step: gradients of all batches and ranks added up, clipped, applied, in the precision asked for.

Every rank has its rows of each batch and divides by the targets of all, so that two workers take the step that one
would, and a step of many small batches is that of one large batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genrec.data.batches import Step
from genrec.modules.optimizers import build_optimizers, optimizer_tensors, restore_optimizers
from genrec.ranks import rank_and_world

Precision = Literal["no", "bf16", "fp16"]


class Stepper:
    """Optimizers and loss scaler of one training run. `loss_of(batch)` is a sum over the batch's targets."""

    def __init__(
        self,
        model: nn.Module,
        loss_of: Callable[[Any], Tensor],
        *,
        optimizer: str,
        learning_rate: float,
        weight_decay: float,
        clip_norm: float,
        precision: Precision,
    ):
        self.model, self.loss_of, self.clip_norm, self.precision = model, loss_of, clip_norm, precision
        self.optimizers = build_optimizers(model, optimizer, learning_rate, weight_decay)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        # float16 cannot hold small gradients: the loss is scaled up, and steps that overflow are left out.
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        if self.scaler:
            self.scaler.scale(torch.zeros((), device=self.device))  # ready also on a rank without a row

    def take(self, step: Step, learning_rate: float) -> Tensor:
        """Step once; returns the summed loss of this rank's targets, float64, without waiting for the device."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in step.batches:
            with self._autocast():
                loss = self.loss_of(batch)
            mean = loss / step.num_targets
            (self.scaler.scale(mean) if self.scaler else mean).backward()
            total += loss.detach()
        self._sum_gradients()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        self._apply()
        return total

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors of the optimizers and facts of the scaler."""
        return optimizer_tensors(self.optimizers), self.scaler.state_dict() if self.scaler else {}

    def restore(self, tensors: dict[str, Tensor], scaler: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        restore_optimizers(self.optimizers, tensors)
        if self.scaler and scaler:
            self.scaler.load_state_dict(scaler)

    def _apply(self) -> None:
        if self.scaler:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
            if norm.isfinite():  # one verdict for all optimizers
                for optimizer in self.optimizers:
                    self.scaler.step(optimizer)
            self.scaler.update()
        else:
            if math.isfinite(self.clip_norm):
                nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "no":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)

    def _sum_gradients(self) -> None:
        """Over all ranks, in one flat message."""
        if rank_and_world()[1] == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, part in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
