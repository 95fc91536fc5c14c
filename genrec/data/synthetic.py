"""A made-up catalogue with a known truth, and the best ranking that any model could reach on it.

Users move by a first-order Markov process. After item i of category g the next category is g itself with probability
`stay`, else one of a few that follow g; inside the next category c the next item is, with probability
`successor_share`, one of a few items of c that follow i in particular, else any item of c by Zipf's law. So

    P(j | i) = P(c(j) | g) * ((1 - successor_share) * zipf(j | c) + successor_share * P(j follows i | c)).

Nothing is excluded: items may repeat, and the truth stays exact. Item texts name department, category, brand and a few
words of the category, so that texts of one category are alike. Everything follows from `SyntheticConfig.seed`.

Shape letters: N items, G categories, F categories that may follow one (the first is itself), S successors, B users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from genrec.data.interactions import Histories, Interactions, Items, Split, build_interactions
from genrec.modules.metrics import MetricSums, ranking_metrics, ranks_in_lists, top_k_items
from genrec.settings import SyntheticConfig

SHORTEST = 5
"items of the shortest sequence"
_CELLS = 4_000_000
"cells of a dense (B, N) block of probabilities; bounds the oracle's memory"
_DAY, _YEAR_BEGINS = 86_400, 1_577_836_800
# Streams of random numbers: a change of num_users must not change the catalogue.
_TRUTH, _TEXTS, _USERS, _TIMES = range(4)


@dataclass(frozen=True, eq=False)
class SyntheticTruth:
    """The process that users follow. Items of category g are `members[bounds[g]:bounds[g+1]]`, most popular first."""

    category_N: np.ndarray
    members_N: np.ndarray
    bounds: np.ndarray
    zipf_N: np.ndarray
    "P(item | its category), in the order of `members_N`"
    next_category_GF: np.ndarray
    next_category_prob_GF: np.ndarray
    successors_NFS: np.ndarray
    "items that follow an item in each of the F next categories; the same item may stand twice"
    successor_prob_S: np.ndarray
    successor_share: float

    @staticmethod
    def from_config(config: SyntheticConfig) -> SyntheticTruth:
        """The truth behind `make_synthetic(config)`."""
        rng = _generator(config.seed, _TRUTH)
        bounds = _category_bounds(config.num_items, config.num_categories)
        members = rng.permutation(config.num_items).astype(np.int32)
        category_N = np.empty(config.num_items, dtype=np.int32)
        category_N[members] = np.repeat(np.arange(config.num_categories), np.diff(bounds))
        next_GF = _next_categories(rng, config.num_categories, config.category_fanout)
        weights_S = 0.6 ** np.arange(config.successors)
        return SyntheticTruth(
            category_N=category_N,
            members_N=members,
            bounds=bounds,
            zipf_N=np.concatenate([_zipf(size, config.zipf) for size in np.diff(bounds)]),
            next_category_GF=next_GF,
            next_category_prob_GF=_next_category_probs(rng, next_GF.shape, config.stay),
            successors_NFS=_successors(rng, members, bounds, category_N, next_GF, config.successors),
            successor_prob_S=weights_S / weights_S.sum(),
            successor_share=config.successor_share,
        )

    def transition(self, items_B: np.ndarray) -> np.ndarray:
        """(B, N) float64 P(next item | last item); every row sums to 1."""
        items_B = np.asarray(items_B)
        category_B = self.category_N[items_B]
        rows = np.arange(len(items_B))
        probs_BN = self._by_category(category_B)
        for f in range(self.next_category_GF.shape[1]):
            prob_B = self.next_category_prob_GF[category_B, f] * self.successor_share
            for s, successor_prob in enumerate(self.successor_prob_S):
                # One entry a row, so that plain fancy addition is safe.
                probs_BN[rows, self.successors_NFS[items_B, f, s]] += prob_B * successor_prob
        return probs_BN

    def _by_category(self, category_B: np.ndarray) -> np.ndarray:
        """(B, N) the part of P(next item | last item) that the last item's category decides."""
        categories_G, row_B = np.unique(category_B, return_inverse=True)
        probs_GN = np.zeros((len(categories_G), len(self.category_N)))
        for row, category in enumerate(categories_G):
            nexts = zip(self.next_category_GF[category], self.next_category_prob_GF[category], strict=True)
            for next_category, prob in nexts:
                span = slice(self.bounds[next_category], self.bounds[next_category + 1])
                probs_GN[row, self.members_N[span]] = prob * (1 - self.successor_share) * self.zipf_N[span]
        return probs_GN[row_B]


def make_synthetic(config: SyntheticConfig) -> Interactions:
    """Users, items and texts; the same config gives the same bytes in every process."""
    truth = SyntheticTruth.from_config(config)
    offsets, items = _walk(truth, config)
    width = len(str(config.num_users))
    users = [f"U{number:0{width}d}" for number in range(1, config.num_users + 1)]
    return build_interactions(users, offsets, items, _catalogue(truth, config), _clock(offsets, config))


def oracle(
    interactions: Interactions,
    truth: SyntheticTruth,
    split: Split,
    ks: Sequence[int],
    seen: Literal["keep", "exclude"] = "keep",
) -> dict[str, float]:
    """Recall@K and NDCG@K of the ranking by P(. | last item), ties by item id: no model can expect more.

    `expected_recall@K` is the mean probability that a target lies in the first K; the realised `recall@K` differs from
    it by the luck of the draw. With `seen="exclude"` items of the history are left out of the ranking.
    """
    num_items, depth = len(interactions.catalogue), max(ks)
    users = interactions.users_of(split)
    histories, targets = interactions.histories(split).take(users), interactions.targets(split)[users]
    measured = MetricSums()
    step = max(1, _CELLS // num_items)
    for start in range(0, len(histories), step):
        batch = histories.take(slice(start, start + step))
        probs_BN = truth.transition(batch.last())
        if seen == "exclude":
            _forget_seen(probs_BN, batch)
        lists_BK = top_k_items(probs_BN, depth)
        sums = ranking_metrics(ranks_in_lists(lists_BK, targets[start : start + step]), ks, depth)
        mass_BK = np.maximum(np.take_along_axis(probs_BN, lists_BK, axis=1), 0).cumsum(axis=1)
        expected = {f"expected_recall@{k}": mass_BK[:, k - 1].sum() for k in ks}
        measured.add(sums.sums | expected, sums.count)
    return measured.result()


def _forget_seen(probs_BN: np.ndarray, histories: Histories) -> None:
    offsets, items, _ = histories.recent()
    probs_BN[np.repeat(np.arange(len(histories)), np.diff(offsets)), items] = -1.0


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(abs(seed), spawn_key=(stream, int(seed < 0)))))


def _zipf(size: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, size + 1) ** -float(exponent)
    return weights / weights.sum()


def _category_bounds(num_items: int, num_categories: int) -> np.ndarray:
    """(G+1,) category sizes by a flat Zipf law, at least one item each."""
    spare = num_items - num_categories
    shares = np.concatenate([[0.0], np.cumsum(_zipf(num_categories, 0.5))])
    return np.round(shares * spare).astype(np.int64) + np.arange(num_categories + 1)


def _next_categories(rng: np.random.Generator, num_categories: int, fanout: int) -> np.ndarray:
    """(G, F) the category itself, then `fanout` others, all different."""
    fanout = min(fanout, num_categories - 1)
    others_GF = np.empty((num_categories, fanout), dtype=np.int64)
    for category in range(num_categories):
        others_GF[category] = rng.choice(num_categories - 1, size=fanout, replace=False)
    own_G1 = np.arange(num_categories)[:, None]
    return np.concatenate([own_G1, others_GF + (others_GF >= own_G1)], axis=1)


def _next_category_probs(rng: np.random.Generator, shape: tuple[int, ...], stay: float) -> np.ndarray:
    """(G, F) rows that sum to 1: `stay`, then the rest in uneven parts."""
    num_categories, num_next = shape
    parts_GF = rng.uniform(0.5, 1.5, size=(num_categories, num_next - 1))
    parts_GF *= (1 - stay) / parts_GF.sum(axis=1, keepdims=True)
    return np.concatenate([np.full((num_categories, 1), stay), parts_GF], axis=1)


def _successors(
    rng: np.random.Generator,
    members: np.ndarray,
    bounds: np.ndarray,
    category_N: np.ndarray,
    next_category_GF: np.ndarray,
    count: int,
) -> np.ndarray:
    """(N, F, S) items drawn evenly from each next category; inside its own category an item does not follow itself."""
    place_N = np.empty(len(members), dtype=np.int64)
    place_N[members] = np.arange(len(members)) - np.repeat(bounds[:-1], np.diff(bounds))
    next_NF1 = next_category_GF[category_N][:, :, None]
    size_NF1 = np.diff(bounds)[next_NF1]
    draw_NFS = rng.random((len(members), next_category_GF.shape[1], count))
    index_NFS = (draw_NFS * size_NF1).astype(np.int64)
    size_N1 = size_NF1[:, 0]
    step_NS = 1 + (draw_NFS[:, 0] * (size_N1 - 1)).astype(np.int64)
    index_NFS[:, 0] = (place_N[:, None] + step_NS) % size_N1
    return members[bounds[next_NF1] + index_NFS]


def _walk(truth: SyntheticTruth, config: SyntheticConfig) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and items of all users, drawn step by step for all users at once."""
    rng = _generator(config.seed, _USERS)
    extra = rng.geometric(1 / (config.mean_length - SHORTEST + 1), size=config.num_users) - 1
    lengths = SHORTEST + extra
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.empty(offsets[-1], dtype=np.int32)
    # Longest first, so that the users who still walk are always a leading slice.
    order = np.argsort(-lengths, kind="stable")
    active_at = np.searchsorted(-lengths[order], -np.arange(lengths.max()), side="left")
    first_category = truth.category_N[rng.integers(len(truth.category_N), size=config.num_users)]
    last = _draw_popular(rng, truth, first_category, np.cumsum(truth.zipf_N))
    zipf_cdf, category_cdf = np.cumsum(truth.zipf_N), np.cumsum(truth.next_category_prob_GF, axis=1)
    for step, active in enumerate(active_at):
        if step:
            last = _draw_next(rng, truth, last[:active], category_cdf, zipf_cdf)
        items[offsets[order[:active]] + step] = last[:active]
    return offsets, items


def _clock(offsets: np.ndarray, config: SyntheticConfig) -> np.ndarray:
    """(n,) seconds: users begin at any moment of a year and go on after about five days each time."""
    rng = _generator(config.seed, _TIMES)
    gaps = np.ceil(rng.exponential(5 * _DAY, size=offsets[-1])).astype(np.int64)
    gaps[offsets[:-1]] = _YEAR_BEGINS + rng.integers(365 * _DAY, size=len(offsets) - 1)
    total = np.cumsum(gaps)
    before = np.concatenate([[0], total])[offsets[:-1]]
    return total - np.repeat(before, np.diff(offsets))


def _draw_next(
    rng: np.random.Generator,
    truth: SyntheticTruth,
    last_B: np.ndarray,
    category_cdf_GF: np.ndarray,
    zipf_cdf_N: np.ndarray,
) -> np.ndarray:
    """(B,) one step of the process from each of the last items."""
    category_B = truth.category_N[last_B]
    f_B = (rng.random(len(last_B))[:, None] > category_cdf_GF[category_B, :-1]).sum(axis=1)
    popular_B = _draw_popular(rng, truth, truth.next_category_GF[category_B, f_B], zipf_cdf_N)
    s_B = np.searchsorted(np.cumsum(truth.successor_prob_S)[:-1], rng.random(len(last_B)), side="right")
    follows_B = rng.random(len(last_B)) < truth.successor_share
    return np.where(follows_B, truth.successors_NFS[last_B, f_B, s_B], popular_B)


def _draw_popular(
    rng: np.random.Generator, truth: SyntheticTruth, category_B: np.ndarray, zipf_cdf_N: np.ndarray
) -> np.ndarray:
    """(B,) an item of each category by Zipf's law; category g owns the stretch (g, g+1) of the running sum."""
    place_B = np.searchsorted(zipf_cdf_N, category_B + rng.random(len(category_B)), side="right")
    # Rounding of the running sum must not lead into the neighbouring category.
    return truth.members_N[np.clip(place_B, truth.bounds[category_B], truth.bounds[category_B + 1] - 1)]


_DEPARTMENTS: dict[str, list[str]] = {
    "Kitchen": ["Kettle", "Pan", "Grater", "Mug", "Knife", "Whisk", "Toaster", "Bowl"],
    "Garden": ["Spade", "Hose", "Planter", "Rake", "Lantern", "Shears", "Trellis", "Seeds"],
    "Music": ["Guitar", "Drum", "Flute", "Cable", "Stand", "Microphone", "Strings", "Tuner"],
    "Travel": ["Suitcase", "Pillow", "Adapter", "Backpack", "Wallet", "Map", "Bottle", "Towel"],
    "Office": ["Notebook", "Pen", "Lamp", "Folder", "Stapler", "Chair", "Calendar", "Scissors"],
    "Outdoor": ["Tent", "Stove", "Rope", "Compass", "Jacket", "Boots", "Hammock", "Torch"],
    "Crafts": ["Yarn", "Paint", "Brush", "Canvas", "Needle", "Clay", "Ribbon", "Beads"],
    "Pets": ["Collar", "Basket", "Feeder", "Leash", "Aquarium", "Perch", "Brush", "Tunnel"],
}
_ADJECTIVES = [
    "Compact", "Classic", "Light", "Sturdy", "Folding", "Bright", "Quiet", "Soft", "Slim", "Large", "Small", "Modern",
    "Rustic", "Smart", "Warm", "Round", "Striped", "Natural", "Deluxe", "Simple", "Double", "Mini", "Portable", "Fine",
]  # fmt: skip
_ONSETS, _VOWELS, _CODAS = list("bdfgklmnprstvz"), list("aeiou"), ["", "l", "n", "r", "s", "x"]


def _catalogue(truth: SyntheticTruth, config: SyntheticConfig) -> Items:
    """Titles `BRAND ADJECTIVE WORD NOUN`, unique, and texts in the form of `genrec.data.sequential.item_text`."""
    rng = _generator(config.seed, _TEXTS)
    num_items, width = config.num_items, len(str(config.num_items))
    titles, texts = [""] * num_items, [""] * num_items
    taken: dict[str, int] = {}
    for category in range(config.num_categories):
        department, noun, name = _category_name(category)
        brands, words = _made_up_words(rng, 4), _made_up_words(rng, 6)
        own_adjectives = [_ADJECTIVES[i] for i in rng.choice(len(_ADJECTIVES), size=6, replace=False)]
        for item in truth.members_N[truth.bounds[category] : truth.bounds[category + 1]].tolist():
            b, a, w, v = rng.integers([len(brands), len(own_adjectives), len(words), len(words)]).tolist()
            title = f"{brands[b]} {own_adjectives[a]} {words[w]} {noun}"
            taken[title] = taken.get(title, 0) + 1
            titles[item] = title if taken[title] == 1 else f"{title} {taken[title]}"
            texts[item] = f"{titles[item]} by {words[v]}; brand: {brands[b]}; categories: {department} > {name}"
    ids = [f"S{number:0{width}d}" for number in range(1, num_items + 1)]
    return Items(ids, titles, texts)


def _category_name(category: int) -> tuple[str, str, str]:
    """Department, noun and unique name of a category."""
    departments = list(_DEPARTMENTS)
    department = departments[category % len(departments)]
    nouns = _DEPARTMENTS[department]
    turn, place = divmod(category // len(departments), len(nouns))
    noun = nouns[place]
    return department, noun, f"{noun} Section {turn + 1}" if turn else noun


def _made_up_words(rng: np.random.Generator, count: int) -> list[str]:
    def syllable() -> str:
        return "".join(str(rng.choice(part)) for part in (_ONSETS, _VOWELS, _CODAS))

    return [(syllable() + syllable()).capitalize() for _ in range(count)]
