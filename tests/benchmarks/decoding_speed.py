"""Sequences decoded per second: ours against transformers' T5 under a prefix constraint, in one run on one thread.

    python tests/benchmarks/decoding_speed.py [--rounds 3] [--batch 32 --batch 256]

Both have 4 encoder and 4 decoder layers of width 384 with 6 heads and a feed-forward width of 1024, read histories of
20 items of 3 codes each, and generate 3 tokens with 10 beams, only semantic IDs of a catalogue of 12,101 items. T5 is
told by `prefix_allowed_tokens_fn` with a trie of dictionaries, as its documentation shows. Forms take turns; the best
round of each counts, so that other work on the machine does not.

Also: what share of the time goes to other things than the transformer, what the constraint costs against beams without
one, and the memory, the time to build and the time a step of the constraint for catalogues of 10^4 to 10^6 items.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from torch import Tensor

from genrec.config import TigerConfig
from genrec.decoding import Frontier, beam_search, grow, unconstrained_beams
from genrec.models.tiger import Tiger
from genrec.trie import Trie

ITEMS, LEVELS, CODES, HISTORY, BEAMS = 12_101, 3, 256, 20, 10
WIDTH, HEADS, FEEDFORWARD, LAYERS = 384, 6, 1024, 4
CLOSE = ("ours, constrained", "ours, unconstrained")
"forms that differ by so little that they take three turns a round"
INSIDE = ("encode", "remember", "decode_step")
"the methods of Tiger that are the transformer"


def random_codes(num_items: int) -> Tensor:
    """Distinct semantic IDs (N, 3)."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randperm(CODES**LEVELS, generator=generator)[:num_items]
    return torch.stack(torch.unravel_index(flat, (CODES,) * LEVELS), dim=1)


def our_model(codes_NC: Tensor, encoder_tokens: str) -> Tiger:
    config = TigerConfig(
        embedding_dim=WIDTH,
        attn_dim=WIDTH,
        num_heads=HEADS,
        feedforward_dim=FEEDFORWARD,
        n_layers=2 * LAYERS,
        max_seq_len=HISTORY,
        encoder="bidirectional",
        encoder_tokens=encoder_tokens,  # type: ignore[arg-type]
    )
    return Tiger(config, codes_NC, [CODES] * LEVELS).eval()


def t5_generate(codes_NC: Tensor) -> Callable[[Tensor], Tensor]:
    """Histories (B, I) -> generated tokens; token 0 is padding and start, code k of level l is 1 + 256 l + k."""
    config = transformers.T5Config(
        vocab_size=1 + LEVELS * CODES,
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=FEEDFORWARD,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        num_heads=HEADS,
        pad_token_id=0,
        decoder_start_token_id=0,
        eos_token_id=None,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    token_NC = codes_NC + 1 + torch.arange(LEVELS) * CODES
    root: dict[int, Any] = {}
    for tokens in token_NC.tolist():
        node = root
        for token in tokens:
            node = node.setdefault(token, {})

    def allowed(row: int, sequence: Tensor) -> list[int]:
        node = root
        for token in sequence[1:].tolist():
            node = node.get(token, {})
        return list(node) or [0]

    def generate(history_BI: Tensor) -> Tensor:
        return model.generate(
            input_ids=token_NC[history_BI].flatten(1),
            max_new_tokens=LEVELS,
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            do_sample=False,
            prefix_allowed_tokens_fn=allowed,
        )

    return generate


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def share_outside(model: Tiger, call: Callable[[], Any]) -> float:
    """The share of a call's time that is spent outside the transformer's methods."""
    inside = 0.0

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            result = method(*arguments)
            inside += time.perf_counter() - start
            return result

        return wrapper

    for name in INSIDE:
        setattr(model, name, timed(getattr(model, name)))
    total = seconds(call)
    for name in INSIDE:
        delattr(model, name)
    return 1 - inside / total


def compare(batch: int, rounds: int) -> dict[str, Any]:
    """Sequences per second of every form at one batch size, and the two ratios inside ours."""
    codes_NC = random_codes(ITEMS)
    trie, history_BI = Trie(codes_NC), torch.randint(0, ITEMS, (batch, HISTORY))
    paper, short, t5 = our_model(codes_NC, "codes"), our_model(codes_NC, "item"), t5_generate(codes_NC)
    forms: dict[str, Callable[[], Any]] = {
        "transformers T5, prefix constraint": lambda: t5(history_BI),
        "ours, constrained": lambda: beam_search(paper, trie, history_BI, BEAMS),
        "ours, unconstrained": lambda: unconstrained_beams(paper, history_BI, BEAMS),
        "ours, constrained, one encoder token an item": lambda: beam_search(short, trie, history_BI, BEAMS),
    }
    best = dict.fromkeys(forms, float("inf"))
    outside = 1.0
    for round_number in range(rounds + 1):
        for name in [*forms, *2 * CLOSE]:
            taken = seconds(forms[name])
            if round_number:  # the first is to warm up
                best[name] = min(best[name], taken)
        outside = min(outside, share_outside(paper, forms["ours, constrained"]))
    return {"batch": batch, "rates": {name: batch / taken for name, taken in best.items()}, "outside": outside}


def constraint(num_items: int, batch: int = 32) -> dict[str, float]:
    """What the constraint alone costs: build, memory, and a step of all beams, averaged over the levels."""
    codes_NC = random_codes(num_items)
    build = min(seconds(lambda: Trie(codes_NC)) for _ in range(3))
    trie = Trie(codes_NC)
    logits = [torch.randn(batch, 1 if level == 0 else BEAMS, CODES) for level in range(LEVELS)]

    def steps() -> None:
        frontier: Frontier | None = None
        for level in range(LEVELS):
            frontier = grow(trie, level, frontier, logits[level], BEAMS)

    step = min(seconds(steps) for _ in range(20)) / LEVELS
    return {"items": num_items, "build_s": build, "megabytes": trie.num_bytes / 1e6, "ms_a_step": step * 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = [compare(batch, arguments.rounds) for batch in arguments.batch or (32, 256)]
    for result in results:
        base = result["rates"]["transformers T5, prefix constraint"]
        print(f"\nbatch {result['batch']}")
        for name, rate in result["rates"].items():
            print(f"  {name:46} {rate:7.1f} sequences/s  {rate / base:5.2f}x")
        ratio = result["rates"]["ours, unconstrained"] / result["rates"]["ours, constrained"]
        print(f"  time constrained / unconstrained: {ratio:.3f}; outside the transformer: {result['outside']:.1%}")
    print("\nconstraint, batch 32, 10 beams")
    tables = [constraint(num_items) for num_items in (10_000, 100_000, 1_000_000)]
    for row in tables:
        print(
            "  {items:9,} items: {build_s:6.3f} s to build, {megabytes:5.2f} MB, {ms_a_step:5.2f} ms a step".format(
                **row
            )
        )
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"threads": 1, **versions, "decoding": results, "constraint": tables}))
    print("repeat: OMP_NUM_THREADS=1 python tests/benchmarks/decoding_speed.py")


if __name__ == "__main__":
    main()
