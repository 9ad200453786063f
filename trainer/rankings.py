"""Rankings: what one person said about several replies to one prompt, taken apart into pairs.

A ranking of K replies is K·(K − 1) / 2 pairs, but says no more than the K − 1 choices between neighbours. So all its
pairs are one element of a batch, in which each reply is read once (Ouyang et al. 2022, section 3.5; Ziegler et al.
2019): in different batches they would be K − 1 epochs over the same replies, which overfits. And each of them weighs
(K − 1) / pairs.

The log holds pairs alone. Those of one person on one prompt that share replies belong together, however they came in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from feedback.sample import PairSample, SampleSet

Node = tuple[str, str, str]  # person, prompt, reply


@dataclass(frozen=True)
class Ranking:
    """Pairs that hang together. `name` is the smallest id of their votes."""

    name: int
    replies: int
    pairs: int

    @property
    def weight(self) -> float:
        """Of each pair. Pairs that close no circle are independent, and weigh 1."""
        return min(1.0, (self.replies - 1) / self.pairs)


def rankings(pairs: Sequence[PairSample]) -> dict[int, Ranking]:
    """The ranking of each pair, by its vote; of one pair, where it stands alone."""
    above: dict[Node, Node] = {}

    def top(node: Node) -> Node:
        above.setdefault(node, node)
        while above[node] != node:
            above[node] = above[above[node]]
            node = above[node]
        return node

    def sides(pair: PairSample) -> tuple[Node, Node]:
        person, prompt = pair.user_id, pair.prompt_digest
        return (person, prompt, pair.left.text), (person, prompt, pair.right.text)

    for pair in pairs:
        left, right = sides(pair)
        above[top(left)] = top(right)
    votes: dict[Node, list[int]] = defaultdict(list)
    replies: dict[Node, set[Node]] = defaultdict(set)
    for pair in pairs:
        root = top(sides(pair)[0])
        votes[root].append(pair.vote_id)
        replies[root].update(sides(pair))
    found = {root: Ranking(min(ids), len(replies[root]), len(ids)) for root, ids in votes.items()}
    return {vote: found[root] for root, ids in votes.items() for vote in ids}


def together(samples: SampleSet) -> SampleSet:
    """With every pair weighed as a part of its ranking, and every ranking on one side of the split: on that of its
    first pair. Where people are so few that votes are split one by one, its pairs would otherwise be learned here and
    asked about there."""
    of = rankings(samples.pairs)
    sides = {pair.vote_id: pair.split for pair in samples.pairs}
    pairs = [
        replace(pair, split=sides[of[pair.vote_id].name], weight=pair.weight * of[pair.vote_id].weight)
        for pair in samples.pairs
    ]
    return replace(samples, pairs=pairs)
