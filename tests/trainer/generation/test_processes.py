"""The three processes and their solvers, against loops in float64 and a denoiser in closed form."""

import itertools
import math

import pytest
import torch

from tests.trainer.generation.mixture import CENTRES, SHARES, SPREAD, best, even_noise, samples
from trainer.generation.processes import PROCESSES, Ddim, Edm, Flow, normal_quantile
from trainer.generation.samplers import ancestral, euler, guided, heun, inverted

EVERY = [pytest.param(process(), id=name) for name, process in PROCESSES.items()]
CONTINUOUS = EVERY[1:]
PREDICTIONS = ["eps", "x", "v"]


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def middle(process, n: int) -> torch.Tensor:
    """n times of training, float64."""
    return process.times(torch.linspace(0.02, 0.98, n, dtype=torch.float64))


# ---- levels and times ------------------------------------------------------------------------------


def test_levels_of_ddim_are_a_product_made_step_by_step():
    product = 1.0
    assert [level.item() for level in Ddim().levels(torch.tensor([-1]))] == [1, 0]
    for t in range(1000):
        product *= 1 - (1e-4 + (2e-2 - 1e-4) * t / 999)
        signal, spread = Ddim().levels(torch.tensor([t]))
        assert signal.item() == pytest.approx(math.sqrt(product), abs=1e-12)
        assert spread.item() == pytest.approx(math.sqrt(1 - product), abs=1e-12)


def test_times_of_training_have_the_published_laws():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert torch.equal(Ddim().times(u).long().bincount(), torch.full((1000,), 100))
    logit = torch.logit(Flow().times(u))
    assert (logit.mean().item(), logit.std().item()) == pytest.approx((0, 1), abs=1e-3)
    log_sigma = Edm().times(u).log()
    assert (log_sigma.mean().item(), log_sigma.std().item()) == pytest.approx((-1.2, 1.2), abs=1e-3)


@pytest.mark.parametrize("process", EVERY)
def test_antithetic_times_mirror_each_other_and_ends_are_finite(process):
    u = torch.tensor([0.0, 1e-12, 0.3, 0.5, 1 - 2**-24], dtype=torch.float64)
    times = process.times(u)
    assert torch.isfinite(times).all()
    assert all(torch.isfinite(part).all() for part in process.levels(times))
    mirrored = normal_quantile(1 - torch.tensor([0.3], dtype=torch.float64))
    assert mirrored.item() == pytest.approx(-normal_quantile(torch.tensor([0.3])).item(), abs=1e-7)


def test_grids_go_from_noise_to_the_clean_sample_as_published():
    assert Ddim().grid(10).tolist() == [
        999,
        900,
        800,
        700,
        600,
        500,
        400,
        300,
        200,
        100,
        0,
        -1,
    ]  # D2C's, stride 100
    assert Ddim().grid(1000).tolist() == list(range(999, -2, -1))
    assert Flow().grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    sigmas = Edm().grid(18)
    slow = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert sigmas.tolist() == pytest.approx([*slow, 0], rel=1e-12)


# ---- predictions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("process", EVERY)
@pytest.mark.parametrize("predict", PREDICTIONS)
def test_x_and_eps_follow_exactly_from_every_prediction(process, predict):
    t, x, eps = middle(process, 50), samples(50, 1), noise(50)
    noisy = process.noisy(x, eps, t)
    back = process.parts(predict, process.target(predict, x, eps, t), noisy, t)
    assert torch.allclose(back[0], x, atol=1e-9)
    assert torch.allclose(back[1], eps, atol=1e-9)


@pytest.mark.parametrize("process", EVERY)
@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("other", PREDICTIONS)
def test_predictions_convert_into_each_other_and_back(process, predict, other):
    """Of any output, also one that no sample and noise have: a network's errors convert too."""
    t, noisy, output = middle(process, 50), noise(50, 2), noise(50, 3)
    converted = process.target(other, *process.parts(predict, output, noisy, t), t)
    back = process.target(predict, *process.parts(other, converted, noisy, t), t)
    assert torch.allclose(back, output, rtol=1e-9, atol=1e-9)


def test_v_is_what_each_paper_calls_so():
    x, eps = samples(50, 1), noise(50)
    for t in middle(Ddim(), 50):
        signal, spread = Ddim().levels(t[None])
        assert torch.allclose(Ddim().target("v", x, eps, t.expand(50)), signal * eps - spread * x)
    assert torch.equal(Flow().target("v", x, eps, middle(Flow(), 50)), eps - x)


def test_v_of_edm_is_its_preconditioned_network_and_its_weighted_loss():
    """D = c_skip x_t + c_out F, weighted by lambda: arXiv 2206.00364, table 1, sigma_data = 1."""
    process, x, eps, predicted = Edm(), samples(50, 1), noise(50), noise(50, 3)
    sigma = middle(process, 50)
    noisy = process.noisy(x, eps, sigma)
    for i in range(50):
        s = sigma[i].item()
        c_skip, c_out = 1 / (s**2 + 1), s / math.sqrt(s**2 + 1)
        d = c_skip * noisy[i] - c_out * predicted[i]  # F is minus the output
        clean, _ = process.parts("v", predicted[i : i + 1], noisy[i : i + 1], sigma[i : i + 1])
        assert torch.allclose(clean[0], d, atol=1e-9)
        published = (s**2 + 1) / s**2 * (d - x[i]).square().sum()
        ours = (predicted[i] - process.target("v", x, eps, sigma)[i]).square().sum()
        assert ours.item() == pytest.approx(published.item(), rel=1e-8)


# ---- solvers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_steps_of_ddim_equal_the_papers_formula(eta):
    process = Ddim()
    grid = process.grid(20)
    denoiser = best(process, "eps", grid)
    fresh = {step: noise(100, 10 + step) for step in range(len(grid))}
    x = noise(100)
    for step, (now, then) in enumerate(zip(grid[:-1].long().tolist(), grid[1:].long().tolist(), strict=True)):
        a, b = process.signals[now + 1], process.signals[then + 1]
        eps = denoiser(x, torch.full((100,), float(now), dtype=torch.float64))
        clean = (x - (1 - a).sqrt() * eps) / a.sqrt()
        added = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
        x = b.sqrt() * clean + (1 - b - added**2).clamp(min=0).sqrt() * eps + added * fresh[step]
    ours = ancestral(process, "eps", denoiser, noise(100), grid, eta, fresh.__getitem__)
    assert torch.allclose(ours, x, atol=1e-9)
    if eta == 0:
        assert torch.allclose(euler(process, "eps", denoiser, noise(100), grid), x, atol=1e-9)


def test_eta_1_adds_the_variance_of_ddpms_posterior():
    """beta_t (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t): arXiv 2006.11239, equation 7."""
    process, now = Ddim(), 500
    grid = torch.tensor([now, now - 1], dtype=torch.float64)
    still = ancestral(process, "eps", lambda x, t: 0 * x, noise(1), grid, 1.0, lambda _: 0 * noise(1))
    moved = ancestral(process, "eps", lambda x, t: 0 * x, noise(1), grid, 1.0, lambda _: 0 * noise(1) + 1)
    a, b = process.signals[now + 1], process.signals[now]
    beta = 1 - a / b
    assert (moved - still)[0, 0].item() ** 2 == pytest.approx((beta * (1 - b) / (1 - a)).item(), rel=1e-9)


def test_eta_0_draws_no_noise_and_eta_1_does():
    process = Ddim()
    grid = process.grid(20)
    denoiser = best(process, "eps", grid)

    def drawn(eta, seed):
        return ancestral(
            process, "eps", denoiser, noise(100), grid, eta, lambda step: noise(100, seed + step)
        )

    assert torch.equal(drawn(0.0, 100), drawn(0.0, 500))
    assert not torch.allclose(drawn(1.0, 100), drawn(1.0, 500), atol=0.1)


def clean_of_flow(denoiser, x, t):
    """The x of a v: x_t = (1 - t) x + t eps and v = eps - x."""
    return x - t * denoiser(x, torch.full((len(x),), 1000 * t, dtype=torch.float64))


def clean_of_edm(denoiser, x, sigma):
    """D of arXiv 2206.00364, equation 7 and table 1; its F is minus v, its noise embedding log(sigma) / 4."""
    spread = math.sqrt(sigma**2 + 1)
    embedded = torch.full((len(x),), 1000 * math.log(max(sigma, 0.002)) / 4, dtype=torch.float64)
    return x / spread**2 - sigma / spread * denoiser(x / spread, embedded)


CLEAN = {Flow: clean_of_flow, Edm: clean_of_edm}


@pytest.mark.parametrize("process", CONTINUOUS)
def test_euler_and_heun_equal_loops_over_the_differential_equation(process):
    """dx/dt = (x_t - x) / t of both: flow's eps - x, and EDM's (x_t - D) / sigma."""
    grid, z = process.grid(12), noise(50)
    denoiser = best(process, "v", grid)
    clean, times = CLEAN[type(process)], grid.tolist()

    def slope(x, t):
        return (x - clean(denoiser, x, t)) / t

    first = second = times[0] * z
    for now, then in itertools.pairwise(times):
        first = first + (then - now) * slope(first, now)
        d = slope(second, now)
        step = second + (then - now) * d
        second = step if then == 0 else second + (then - now) * (d + slope(step, then)) / 2
    assert torch.allclose(euler(process, "v", denoiser, z, grid), first, atol=1e-9)
    assert torch.allclose(heun(process, "v", denoiser, z, grid), second, atol=1e-9)


@pytest.mark.parametrize("process", CONTINUOUS)
def test_inversion_equals_a_loop_over_the_differential_equation(process):
    """From the clean sample, where flow's slope is v and EDM's, its noise, is v too."""
    grid, x = process.grid(12), samples(50, 1)
    denoiser = best(process, "v", grid)
    clean, times = CLEAN[type(process)], grid.tolist()[::-1]
    start = torch.full((50,), process.embedded(grid[-1:]).item(), dtype=torch.float64)
    slow = x + times[1] * denoiser(x, start)
    for now, then in itertools.pairwise(times[1:]):
        slow = slow + (then - now) * (slow - clean(denoiser, slow, now)) / now
    assert torch.allclose(inverted(process, "v", denoiser, x, grid), slow / times[-1], atol=1e-9)


def test_inversion_of_ddim_equals_the_papers_formula():
    """Equation 14 of arXiv 2010.02502 as Euler's steps, x_t / sqrt(a) over sqrt((1 - a) / a)."""
    process, x = Ddim(), samples(50, 1)
    grid = process.grid(20)
    denoiser = best(process, "eps", grid)
    slow, product = x, [1.0]
    for t in range(1000):
        product.append(product[-1] * (1 - (1e-4 + (2e-2 - 1e-4) * t / 999)))
    for now, then in itertools.pairwise(grid.long().tolist()[::-1]):
        a, b = product[now + 1], product[then + 1]
        eps = denoiser(slow, torch.full((50,), float(max(now, 0)), dtype=torch.float64))
        slow = math.sqrt(b) * (slow / math.sqrt(a) + (math.sqrt((1 - b) / b) - math.sqrt((1 - a) / a)) * eps)
    assert torch.allclose(inverted(process, "eps", denoiser, x, grid), slow, atol=1e-9)


SAMPLERS = {
    "euler": euler,
    "heun": heun,
    "ancestral": lambda *a, **k: ancestral(*a, 0.7, lambda step: noise(40, step), **k),
}


@pytest.mark.parametrize(
    ("name", "sampler"),
    [(name, "euler") for name in PROCESSES] + [("flow", "heun"), ("edm", "heun"), ("ddim", "ancestral")],
)
def test_the_steps_of_a_sample_are_seen_and_change_nothing(name, sampler):
    process, draw = PROCESSES[name](), SAMPLERS[sampler]
    grid = process.grid(10)
    denoiser, z = best(process, "v", grid), noise(40)
    steps = {}
    drawn = draw(process, "v", denoiser, z, grid, see=steps.__setitem__)
    assert torch.equal(drawn, draw(process, "v", denoiser, z, grid))
    assert list(steps) == list(range(len(grid) - 1))
    t = grid[:1].expand(40)
    output = denoiser(process.scaled(process.prior * z, t), process.embedded(t))
    assert torch.equal(steps[0], process.parts("v", output, process.prior * z, t)[0])
    if sampler != "heun":
        assert torch.allclose(steps[len(grid) - 2], drawn, atol=1e-9)  # the last step goes to its x
    away = [(x - drawn).square().mean().item() for x in steps.values()]
    assert away[-1] < away[0] / 10  # from the mean of all to the sample


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("process", EVERY)
def test_what_is_predicted_does_not_change_the_samples_of_a_perfect_denoiser(process, predict):
    grid = process.grid(20)
    assert torch.allclose(
        euler(process, predict, best(process, predict, grid), noise(50), grid),
        euler(process, "v", best(process, "v", grid), noise(50), grid),
        atol=1e-2 if predict == "eps" else 1e-6,  # eps says nothing of x where x_t is all noise
    )


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("process", EVERY)
def test_inversion_goes_to_the_same_noise_by_every_prediction(process, predict):
    x, grid = samples(200, 1), process.grid(200)
    denoisers = {name: best(process, name, grid) for name in (predict, "v")}
    noises = [inverted(process, name, denoiser, x, grid) for name, denoiser in denoisers.items()]
    assert (noises[0] - noises[-1]).square().mean().sqrt().item() < 0.02
    assert noises[0].std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("process", EVERY)
def test_a_wrong_x_of_a_clean_sample_does_not_move_it(process):
    """Its noise is x_t less x over a noise of nothing: an error of a hundredth would be ten deviations."""
    x, grid = samples(50, 1), process.grid(20)[-2:]
    moved = inverted(process, "x", lambda noisy, t: noisy + 0.01, x, grid) * process.prior
    assert torch.allclose(moved, x, atol=1e-9)


@pytest.mark.parametrize("process", EVERY)
def test_inversion_returns_and_the_error_falls_with_the_steps(process):
    x, errors = samples(200, 1), []
    for steps in (10, 50, 250, 1000):
        grid = process.grid(steps)
        denoiser = best(process, "v", grid)
        there = inverted(process, "v", denoiser, x, grid)
        back = euler(process, "v", denoiser, there, grid)
        errors.append((back - x).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_guidance_extrapolates():
    denoise = guided(lambda x, t: x + 1, lambda x, t: x - 1, 2.0)
    assert denoise(torch.zeros(1), torch.zeros(1)).item() == 3
    for guidance, value in ((1.0, 1), (0.0, -1)):
        assert (
            guided(lambda x, t: x + 1, lambda x, t: x - 1, guidance)(torch.zeros(1), torch.zeros(1)) == value
        )


@pytest.mark.parametrize("process", EVERY)
def test_a_mixture_is_drawn_with_its_masses_and_spreads(process):
    grid = process.grid(1000)
    x = euler(process, "v", best(process, "v", grid), even_noise(3000), grid)
    mode = torch.cdist(x, CENTRES).argmin(1)
    for k, share in enumerate(SHARES.tolist()):
        error = math.sqrt(share * (1 - share) / len(x))
        assert abs((mode == k).double().mean().item() - share) < 3 * error
        assert (x[mode == k] - CENTRES[k]).square().mean().sqrt().item() == pytest.approx(SPREAD, rel=0.03)


@pytest.mark.parametrize("process", EVERY)
def test_the_error_of_samples_falls_with_the_steps(process):
    """Against the time-continuous end, of which a ladder of halved steps is extrapolated."""
    ends = {}
    for steps in (50, 100, 250, 500, 1000):
        grid = process.grid(steps)
        ends[steps] = euler(process, "v", best(process, "v", grid), noise(500), grid)
    exact = 2 * ends[1000] - ends[500]  # Euler's error is proportional to the width of a step
    errors = [(ends[steps] - exact).square().mean().item() for steps in (50, 100, 250, 1000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 50


@pytest.mark.slow
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("predict", ["epsilon", "v_prediction", "sample"])
def test_diffusers_takes_the_same_steps(spacing, predict):
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers, which nothing else here needs")
    process, scheduler = (
        Ddim(),
        diffusers.DDIMScheduler(clip_sample=False, timestep_spacing=spacing, prediction_type=predict),
    )
    scheduler.alphas_cumprod = process.signals[1:]
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(20)
    grid = torch.cat([scheduler.timesteps.double(), torch.tensor([-1.0], dtype=torch.float64)])
    ours_predicts = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}[predict]
    denoiser = best(process, ours_predicts, grid)
    for eta in (0.0, 1.0):
        x = noise(50)
        for step, t in enumerate(scheduler.timesteps):
            output = denoiser(x, t.double().expand(50))
            x = scheduler.step(output, t, x, eta=eta, variance_noise=noise(50, 10 + step)).prev_sample
        fresh = [noise(50, 10 + step) for step in range(20)]
        ours = ancestral(process, ours_predicts, denoiser, noise(50), grid, eta, fresh.__getitem__)
        assert torch.allclose(ours, x, atol=1e-9)
        if eta == 0:
            assert torch.allclose(euler(process, ours_predicts, denoiser, noise(50), grid), x, atol=1e-9)
