"""TIGER: an encoder-decoder that generates the semantic ID of a user's next item (Rajput et al. 2023, section 3.2).

Two forms of the encoder share everything else. `bidirectional` reads one history and gives one target, as in the
paper. `item_causal` lets an item see only itself and earlier items, so that one pass over a user's sequence gives every
position its target; the decoder's attention to the encoder stops before the target. With `encoder_tokens: item` an item
enters the encoder as the sum of its codes' embeddings instead of one token a code. A user token, if there is one,
stands before the history and is seen from everywhere; with `item_causal` it sees nothing, or it would tell the future.

Positions are relative, a learned bias by the number of items between two tokens and by the age of a history item, or
`learned`, a vector by an item's age. Weights start as torch starts them, embeddings with unit variance: small
embeddings are drowned by the blocks' random output and learn more slowly.

Letters: B batch, L items of a window, I items of a history, S targets a row, C codes an item, M encoder tokens (I or
I*C, and the user's), D width, H heads, W beams, N items of the catalogue, K codebook size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.checkpoint import MANIFEST, CheckpointError, load_checkpoint
from genrec.config import RunConfig, TigerConfig, validate_config
from genrec.decoding import Beams, search
from genrec.errors import InputError
from genrec.models.history import PADDING, read_history
from genrec.modules.embeddings import SemIdEmbedding, UserIdEmbedding, user_buckets
from genrec.modules.transformer import KeyValue, TransformerEncoderDecoder
from genrec.trie import Trie

USER = -2
"the place of the user token among the places of items"
MIN_BEAM = 50
"beams that the guide's calls use at least: a narrow beam loses good items"


class Window(NamedTuple):
    """Equally long runs of items: every position from `first_target` on is a target, its history what stands before."""

    items_BL: Tensor
    first_target: int
    user_B: Tensor | None = None
    "buckets of the user embedding"
    hidden_BL: Tensor | None = None
    "items that the encoder may not read; as targets they stay"


class Memory(NamedTuple):
    """What the decoder needs of a history: keys and values per layer, and the bias by the items' age."""

    layers: list[KeyValue]
    bias_BHTM: Tensor | None


class EncodedHistory(NamedTuple):
    """The encoder's output for a batch of histories, and the places of their items when some of it is padding."""

    embedding_BMD: Tensor
    place_BI: Tensor | None


class Generated(NamedTuple):
    """The best items of each history, best first. A row with fewer ends in -1 with minus infinity."""

    semantic_ids_BWC: Tensor
    score_BW: Tensor
    "log-probabilities"
    item_BW: Tensor
    "rows of what the trie was built from"


class Tiger(nn.Module):
    """`config`, the catalogue's codes (N, C) and the number of codes of each level.

    Without codes the model has no catalogue: the sizes of its levels come from the tokenizer's settings in a whole
    `RunConfig`, histories are given as semantic IDs and items generated under a trie.
    """

    codes_NC: Tensor

    def __init__(
        self,
        config: TigerConfig | RunConfig,
        codes_NC: Tensor | None = None,
        level_sizes: Sequence[int] | None = None,
    ):
        super().__init__()
        self.level_sizes = level_sizes = _level_sizes(config, codes_NC, level_sizes)
        self.config = config = config.tiger if isinstance(config, RunConfig) else config
        codes_NC = torch.zeros(0, len(level_sizes)) if codes_NC is None else codes_NC
        self.register_buffer("codes_NC", codes_NC.long())
        width, heads, longest = config.embedding_dim, config.num_heads, config.max_seq_len
        self.item_embedding = SemIdEmbedding(level_sizes, width)
        buckets = config.num_user_embeddings
        self.user_embedding = UserIdEmbedding(buckets, width) if buckets else None
        self.start = nn.Parameter(torch.randn(width))
        self.transformer = TransformerEncoderDecoder(
            width,
            attn_dim=config.attn_dim,
            num_heads=heads,
            feedforward_dim=config.feedforward_dim,
            num_layers=config.n_layers // 2,
            dropout=config.dropout,
        )
        self.output_projection = nn.Linear(width, sum(level_sizes), bias=False)
        if config.positions == "learned":
            self.age_embedding = nn.Parameter(torch.randn(longest, width))
        else:
            # Row 0 of both is for the user token: no item is older than `max_seq_len` or of age 0.
            self.distance_bias = nn.Parameter(torch.zeros(2 * longest, heads))
            self.age_bias = nn.Parameter(torch.zeros(longest + 1, heads))

    @classmethod
    def load_from_checkpoint(cls, path: Path | str, device: torch.device | str = "cpu") -> Tiger:
        """A trained model from its checkpoint folder, the folder of its stage or a bundle."""
        return load_tiger(path, device)[0]

    # ---------------------------------------------------------------- encoder

    @property
    def tokens_per_item(self) -> int:
        return len(self.level_sizes) if self.config.encoder_tokens == "codes" else 1

    @property
    def user_tokens(self) -> int:
        return 0 if self.user_embedding is None else 1

    def encode(self, history_BI: Tensor, user_B: Tensor | None = None, hidden_BI: Tensor | None = None) -> Tensor:
        """Items (B, I), oldest first -> encoder output (B, M, D). More than `max_seq_len` items are an error.

        A model without user embeddings does not read `user_B`.
        """
        x_BMD = self._encoder_input(self.item_embedding(self.codes_NC[history_BI]), user_B, hidden_BI)
        return self.transformer.encode(x_BMD, self._encoder_bias(history_BI.shape[1]))

    def _encoder_input(
        self,
        embedded_BICD: Tensor,
        user_B: Tensor | None = None,
        hidden_BI: Tensor | None = None,
        place_BI: Tensor | None = None,
    ) -> Tensor:
        batch, items, codes, _ = embedded_BICD.shape
        if not 0 < items <= self.config.max_seq_len:
            raise ValueError(f"a history of {items} items; expected 1 to max_seq_len={self.config.max_seq_len}")
        if hidden_BI is not None:
            embedded_BICD = embedded_BICD.masked_fill(hidden_BI[:, :, None, None], 0.0)
        if self.config.positions == "learned":
            place_BI = self._places(items) if place_BI is None else place_BI
            age_BI = _lengths(place_BI) - 1 - place_BI.clamp(min=0)
            embedded_BICD = embedded_BICD + self.age_embedding[age_BI].unsqueeze(2)
        x_BMD = embedded_BICD.flatten(1, 2) if self.tokens_per_item > 1 else embedded_BICD.sum(2) * codes**-0.5
        if self.user_embedding is not None:
            x_BMD = torch.cat([self.user_embedding(user_B, batch), x_BMD], dim=1)
        return x_BMD

    def _places(self, items: int) -> Tensor:
        return torch.arange(items, device=self.start.device).unsqueeze(0)

    def _token_places(self, place_BI: Tensor) -> Tensor:
        """The place of each encoder token's item, (B, M)."""
        if self.tokens_per_item > 1:
            place_BI = place_BI.repeat_interleave(self.tokens_per_item, dim=1)
        return F.pad(place_BI, (self.user_tokens, 0), value=USER)

    def _encoder_bias(self, items: int, place_BI: Tensor | None = None) -> Tensor | None:
        """(B or 1, H, M, M): the bias by distance in items; minus infinity where looking is forbidden."""
        if self.config.positions == "learned" and place_BI is None:
            return None
        place_BM = self._token_places(self._places(items) if place_BI is None else place_BI)
        query_BM1, key_B1M = place_BM.unsqueeze(2), place_BM.unsqueeze(1)
        hidden_BMM = (key_B1M == PADDING).expand(-1, place_BM.shape[1], -1)
        if self.config.positions == "learned":
            return _only_mask(hidden_BMM)
        if self.config.encoder == "item_causal":  # nobody reads what padding reads, but it must read something
            hidden_BMM = hidden_BMM | ((key_B1M > query_BM1) & (query_BM1 != PADDING))
        distance_BMM = (query_BM1 - key_B1M + self.config.max_seq_len).clamp(0, len(self.distance_bias) - 1)
        if self.user_tokens:
            distance_BMM = distance_BMM.masked_fill((query_BM1 == USER) | (key_B1M == USER), 0)
        return _bias(self.distance_bias, distance_BMM, hidden_BMM)

    def _age_bias(self, items: int, target_BS: Tensor, tokens: int, place_BI: Tensor | None = None) -> Tensor | None:
        """(B or 1, H, S*tokens, M): by the age of each history item as seen from the targets' places."""
        if self.config.positions == "learned" and place_BI is None:
            return None
        key_B1M = self._token_places(self._places(items) if place_BI is None else place_BI).unsqueeze(1)
        age_BSM = target_BS.unsqueeze(2) - key_B1M
        hidden_BSM = (age_BSM < 1) | (key_B1M == PADDING)
        if self.config.positions == "learned":
            return _only_mask(hidden_BSM)
        age_BSM = age_BSM.clamp(0, self.config.max_seq_len)
        if self.user_tokens:
            age_BSM = age_BSM.masked_fill(key_B1M == USER, 0)
        bias_BHSM = _bias(self.age_bias, age_BSM, hidden_BSM)
        return bias_BHSM.unsqueeze(3).expand(-1, -1, -1, tokens, -1).flatten(2, 3)

    # ---------------------------------------------------------------- training

    def forward(self, window: Window) -> Tensor:
        """Cross-entropy of the targets' codes: the mean over the C levels, the sum over the targets."""
        return self.loss(window, label_smoothing=0.0)

    def loss(self, window: Window, label_smoothing: float) -> Tensor:
        """As `forward`, with label smoothing. A sum, so that batches and ranks of any size add up."""
        target_CR = self.codes_NC[window.items_BL[:, window.first_target :]].flatten(0, 1).T
        total = self.start.new_zeros(())
        for levels, logits_LRK in self._logits(window):
            total = total + F.cross_entropy(
                logits_LRK.flatten(0, 1),
                target_CR[levels].flatten(),
                reduction="sum",
                label_smoothing=label_smoothing,
            )
        return total / len(self.level_sizes)

    def target_logits(self, window: Window) -> list[Tensor]:
        """Teacher-forced logits of every target: a list over levels of (B*S, K of the level)."""
        return [logits_RK for _, logits_LRK in self._logits(window) for logits_RK in logits_LRK]

    def _logits(self, window: Window) -> list[tuple[slice, Tensor]]:
        """The same, levels of one size together: (L, B*S, K) for each run of L such levels."""
        items_BL, first_target, user_B, hidden_BL = window
        last = items_BL.shape[1] - 1
        if self.config.encoder == "bidirectional" and first_target != last:
            raise ValueError("a bidirectional encoder gives one target a row: the last item of the window")
        embedded_BLCD = self.item_embedding(self.codes_NC[items_BL])
        hidden_BI = None if hidden_BL is None else hidden_BL[:, :-1]
        x_BMD = self._encoder_input(embedded_BLCD[:, :-1], user_B, hidden_BI)
        encoded_BMD = self.transformer.encode(x_BMD, self._encoder_bias(last))
        target_1S = torch.arange(first_target, last + 1, device=items_BL.device).unsqueeze(0)
        bias = self._age_bias(last, target_1S, len(self.level_sizes))
        known_BSCD = embedded_BLCD[:, first_target:, :-1]
        x_BSCD = torch.cat([self.start.expand(*known_BSCD.shape[:2], 1, -1), known_BSCD], dim=2)
        hidden_BSCD = self.transformer.decode(x_BSCD, self.transformer.memory(encoded_BMD), bias)
        hidden_CRD = hidden_BSCD.flatten(0, 1).transpose(0, 1)
        return [(levels, hidden_CRD[levels] @ self._run_weight(levels)) for levels in self._runs]

    @property
    def _runs(self) -> list[slice]:
        """Neighbouring levels of one size."""
        lengths = [len(list(run)) for _, run in itertools.groupby(self.level_sizes)]
        ends = list(itertools.accumulate(lengths))
        return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]

    def _run_weight(self, levels: slice) -> Tensor:
        """The output projection of levels of one size, (L, D, K)."""
        first = sum(self.level_sizes[: levels.start])
        sizes = self.level_sizes[levels]
        weight = self.output_projection.weight[first : first + sum(sizes)]
        return weight.unflatten(0, (len(sizes), sizes[0])).transpose(1, 2)

    # ---------------------------------------------------------------- decoding

    def remember(self, encoded_BMD: Tensor, place_BI: Tensor | None = None) -> Memory:
        """Keys, values and bias of an encoded history, computed once, for the item after its last."""
        items = (encoded_BMD.shape[1] - self.user_tokens) // self.tokens_per_item
        target_B1 = _lengths(self._places(items) if place_BI is None else place_BI)
        return Memory(self.transformer.memory(encoded_BMD), self._age_bias(items, target_B1, 1, place_BI))

    def decode_step(
        self, code_BW: Tensor | None, level: int, past: list[list[KeyValue]], memory: Memory, batch: int
    ) -> tuple[Tensor, list[KeyValue]]:
        """Logits (B, W, K) of the codes of `level`, given the code of the level before (None at level 0).

        `past` has the keys and values of the tokens before that one; those of the new token come back.
        """
        x_BWD = self.start.expand(batch, 1, -1) if code_BW is None else self.item_embedding.level(code_BW, level - 1)
        x_BWD, entries = self.transformer.step(x_BWD, past, *memory)
        return x_BWD @ self._run_weight(slice(level, level + 1))[0], entries

    # ------------------------------------------------------- the guide's calls

    @torch.no_grad()
    def encode_sequence(
        self, history: Any, *, users: Sequence[str] | None = None, items: bool = False
    ) -> EncodedHistory:
        """Encode a history or a batch of them, for `generate`.

        A history is item numbers (I,) or semantic IDs (I, C), oldest first; a batch is a list of histories, or a tensor
        padded with -1. Two dimensions of which the second is C are one history of semantic IDs, unless `items` says
        that they are a batch of item numbers. Of a long history the last `max_seq_len` items are read. `users` are the
        ids of the batch's users, for a model with a user embedding.
        """
        x_BMD, bias, place_BI = self._read(history, users, items)
        return EncodedHistory(self.transformer.encode(x_BMD, bias), place_BI)

    @torch.no_grad()
    def generate(self, sequence: EncodedHistory, max_length: int = 10) -> Tensor:
        """Scores (B, N) of all items: log-probabilities, minus infinity for those that beam search did not reach.

        At least the `max_length` best items are reached, so `topk(scores, max_length).indices` recommends. The trie is
        built from the catalogue each time; who asks often keeps one and calls `generate_with_trie`.
        """
        if not len(self.codes_NC):
            raise InputError("this model has no catalogue to score: use generate_with_trie with a trie of valid items")
        item_BW, score_BW = self._search(sequence, Trie(self.codes_NC), max_length)
        columns = len(self.codes_NC) + 1  # the last takes what is no item
        scores_BN = score_BW.new_full((len(item_BW), columns), float("-inf"))
        return scores_BN.scatter_(1, item_BW % columns, score_BW)[:, :-1]

    @torch.no_grad()
    def generate_with_trie(
        self,
        history: Any,
        *,
        trie: Trie,
        max_length: int = 10,
        users: Sequence[str] | None = None,
        items: bool = False,
    ) -> Generated:
        """The best `max_length` of the items that `trie` was built from.

        `history` is what `encode_sequence` reads, or what it returned.
        """
        if not isinstance(history, EncodedHistory):
            history = self.encode_sequence(history, users=users, items=items)
        found = self._search(history, trie, max_length)
        item_BW, score_BW = found.item_BW[:, :max_length], found.score_BW[:, :max_length]
        return Generated(trie.codes(item_BW), score_BW, item_BW)

    @torch.no_grad()
    def get_attention_weights(self, history: Any, *, users: Sequence[str] | None = None, items: bool = False) -> Tensor:
        """The encoder's attention, (layers, B, H, M, M): from each token (row) to each token; rows sum to one.

        Padding gets no weight. `history` is what `encode_sequence` reads.
        """
        x_BMD, bias, _ = self._read(history, users, items)
        return self.transformer.encoder_weights(x_BMD, bias)

    def _read(
        self, history: Any, users: Sequence[str] | None, items: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The encoder's input and bias, and the items' places."""
        codes_BIC, place_BI = read_history(
            history, self.codes_NC, self.level_sizes, self.config.max_seq_len, items=items
        )
        user_B = None
        if users is not None:
            if len(users) != len(codes_BIC):
                raise InputError(f"{len(users)} users for {len(codes_BIC)} histories")
            user_B = user_buckets(users, max(1, self.config.num_user_embeddings)).to(self.start.device)
        x_BMD = self._encoder_input(self.item_embedding(codes_BIC), user_B, None, place_BI)
        return x_BMD, self._encoder_bias(codes_BIC.shape[1], place_BI), place_BI

    def _search(self, sequence: EncodedHistory, trie: Trie, max_length: int) -> Beams:
        trie_sizes = trie.level_sizes
        if len(trie_sizes) != len(self.level_sizes) or any(map(int.__gt__, trie_sizes, self.level_sizes)):
            raise InputError(
                f"the trie's semantic IDs do not fit the model: they need levels of {list(trie_sizes)} codes, "
                f"the model has {list(self.level_sizes)}"
            )
        if max_length < 1:
            raise InputError(f"max_length is the number of items to generate and must be at least 1, got {max_length}")
        memory = self.remember(*sequence)
        return search(self, trie, memory, len(sequence.embedding_BMD), max(max_length, MIN_BEAM))


def build_trie(valid_items: Tensor | Sequence[Sequence[int]]) -> Trie:
    """The trie of the semantic IDs (N, C) of the items that may be generated."""
    return Trie(torch.as_tensor(valid_items))


def load_tiger(path: Path | str, device: torch.device | str = "cpu") -> tuple[Tiger, dict[str, Any]]:
    """A trained model and the facts saved with it (config, level sizes, tuple levels, metrics).

    `path` is the model's checkpoint folder, or a folder that holds it as `model`: a stage's or a bundle.
    """
    path = Path(path)
    folder = path if (path / MANIFEST).is_file() else path / "model"
    if not (folder / MANIFEST).is_file():
        state = f"no model in it (no {MANIFEST} here or below model/)" if path.exists() else "no such file or folder"
        raise CheckpointError(f"{path}: {state}; expected a checkpoint, a tiger stage's folder or a bundle of genrec")
    tensors, facts = load_checkpoint(folder)
    if "config" not in facts or "level_sizes" not in facts or "codes_NC" not in tensors:
        raise CheckpointError(f"{folder}: holds something else than a TIGER model")
    model = Tiger(validate_config(facts["config"]), tensors["codes_NC"], facts["level_sizes"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: tensors do not fit the config beside them ({error})") from None
    return model.to(device).eval(), facts


def _level_sizes(
    config: TigerConfig | RunConfig, codes_NC: Tensor | None, level_sizes: Sequence[int] | None
) -> tuple[int, ...]:
    if level_sizes is None:
        if codes_NC is not None or not isinstance(config, RunConfig):
            raise InputError(
                "level_sizes is missing: only a RunConfig (with no catalogue given) tells how many codes a level has"
            )
        level_sizes = [config.tokenizer.num_item_embeddings] * config.tokenizer.sem_id_dim
    if codes_NC is not None and codes_NC.shape[1] != len(level_sizes):
        raise InputError(f"codes have {codes_NC.shape[1]} levels, level_sizes {len(level_sizes)}")
    return tuple(level_sizes)


def _lengths(place_BI: Tensor) -> Tensor:
    """The number of items of each history, (B, 1)."""
    return place_BI.amax(1, keepdim=True) + 1


def _bias(table_XH: Tensor, index_BQM: Tensor, hidden_BQM: Tensor) -> Tensor:
    """Rows of a table of biases, minus infinity where `hidden`: (B, H, Q, M)."""
    bias_BHQM = F.embedding(index_BQM, table_XH).permute(0, 3, 1, 2)
    return bias_BHQM.masked_fill(hidden_BQM.unsqueeze(1), float("-inf"))


def _only_mask(hidden_BQM: Tensor) -> Tensor:
    return torch.zeros_like(hidden_BQM, dtype=torch.float32).masked_fill(hidden_BQM, float("-inf")).unsqueeze(1)
