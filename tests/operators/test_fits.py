"""Closed-form solutions against direct ones on the rows themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vitcompact.calibration import least_squares as statistics
from vitcompact.calibration.held_out import Parts
from vitcompact.calibration.least_squares import LeastSquares, Moments, Split
from vitcompact.errors import DataError
from vitcompact.operators import attention_fit, ffn_fit
from vitcompact.operators.factorize import rank_for
from vitcompact.operators.factors import plain_svd, spectrum


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_least_squares_equals_the_direct_solution_and_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 7)
    phi, target = rows(0, 60, 5), rows(1, 60, 3) + 2
    whole = LeastSquares()
    whole.add(phi[:20].reshape(4, 5, 5), target[:20].reshape(4, 5, 3))
    whole.add(phi[20:], target[20:])
    assert whole.rows == 60
    full = torch.cat((phi, torch.ones(60, 1, dtype=phi.dtype)), dim=1)
    direct = torch.linalg.lstsq(full, target).solution
    solution = whole.solve(0.0)
    torch.testing.assert_close(solution, direct)
    residual = (full @ direct - target).square().sum() / target.square().sum()
    assert whole.error(solution) == pytest.approx(float(residual))
    columns = torch.tensor([3, 0])
    part = torch.linalg.lstsq(full[:, [3, 0, 5]], target[:, 1:]).solution
    torch.testing.assert_close(whole.select(columns).outputs(1, 3).solve(0.0), part)


def test_weighted_rows_count_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 7)
    phi, target, times = rows(0, 30, 3), rows(1, 30, 2), torch.arange(30) % 3
    weighted, repeated = LeastSquares(), LeastSquares()
    weighted.add(phi.reshape(5, 6, 3), target.reshape(5, 6, 2), times.reshape(5, 6))
    repeated.add(phi.repeat_interleave(times, 0), target.repeat_interleave(times, 0))
    torch.testing.assert_close(weighted.solve(0.0), repeated.solve(0.0))


@pytest.mark.parametrize("columns", [1, 4, 5, 11])
def test_gram_matrices_are_the_sums_of_products_and_symmetric(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BLOCK", 4)
    some = rows(0, 30, columns) + 1
    moments, problem = Moments(), LeastSquares()
    for part in (some[:11], some[11:]):
        moments.add(part)
        problem.add(part, part[:, :0])
    centred = some - some.mean(0)
    torch.testing.assert_close(moments.mean, some.mean(0))
    torch.testing.assert_close(moments.covariance, centred.T @ centred / 30)
    torch.testing.assert_close(problem.centred(), (moments.covariance, moments.mean))
    assert torch.equal(problem.gram, problem.gram.T)
    assert torch.equal(moments.gram, moments.gram.T)


def test_covariances_need_no_targets_and_nothing_is_solved_then() -> None:
    problem = LeastSquares()
    problem.add(rows(0, 30, 3), rows(0, 30, 0))
    assert problem.cross.shape == (4, 0)
    assert problem.map(rows(1, 3, 2)).gram.shape == (3, 3)


def test_ridge_draws_to_the_prior() -> None:
    phi, prior = rows(0, 40, 4), rows(2, 5, 2)
    problem = LeastSquares()
    problem.add(phi, rows(1, 40, 2))
    torch.testing.assert_close(problem.solve(1e9, prior)[:-1], prior[:-1], rtol=1e-4, atol=1e-4)
    assert problem.solve(1e9).abs()[:-1].max() < 1e-6


def test_dependent_features_are_solved() -> None:
    phi = rows(0, 40, 3)
    problem = LeastSquares()
    problem.add(torch.cat((phi, phi), dim=1), phi @ rows(1, 3, 2))
    assert problem.error(problem.solve(0.0)) < 1e-6


def test_nan_names_the_layer() -> None:
    bad = rows(0, 4, 3)
    bad[2, 1] = float("nan")
    with pytest.raises(DataError, match=r"blocks\.3\.attn.*not finite"):
        LeastSquares("blocks.3.attn").add(bad, rows(1, 4, 2))
    with pytest.raises(DataError, match=r"blocks\.3\.mlp"):
        Moments("blocks.3.mlp").add(bad)


def test_ffn_truncation_is_optimal_for_the_data() -> None:
    """No rank-4 map of the hidden units comes closer to the outputs than the one found (Eckart-Young on the data)."""
    hidden = rows(0, 400, 20) @ torch.diag(torch.logspace(-2, 1, 20, dtype=torch.float64)) + 1
    weight, bias = rows(1, 8, 20), rows(2, 8)
    outputs = hidden @ weight.T
    split = Split.empty("ffn")
    target = outputs + bias
    split.add(outputs[:, None], torch.cat((target, target), -1)[:, None], Parts((350, 50), (False, True)))
    fitted = ffn_fit.fit(split, weight, bias, 4)
    factors = fitted.factors

    def error(found: Tensor) -> float:
        return float((found - target)[:350].square().sum())

    got = error((hidden @ factors.reduce.T) @ factors.expand.T + factors.bias)
    centred = target[:350] - target[:350].mean(0)
    best = float(torch.linalg.svdvals(centred)[4:].square().sum())
    assert got <= best * 1.02
    naive = plain_svd(weight, bias, 4)
    assert got < 0.7 * error((hidden @ naive.reduce.T) @ naive.expand.T + naive.bias)


def test_directions_are_those_whose_errors_matter() -> None:
    """No map of rank 3 has a smaller weighted error on the rows (Eckart-Young); weights all alike change nothing."""
    hidden, weight, bias = rows(0, 400, 20), rows(1, 8, 20), rows(2, 8)
    target = hidden @ weight.T + bias
    split = Split.empty("ffn")
    split.add((target - bias)[:, None], torch.cat((target, target), -1)[:, None], Parts((350, 50), (False, True)))
    half = rows(3, 8, 8)
    values, vectors = torch.linalg.eigh(half @ half.T)
    root = (vectors * values.sqrt()) @ vectors.T

    def given(found: ffn_fit.FfnFit) -> Tensor:
        return (hidden @ found.factors.reduce.T) @ found.factors.expand.T + found.factors.bias

    def error(found: ffn_fit.FfnFit) -> float:
        return float(((given(found) - target)[:350] @ root).square().sum())

    plain, weighted = ffn_fit.fit(split, weight, bias, 3), ffn_fit.fit(split, weight, bias, 3, root)
    centred = (target[:350] - target[:350].mean(0)) @ root
    assert error(weighted) <= 1.02 * float(torch.linalg.svdvals(centred)[3:].square().sum())
    assert error(weighted) < 0.9 * error(plain)
    alike = ffn_fit.fit(split, weight, bias, 3, 2 * torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(given(alike), given(plain))


def test_the_naive_factors_are_the_nearest_of_their_rank_and_take_no_square_matrix() -> None:
    """Eckart-Young; and a tall matrix costs no square one of its height."""
    weight, bias = rows(0, 40, 6), rows(1, 40)
    with _Made() as made:
        factors = plain_svd(weight, bias, 4)
    gap = float((factors.expand @ factors.reduce - weight).square().sum())
    assert gap == pytest.approx(float(torch.linalg.svdvals(weight)[4:].square().sum()))
    assert torch.equal(factors.bias, bias)
    assert max(made.sizes) <= weight.numel()


def test_shares_of_the_energy_are_those_of_the_directions_whatever_its_size() -> None:
    basis = torch.linalg.qr(rows(0, 4, 4)).Q
    energy = torch.tensor([1e-6, 6e-6, 0.0, 3e-6], dtype=torch.float64)
    found = spectrum(basis @ torch.diag(energy) @ basis.T)
    torch.testing.assert_close(found, torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=torch.float64))
    assert spectrum(torch.zeros(3, 3, dtype=torch.float64)).tolist() == [0, 0, 0]


class _Made(TorchDispatchMode):
    """Numbers in each tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.sizes += [part.numel() for part in (out if isinstance(out, tuple) else (out,))]
        return out


def test_ffn_refit_takes_back_drift() -> None:
    hidden, weight, bias = rows(0, 600, 20), rows(1, 8, 20), rows(2, 8)
    outputs = hidden @ weight.T
    target = outputs + bias
    drifted = target + outputs @ rows(3, 8, 8) * 0.3
    split = Split.empty("ffn")
    split.add(outputs[:, None], torch.cat((target, drifted), -1)[:, None], Parts((500, 100), (False, True)))
    fitted = ffn_fit.fit(split, weight, bias, 6)
    assert fitted.drift_share > 0.5
    assert fitted.ridge is not None


def test_identity_and_mean_paths_are_found() -> None:
    """Targets made with known coefficients are reproduced."""
    features = [rows(seed, 900, 6) for seed in (0, 1, 2)]
    beta, gamma, proj = rows(3, 6), rows(4, 6), rows(5, 6, 4)
    target = (features[0] + beta * features[1] + gamma * features[2]) @ proj + 1.5
    split = Split.empty("attn")
    split.add(
        torch.cat(features, -1)[:, None], torch.cat((target, target), -1)[:, None], Parts((800, 100), (False, True))
    )
    fitted = attention_fit.fit(split, 6, ("identity", "mean"))
    first = torch.arange(6)
    without = attention_fit.fit(Split(split.fit.select(first), split.held_out.select(first)), 6, ())
    assert fitted.error < 0.02 < without.error
    torch.testing.assert_close(fitted.paths["identity"], beta, rtol=0.2, atol=0.1)


@pytest.mark.parametrize(
    ("ratio", "hidden", "outputs", "wanted"),
    [(0.5, 1536, 384, 192), (0.5, 192, 64, 32), (0.01, 768, 192, 8), (0.9, 384, 384, None), (0.5, 70, 44, 24)],
)
def test_rank(ratio: float, hidden: int, outputs: int, wanted: int | None) -> None:
    assert rank_for(ratio, hidden, outputs) == wanted


@pytest.mark.parametrize(
    ("multiple", "wanted"), [(8, (192, 24, 8)), (16, (192, 16, 16)), (32, (192, None, 32)), (128, (256, None, 128))]
)
def test_rank_in_other_multiples(multiple: int, wanted: tuple[int | None, ...]) -> None:
    shares = ((0.5, 1536, 384), (0.5, 70, 44), (0.01, 768, 192))
    assert tuple(rank_for(*each, multiple) for each in shares) == wanted
