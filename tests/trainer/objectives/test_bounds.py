"""Bounds against slow loops in float64, known values, extreme scores and cases of known information."""

import math

import pytest
import torch

from trainer.objectives import bounds
from trainer.objectives.bounds import RunningMean, random_guess, reduce_in_pieces, reduce_scores


def loss_of(bound: str):
    return lambda scores: bounds.LOSSES[bound](reduce_scores(scores))


LOSSES = {bound: loss_of(bound) for bound in bounds.LOSSES}
jsd_loss, infonce_loss, dv_loss, nwj_loss = LOSSES.values()


def information(scores):
    return bounds.information(reduce_scores(scores))


# ---- the same, written as slow loops ----------------------------------------------------------------


def softplus(t: float) -> float:
    return max(t, 0.0) + math.log1p(math.exp(-abs(t)))


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def slow_jsd(scores) -> float:
    m, _, locations = scores.shape
    joint, product = [], []
    for i in range(m):
        for j in range(m):
            for at in range(locations):
                t = scores[i, j, at].item()
                if i == j:
                    joint.append(softplus(-t))
                else:
                    product.append(softplus(t))
    return math.fsum(product) / len(product) + math.fsum(joint) / len(joint) - 2 * math.log(2)


def slow_infonce(scores) -> float:
    m, _, locations = scores.shape
    total = []
    for i in range(m):
        others = [scores[i, j, at].item() for j in range(m) if j != i for at in range(locations)]
        for at in range(locations):
            own = scores[i, i, at].item()
            total.append(log_sum_exp([own, *others]) - own)
    return math.fsum(total) / len(total)


def parted(scores) -> tuple[list[float], list[float]]:
    """The scores of the joint distribution and those of the product of the marginals."""
    m, _, locations = scores.shape
    joint = [scores[i, i, at].item() for i in range(m) for at in range(locations)]
    product = [
        scores[i, j, at].item() for i in range(m) for j in range(m) if i != j for at in range(locations)
    ]
    return joint, product


def slow_dv(scores) -> float:
    joint, product = parted(scores)
    return log_sum_exp(product) - math.log(len(product)) - math.fsum(joint) / len(joint)


def slow_nwj(scores) -> float:
    joint, product = parted(scores)
    return math.fsum(math.exp(t - 1) for t in product) / len(product) - math.fsum(joint) / len(joint)


SLOW = {"jsd": slow_jsd, "infonce": slow_infonce, "dv": slow_dv, "nwj": slow_nwj}


def slow_information(scores) -> float:
    m, _, locations = scores.shape
    total = []
    for i in range(m):
        images = [
            log_sum_exp([scores[i, j, at].item() for at in range(locations)]) - math.log(locations)
            for j in range(m)
            if j != i
        ]
        for at in range(locations):
            own = scores[i, i, at].item()
            total.append(math.log(m) + own - log_sum_exp([own, *images]))
    return math.fsum(total) / len(total)


def slow_gradient(bound: str, scores):
    """d loss / d scores, written out by hand."""
    m, _, locations = scores.shape
    gradient = torch.zeros_like(scores)
    _, product = parted(scores)
    whole_of_product = log_sum_exp(product)
    for i in range(m):
        for at in range(locations):
            own = scores[i, i, at].item()
            if bound in ("dv", "nwj"):
                gradient[i, i, at] -= 1 / (m * locations)
                for j in set(range(m)) - {i}:
                    t = scores[i, j, at].item()
                    share = (
                        math.exp(t - 1) / len(product) if bound == "nwj" else math.exp(t - whole_of_product)
                    )
                    gradient[i, j, at] += share
                continue
            if bound == "jsd":
                gradient[i, i, at] -= 1 / (1 + math.exp(own)) / (m * locations)
                for j in set(range(m)) - {i}:
                    share = 1 / (1 + math.exp(-scores[i, j, at].item()))
                    gradient[i, j, at] += share / (m * (m - 1) * locations)
                continue
            others = [(j, other) for j in range(m) if j != i for other in range(locations)]
            whole = log_sum_exp([own, *(scores[i, j, other].item() for j, other in others)])
            gradient[i, i, at] += (math.exp(own - whole) - 1) / (m * locations)
            for j, other in others:
                share = math.exp(scores[i, j, other].item() - whole)
                gradient[i, j, other] += share / (m * locations)
    return gradient


def random_scores(m: int, locations: int, scale: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(m, m, locations, generator=generator, dtype=torch.float64)


SHAPES = [(2, 1), (3, 4), (7, 1), (6, 9)]


@pytest.mark.parametrize("scale", [0.1, 3.0, 25.0])
@pytest.mark.parametrize(("m", "locations"), SHAPES)
def test_values_equal_the_slow_loops(m, locations, scale):
    scores = random_scores(m, locations, scale)
    for bound, slow in SLOW.items():
        assert LOSSES[bound](scores).item() == pytest.approx(slow(scores), rel=1e-12, abs=1e-12)
    assert information(scores).item() == pytest.approx(slow_information(scores), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("bound", LOSSES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 25.0])
@pytest.mark.parametrize(("m", "locations"), SHAPES)
def test_gradients_equal_the_slow_loops(bound, m, locations, scale):
    scores = random_scores(m, locations, scale).requires_grad_()
    LOSSES[bound](scores).backward()
    assert torch.allclose(scores.grad, slow_gradient(bound, scores.detach()), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bound", LOSSES)
def test_gradients_equal_finite_differences(bound):
    scores = random_scores(4, 3, 2.0).requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[bound], scores, eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("bound", LOSSES)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_pairs_in_pieces_are_the_pairs_of_the_whole(bound, rows, monkeypatch):
    """Rows in pieces, of which only some hold the own images of the columns: as with several ranks."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(6, 3, generator=generator, dtype=torch.float64).requires_grad_()
    local = torch.randn(6, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()

    def score(local, y):
        return torch.einsum("iu,jlu->ijl", y, local)

    whole = LOSSES[bound](score(local, y))
    wanted = torch.autograd.grad(whole, (local, y))
    monkeypatch.setattr(bounds, "PIECE", rows * 6 * 4)
    loss = bounds.LOSSES[bound](reduce_in_pieces(score, local, y, 1, 0, bound))
    assert loss.item() == pytest.approx(whole.item(), rel=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, (local, y)), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    part = reduce_in_pieces(score, local[2:4], y, 1, -2, bound)  # the columns are the images of rows 2 and 3
    assert torch.equal(part.positives, torch.stack([score(local, y)[i, i] for i in (2, 3)]))
    for row in range(6):
        others = [j for j in (2, 3) if j != row]
        assert part.log_negatives[row].item() == pytest.approx(
            torch.logsumexp(score(local, y)[row, others].flatten(), 0).item()
        )


# ---- extreme scores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound", ["jsd", "infonce", "dv"])  # nwj is an exponential: `tanh` bounds its scores
def test_extreme_scores_stay_finite(bound, dtype):
    signs = torch.where(random_scores(6, 4, 1.0) > 0, 2000.0, -2000.0)
    for scores in (signs, signs.abs(), -signs.abs()):
        scores = scores.to(dtype).requires_grad_()
        loss = LOSSES[bound](scores)
        loss.backward()
        assert loss.isfinite()
        assert scores.grad.isfinite().all()
        assert information(scores).isfinite()


@pytest.mark.parametrize("bound", ["jsd", "infonce", "dv"])
def test_scores_that_are_wrong_by_thousands_still_teach(bound):
    wrong = torch.full((4, 4, 2), 2000.0)
    wrong[torch.arange(4), torch.arange(4)] = -2000.0
    wrong.requires_grad_()
    loss = LOSSES[bound](wrong)
    loss.backward()
    assert loss.item() == pytest.approx(
        {"jsd": 4000 - 2 * math.log(2), "infonce": 4000 + math.log(6), "dv": 4000}[bound]
    )
    assert wrong.grad[0, 0].sum().item() == pytest.approx(-1 / 4)  # a whole unit of pull, shared by 4 images


# ---- known values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", LOSSES)
@pytest.mark.parametrize(("m", "locations"), SHAPES)
def test_equal_scores_are_a_random_guess(bound, m, locations):
    scores = torch.zeros(m, m, locations, dtype=torch.float64)
    best = scores + (bound == "nwj")  # of all constants the best is 1 there
    assert LOSSES[bound](best).item() == pytest.approx(random_guess(bound, m, locations), abs=1e-12)
    assert information(scores).item() == pytest.approx(0, abs=1e-12)  # independence has no information
    if bound in ("infonce", "dv"):  # only differences count
        assert LOSSES[bound](scores + 5).item() == pytest.approx(random_guess(bound, m, locations), abs=1e-12)


def test_a_perfect_critic_reaches_the_floors_and_the_ceiling():
    scores = torch.full((5, 5, 3), -100.0, dtype=torch.float64)
    scores[torch.arange(5), torch.arange(5)] = 100.0
    assert jsd_loss(scores).item() == pytest.approx(-2 * math.log(2), abs=1e-12)
    assert infonce_loss(scores).item() == pytest.approx(0, abs=1e-12)
    assert information(scores).item() == pytest.approx(math.log(5), abs=1e-12)


@pytest.mark.parametrize("bound", ["jsd", "infonce"])
def test_losses_never_fall_below_their_floors(bound):
    floor = {"jsd": -2 * math.log(2), "infonce": 0.0}[bound]
    for seed in range(50):
        scores = random_scores(5, 3, 10.0 ** (seed % 4), seed)
        assert LOSSES[bound](scores).item() >= floor
        assert information(scores).item() <= math.log(5)


# ---- cases of known information -----------------------------------------------------------------------


def gaussian_log_ratio(x, y, rho: float):
    """log p(x, y) / (p(x) p(y)) of every pair for components of correlation rho: [m, m] of [m, d]."""
    var = 1 - rho**2
    dots, squares = y @ x.T, (x**2).sum(1)[None, :] + (y**2).sum(1)[:, None]
    return rho * dots / var - rho**2 * squares / (2 * var) - x.shape[1] / 2 * math.log(var)


TABLE = {  # nats -> DV, NWJ with T = log r, InfoNCE, JSD loss without its shift: means of 2000 batches
    2: (2.00, 1.62, 1.81, 0.69),
    4: (4.05, 3.63, 3.07, 0.33),
    6: (6.23, 5.64, 3.74, 0.15),
    8: (8.60, 7.67, 4.02, 0.07),
    10: (11.35, 9.71, 4.12, 0.03),
}


@pytest.mark.parametrize("nats", TABLE)
def test_gaussians_with_the_true_log_ratio_give_the_known_table(nats):
    """20 dimensions, 64 samples, the optimal critic."""
    rho, m, batches = math.sqrt(1 - math.exp(-nats / 10)), 64, 400
    generator = torch.Generator().manual_seed(nats)
    estimates = torch.empty(batches, 4, dtype=torch.float64)
    for number in range(batches):
        x, noise = torch.randn(2, m, 20, generator=generator, dtype=torch.float64)
        scores = gaussian_log_ratio(x, rho * x + math.sqrt(1 - rho**2) * noise, rho)[:, :, None]
        nce = math.log(m) - infonce_loss(scores)
        assert nce.item() == pytest.approx(information(scores).item(), abs=1e-12)  # one location: the same
        jsd = jsd_loss(scores) + 2 * math.log(2)
        estimates[number] = torch.stack([-dv_loss(scores), -nwj_loss(scores), nce, jsd])
    error = estimates.std(0) / math.sqrt(batches)
    for mean, wanted, spread in zip(estimates.mean(0), TABLE[nats], error, strict=True):
        # The table is rounded to 0.005 and is itself a mean of 2000 batches.
        assert abs(mean - wanted) <= 3 * spread * math.sqrt(1 + batches / 2000) + 0.005
    assert estimates[:, 2].mean() <= nats + 3 * error[2]


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("locations", [1, 4, 16])
def test_information_never_claims_more_than_there_is_where_locations_depend(locations, copies):
    """y is one of 32 symbols; a location shows it, or with probability 0.2 another one.

    So a location holds log 32 - H(noise) of information. All locations of an image show the same
    symbol, and with `copies` even the same mistakes: they depend on each other as much as can be.
    """
    symbols, m, keep, batches = 32, 64, 0.8, 300
    other = (1 - keep) / (symbols - 1)
    truth = math.log(symbols) + keep * math.log(keep) + (1 - keep) * math.log(other)
    log_ratio = torch.full((symbols, symbols), math.log(other * symbols), dtype=torch.float64)
    log_ratio.fill_diagonal_(math.log(keep * symbols))
    generator = torch.Generator().manual_seed(locations)
    estimates = []
    for _ in range(batches):
        y = torch.randint(symbols, (m, 1), generator=generator)
        noises = (m, 1 if copies else locations)
        wrong = (y + torch.randint(1, symbols, noises, generator=generator)) % symbols
        seen = torch.where(torch.rand(noises, generator=generator) < keep, y, wrong).expand(m, locations)
        estimates.append(information(log_ratio[y[:, :, None], seen[None]]))
    estimates = torch.stack(estimates)
    assert estimates.mean() <= truth + 3 * estimates.std() / math.sqrt(batches)
    assert estimates.mean() > 0.8 * truth  # a bound, yet not an empty one
    assert estimates.max() <= math.log(m)


def test_the_published_sum_over_locations_would_claim_too_much():
    """Why `information` is not the number of candidates' log minus the loss: locations depend."""
    m, locations, symbols, batches = 64, 16, 64, 100
    log_ratio = torch.full((symbols, symbols), -50.0, dtype=torch.float64)
    log_ratio.fill_diagonal_(math.log(symbols))  # y tells the symbol exactly
    generator = torch.Generator().manual_seed(0)
    claimed, careful = [], []
    for _ in range(batches):
        y = torch.randint(symbols, (m,), generator=generator)
        scores = log_ratio[y][:, y][:, :, None].expand(m, m, locations)
        claimed.append(random_guess("infonce", m, locations) - infonce_loss(scores).item())
        careful.append(information(scores).item())
    truth = math.log(symbols)
    assert sum(claimed) / batches > truth + 0.3
    assert 0.8 * truth < sum(careful) / batches < truth


# ---- MINE's correction of the gradient ----------------------------------------------------------------


def test_the_corrected_gradient_divides_by_the_running_mean_and_the_value_stays():
    scores = random_scores(4, 3, 1.0).requires_grad_()
    denominator = torch.tensor(0.7, dtype=torch.float64)
    loss = bounds.dv_loss(reduce_scores(scores), denominator)
    assert loss.item() == pytest.approx(slow_dv(scores), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, scores)
    for i in range(4):
        for j in range(4):
            for at in range(3):
                t, count = scores[i, j, at].item(), 4 * 3 * 3
                wanted = -1 / 12 if i == j else math.exp(t) / count / math.exp(0.7)
                assert gradient[i, j, at].item() == pytest.approx(wanted, rel=1e-10)


def test_the_running_mean_is_that_of_the_plain_numbers_and_survives_huge_ones():
    mean, plain = RunningMean().double(), None
    for step in range(5):
        groups = random_scores(1, 3, 2.0, step).flatten()
        for own in groups:
            used = mean(own).exp().item()
            before = own.exp().item() if plain is None else 0.9 * plain + 0.1 * own.exp().item()
            assert used == pytest.approx(before, rel=1e-12)
        mean.update()
        batch = groups.exp().mean().item()
        plain = batch if plain is None else 0.9 * plain + 0.1 * batch
        assert mean.log_mean.exp().item() == pytest.approx(plain, rel=1e-12)
    huge = torch.tensor(5000.0, dtype=torch.float64)
    mean(huge)
    mean.update()
    assert mean.log_mean.item() == pytest.approx(5000 + math.log(0.1))


# ---- staying finite -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("bound", LOSSES)
def test_two_thousand_steps_stay_finite_and_reach_known_information(bound):
    """A learned critic on correlated Gaussians of 2 nats, with the score that the bound has by default."""
    rho, m = math.sqrt(1 - math.exp(-2 / 2.5)), 64  # five dimensions
    torch.manual_seed(0)
    size, units = (5, 32), 32
    sides = [
        torch.nn.Sequential(torch.nn.Linear(size[0], 64), torch.nn.ReLU(), torch.nn.Linear(64, units))
        for _ in range(2)
    ]
    running = RunningMean()
    optimizer = torch.optim.Adam([p for side in sides for p in side.parameters()], 2e-3)
    estimates = []
    for step in range(2000):
        x, noise = torch.randn(2, m, size[0])
        y = rho * x + math.sqrt(1 - rho**2) * noise
        scaled = sides[1](y) @ sides[0](x).T / units**0.5
        scores = 20 * torch.tanh(scaled / 20) if bound in ("dv", "nwj") else scaled
        pairs = reduce_scores(scores[:, :, None])
        extra = (running(bounds.log_mean(pairs)),) if bound == "dv" else ()
        loss = bounds.LOSSES[bound](pairs, *extra)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running.update()
        assert loss.isfinite()
        if step >= 1500:
            estimates.append(bounds.information(pairs).item())
    assert 1.2 < sum(estimates) / len(estimates) < 2.0  # 1.81 would be the best critic's with 64 samples
