"""Optimizers of torch that don't load its compiler.

torch wraps an optimizer's methods so that `torch.compile` leaves them alone, and the first call of a wrapper imports
the compiler: a second and about 70 MB in every process that trains. `train.compile` compiles the loss and never the
optimizer, so here the methods stand without their wrappers.
"""

from __future__ import annotations

from inspect import unwrap

import torch
from torch.optim import Optimizer


class EagerOptimizer(Optimizer):
    """To derive from, before any other optimizer."""

    add_param_group = unwrap(Optimizer.add_param_group)
    zero_grad = unwrap(Optimizer.zero_grad)
    state_dict = unwrap(Optimizer.state_dict)
    load_state_dict = unwrap(Optimizer.load_state_dict)


class AdamW(EagerOptimizer, torch.optim.AdamW):
    """Decoupled weight decay (Loshchilov & Hutter 2019), torch's in all it computes."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
