"""Bipartite soft matching and merging against a slow loop over tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitcompact.layers.merge import Groups, Match, match_keys, match_tokens, merge_tokens

Image = tuple[list[Tensor], list[list[int]]]


def slow_merge(image: Image, keys: Tensor, r: int, prefix: int) -> Image:
    """One step on the tokens of one image and the original tokens that each stands for."""
    x, groups = image
    a, b = list(range(prefix, len(x), 2)), list(range(prefix + 1, len(x), 2))
    best = []
    for i in a:
        cosines = [float(torch.cosine_similarity(keys[i], keys[j], dim=0)) for j in b]
        best.append((max(cosines), i, b[cosines.index(max(cosines))]))
    best.sort(key=lambda entry: -entry[0])
    total = {j: x[j] * len(groups[j]) for j in b}
    members = {j: list(groups[j]) for j in b}
    gone = set()
    for _, i, j in best[:r]:
        total[j] = total[j] + x[i] * len(groups[i])
        members[j] += groups[i]
        gone.add(i)
    front = [i for i in (*range(prefix), *a) if i not in gone]
    tokens = [x[i] for i in front] + [total[j] / len(members[j]) for j in b]
    return tokens, [groups[i] for i in front] + [members[j] for j in b]


@pytest.mark.parametrize(("tokens", "prefix", "schedule"), [(17, 1, (3, 4, 2)), (12, 0, (6, 1)), (22, 5, (8, 3, 2))])
def test_equals_the_slow_loop(tokens: int, prefix: int, schedule: tuple[int, ...]) -> None:
    x = torch.randn(3, tokens, 8, dtype=torch.float64)
    slow = [(list(image), [[i] for i in range(tokens)]) for image in x]
    groups = Groups.single(x)
    for r in schedule:
        keys = torch.randn(3, x.shape[1], 5, dtype=torch.float64)
        slow = [slow_merge(image, keys[i], r, prefix) for i, image in enumerate(slow)]
        x, groups = merge_tokens(x, groups, match_keys(keys, r, prefix))
    for image, (wanted, members) in enumerate(slow):
        torch.testing.assert_close(x[image], torch.stack(wanted))
        assert groups.size[image].tolist() == [len(m) for m in members]
        for position, originals in enumerate(members):
            assert sorted((groups.source[image] == position).nonzero().flatten().tolist()) == sorted(originals)


def test_no_token_is_lost_and_the_mean_stays() -> None:
    x = torch.randn(2, 31, 6, dtype=torch.float64)
    mean, groups = x.mean(dim=1), Groups.single(x)
    for r in (10, 5, 3, 0, 2):
        x, groups = merge_tokens(x, groups, match_keys(torch.randn(2, x.shape[1], 4), r, 1))
        assert groups.size.sum(dim=1).tolist() == [31, 31]
        torch.testing.assert_close(groups.expand(x).mean(dim=1), mean)
        assert torch.equal(groups.compress(groups.expand(x)), x)
    assert x.shape[1] == 31 - 20


@pytest.mark.parametrize("match", [match_keys, lambda x, r, prefix: match_tokens(x, None, r, prefix)])
def test_prefix_tokens_are_never_merged(match: Callable[[Tensor, int, int], Match]) -> None:
    x = torch.randn(2, 9, 4)
    x[:, 1] = x[:, 0]  # the most similar pair there is
    merged, groups = merge_tokens(x, Groups.single(x), match(x, 3, 2))
    assert torch.equal(merged[:, :2], x[:, :2])
    assert groups.size[:, :2].tolist() == [[1, 1]] * 2


def test_half_precision_counts_exactly() -> None:
    x = torch.ones(1, 600, 4, dtype=torch.bfloat16)
    groups = Groups.single(x)
    while x.shape[1] > 1:
        x, groups = merge_tokens(x, groups, match_tokens(x, groups.size, x.shape[1] // 2, 0))
    assert x.dtype == torch.bfloat16
    assert groups.size.item() == 600
    assert x.float().tolist() == [[[1.0] * 4]]


def moved(units: Tensor, sizes: list[int]) -> float:
    """Squared distance of unit vectors from their mean, each counted as often as it stands for tokens."""
    counts = torch.tensor(sizes, dtype=units.dtype)
    mean = (units * counts[:, None]).sum(0) / counts.sum()
    return float((counts * (units - mean).square().sum(1)).sum())


@pytest.mark.parametrize("grown", [False, True])
def test_the_pairs_that_move_least_are_merged(grown: bool) -> None:
    """As Ward's clustering counts it, against a slow loop; a large group is dearer than a single token as far away."""
    x = torch.randn(2, 13, 6, dtype=torch.float64)
    size = torch.randint(1, 9, (2, 13)) if grown else torch.ones(2, 13, dtype=torch.int64)
    match = match_tokens(x, size.float() if grown else None, 3, 1)
    for image in range(2):
        units = torch.nn.functional.normalize(x[image], dim=-1)
        a, b = range(1, 13, 2), range(2, 13, 2)
        costs = [[moved(units[[i, j]], [int(size[image, i]), int(size[image, j])]) for j in b] for i in a]
        order = sorted(range(len(a)), key=lambda i: min(costs[i]))[:3]
        assert match.merged[image].tolist() == order
        assert match.target[image].tolist() == [costs[i].index(min(costs[i])) for i in order]


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_tells_near_tokens_apart(autocast: bool) -> None:
    """Tokens share a large vector, as in trained models; what is left differs by a factor of ten."""
    shared, own = 30 * torch.randn(16), torch.randn(4, 12, 16)
    own[:, 1::2] = own[:, ::2] + torch.logspace(-1, 1, 6)[:, None] * torch.randn(4, 6, 16)
    x = shared + own
    wanted = match_tokens(x.double(), None, 3, 0).merged
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = match_tokens(x if autocast else x.bfloat16(), None, 3, 0).merged
    assert (found.sort().values == wanted.sort().values).float().mean() > 0.9
