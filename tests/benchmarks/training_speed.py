"""Training targets per second: ours against a straightforward TIGER loop of the same shape, in one run on one thread.

    python tests/benchmarks/training_speed.py [--seconds 20]

The straightforward loop does what a first implementation does: a Dataset with one history a sample, a collate
function that pads every history to 20 items, torch's own encoder and decoder layers, and one softmax over all codes.
Both train on the same synthetic sequences whose lengths are drawn like those of Amazon Beauty.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from genrec.config import load_config
from genrec.data.batches import WindowBatches
from genrec.models.tiger import Tiger
from genrec.modules.optimizers import build_optimizers

ITEMS, LEVELS, CODES, MAX_ITEMS, BATCH = 12_000, 4, 256, 20, 256
WIDTH, HEADS, FEEDFORWARD, LAYERS = 128, 4, 512, 4


class Samples(Dataset):  # type: ignore[type-arg]
    """One (history, next item) a sample, as lists of codes."""

    def __init__(self, offsets: np.ndarray, items: np.ndarray, codes_NC: Tensor):
        self.codes = codes_NC.tolist()
        self.samples = [
            (items[max(start, i - MAX_ITEMS) : i].tolist(), int(items[i]))
            for start, end in zip(offsets[:-1], offsets[1:], strict=True)
            for i in range(start + 1, end)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        history, target = self.samples[index]
        tokens = [1 + level * CODES + code for item in history for level, code in enumerate(self.codes[item])]
        return tokens, [1 + level * CODES + code for level, code in enumerate(self.codes[target])]


def collate(batch: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Pad every history to 20 items."""
    size = MAX_ITEMS * LEVELS
    histories = torch.tensor([[0] * (size - len(tokens)) + tokens for tokens, _ in batch])
    return histories, torch.tensor([target for _, target in batch])


class Straightforward(nn.Module):
    """torch.nn's encoder and decoder over padded tokens, one table and one softmax for all codes."""

    def __init__(self) -> None:
        super().__init__()
        vocabulary = 1 + LEVELS * CODES
        self.table = nn.Embedding(vocabulary, WIDTH, padding_idx=0)
        self.position = nn.Embedding(MAX_ITEMS * LEVELS, WIDTH)
        block: dict[str, Any] = {"dim_feedforward": FEEDFORWARD, "batch_first": True, "norm_first": True}
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(WIDTH, HEADS, **block), LAYERS // 2, enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, **block), LAYERS // 2)
        self.head = nn.Linear(WIDTH, vocabulary)

    def forward(self, history_BT: Tensor, target_BC: Tensor) -> Tensor:
        padding_BT = history_BT == 0
        x = self.table(history_BT) + self.position.weight
        memory = self.encoder(x, src_key_padding_mask=padding_BT)
        start = torch.zeros_like(target_BC[:, :1])
        shifted = self.table(torch.cat([start, target_BC[:, :-1]], dim=1))
        mask = nn.Transformer.generate_square_subsequent_mask(LEVELS)
        hidden = self.decoder(shifted, memory, tgt_mask=mask, memory_key_padding_mask=padding_BT)
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), target_BC.flatten())


def straightforward_steps(offsets: np.ndarray, items: np.ndarray, codes_NC: Tensor) -> Iterator[int]:
    """Train for ever; yields the targets of each step."""
    model = Straightforward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(Samples(offsets, items, codes_NC), BATCH, shuffle=True, collate_fn=collate)
    while True:
        for history_BT, target_BC in loader:
            model(history_BT, target_BC).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield len(target_BC)


def our_steps(offsets: np.ndarray, items: np.ndarray, codes_NC: Tensor, overrides: dict[str, Any]) -> Iterator[int]:
    """The same for our batches and model."""
    shape = {"embedding_dim": WIDTH, "attn_dim": WIDTH, "num_heads": HEADS, "feedforward_dim": FEEDFORWARD}
    config = load_config(None, {f"tiger.{k}": v for k, v in (shape | {"n_layers": LAYERS} | overrides).items()})
    model = Tiger(config.tiger, codes_NC, [CODES] * LEVELS)
    optimizers = build_optimizers(model, "adamw", 1e-3, 0.05)
    causal = config.tiger.encoder == "item_causal"
    batches = WindowBatches(offsets, items, causal=causal, max_items=MAX_ITEMS, batch_size=BATCH, seed=0)
    epoch = 0
    while True:
        epoch += 1
        for step in batches.steps(epoch):
            for window in step.batches:
                (model.loss(window, 0.1) / step.num_targets).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            yield step.num_targets


def rate(steps: Iterator[int], seconds: float) -> float:
    """Targets per second after three steps of warm-up."""
    for _ in range(3):
        next(steps)
    start, targets = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        targets += next(steps)
    return targets / (time.perf_counter() - start)


def beauty_like_sequences(users: int) -> tuple[np.ndarray, np.ndarray]:
    """Training sequences with Beauty's mean of 6.9 items, most of them short, few very long."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(
        3 + rng.geometric(0.22, users) - 1 + (rng.random(users) < 0.03) * rng.integers(10, 60, users), 200
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return offsets, rng.integers(0, ITEMS, offsets[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="per form and round")
    parser.add_argument("--rounds", type=int, default=2)
    seconds, rounds = (lambda a: (a.seconds, a.rounds))(parser.parse_args())
    torch.set_num_threads(1)
    torch.manual_seed(0)
    offsets, items = beauty_like_sequences(20_000)
    codes_NC = torch.randint(0, CODES, (ITEMS, LEVELS))
    forms: dict[str, Callable[[], Iterator[int]]] = {
        "straightforward": lambda: straightforward_steps(offsets, items, codes_NC),
        "bidirectional": lambda: our_steps(
            offsets, items, codes_NC, {"encoder": "bidirectional", "encoder_tokens": "codes"}
        ),
        "item_causal": lambda: our_steps(
            offsets, items, codes_NC, {"encoder": "item_causal", "encoder_tokens": "codes"}
        ),
        "item_causal, one token an item": lambda: our_steps(
            offsets, items, codes_NC, {"encoder": "item_causal", "encoder_tokens": "item"}
        ),
    }
    running = {name: make() for name, make in forms.items()}
    rates: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):  # in turns, so that a change of the machine's load meets all forms
        for name, steps in running.items():
            rates[name].append(rate(steps, seconds))
    base = sum(rates["straightforward"])
    for name, found in rates.items():
        print(f"{name:32} {sum(found) / rounds:8.0f} targets/s  {sum(found) / base:5.1f}x")
    print(json.dumps({"threads": 1, "torch": torch.__version__, "rates": rates}))


if __name__ == "__main__":
    main()
