"""Defines a convex instance of AutoMixAlign's minimax problem, solves it, and proves its value.

The policy is linear. Pair z has a feature difference phi_z in R^d that includes beta, and its loss is
L(theta, z) = log(1 + exp(-phi_z . theta)). theta stays in the ball of radius R. Task i has n_i pairs, and its
specialist theta_i minimises their mean loss exactly. With h_z(theta) = L(theta, z) - L(theta_i, z), the
excess is

    F_i(theta) = (1/n_i) sum_{z of task i} max(h_z(theta), 0)       convex: a mean of maxima of convex functions

An interior point method finds the value P* of  min_theta max_i F_i(theta). Nobody needs to trust it: `certify`
bounds P* from both sides by plain arithmetic. At any feasible theta, max_i F_i(theta) is an upper bound. For a
lower bound, take alpha in the simplex and u_z in [0, 1]. Everywhere in the ball

    max_i F_i  >=  G := sum_i alpha_i/n_i sum_z u_z h_z  >=  G(theta) - ||grad G(theta)|| (R + ||theta||)

The first inequality holds because max_i F_i >= alpha . F and max(h, 0) >= u h, the second because G is convex.
Rounding in double precision, of a few hundred terms of order 1/n_i, stays far below `GAP`.

Smoothing: the mixers play alpha = (1-c) q + c/k, so they solve the game in which every alpha_i is at least
c/k. Both games have the same solutions if the multipliers alpha* of the minimax are strictly inside that set.
The values are equal, because (theta*, alpha*) is a saddle point of both. A minimiser theta' of the restricted
game has alpha . F(theta') <= P* for every alpha near alpha*, with equality at alpha*, so every F_i(theta') is
P*. `solve` raises an error unless every alpha*_i is at least `MARGIN` times c/k.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from automixalign.method.mixer import Floats, Ints
from automixalign.method.mixers import AdaptiveOptions

PROBLEM_SEED = 0
"""The first seed for which all tasks are active with `MARGIN`."""
SIZES = (60, 90, 130, 200)
DIMENSION = 8
RADIUS = 5.0
SHARED, OWN = 1.5, 2.0
"""Lengths of the two parts of a task's true direction: the one that all tasks share, and its own."""
GAP = 1e-9
"""The certified gap must be smaller."""
MARGIN = 3.0
"""Every multiplier of the minimax must be at least this many times c/k."""


@dataclass(frozen=True)
class Game:
    """The problem, N pairs of k tasks in R^d."""

    features: Floats
    """phi, shape (N, d)."""
    task: Ints
    """Of each pair, shape (N,), ascending."""
    specialists: Floats
    """theta_i, shape (k, d)."""
    radius: float
    """R."""

    @cached_property
    def sizes(self) -> Ints:
        """n_i, shape (k,)."""
        return np.bincount(self.task)

    @cached_property
    def specialist_loss(self) -> Floats:
        """L(theta_i, z) of each pair, shape (N,)."""
        return loss(np.sum(self.features * self.specialists[self.task], axis=1))

    def difference(self, theta: Floats) -> Floats:
        """h_z(theta) of each pair, shape (N,)."""
        return loss(self.features @ theta) - self.specialist_loss

    def excess(self, theta: Floats) -> Floats:
        """F_i(theta), shape (k,)."""
        return np.bincount(self.task, np.maximum(self.difference(theta), 0)) / self.sizes

    def project(self, theta: Floats) -> Floats:
        """The point of the ball that is nearest to theta."""
        return theta * min(1.0, self.radius / max(float(np.sqrt(theta @ theta)), np.finfo(np.float64).tiny))


@dataclass(frozen=True)
class Saddle:
    """The solution: P* lies in [value - gap, value]."""

    theta: Floats
    alpha: Floats
    value: float
    gap: float


def loss(margin: Floats) -> Floats:
    """The DPO loss at each margin phi . theta."""
    return np.logaddexp(0, -margin)


def slope(margin: Floats) -> Floats:
    """Minus the derivative of `loss`."""
    return 1 / (1 + np.exp(margin))


def fixed_game() -> Game:
    """The problem of the benchmark: four conflicting tasks, with labels as noisy as the loss assumes.

    Raises:
        RuntimeError: a specialist was not found, or is outside the ball.
    """
    random, k = np.random.default_rng(PROBLEM_SEED), len(SIZES)
    own, shared = random.standard_normal((k, DIMENSION)), random.standard_normal(DIMENSION)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    truth = OWN * own + SHARED * shared / np.linalg.norm(shared)
    task = np.repeat(np.arange(k), SIZES)
    features = random.standard_normal((len(task), DIMENSION))
    agrees = random.random(len(task)) >= slope(np.sum(features * truth[task], axis=1))
    features *= np.where(agrees, 1, -1)[:, None]
    return Game(features, task, np.array([specialist(features[task == i], RADIUS) for i in range(k)]), RADIUS)


def specialist(features: Floats, radius: float) -> Floats:
    """The minimiser of one task's mean loss, shape (d,), by Newton's method.

    Raises:
        RuntimeError: the gradient does not vanish, or does so outside the ball.
    """
    theta = np.zeros(features.shape[1])
    for _ in range(50):
        falls = slope(features @ theta)
        gradient = -features.T @ falls / len(features)
        if np.linalg.norm(gradient) < 1e-13 and np.linalg.norm(theta) <= radius:
            return theta
        hessian = (features.T * (falls * (1 - falls))) @ features / len(features)
        theta = theta - np.linalg.solve(hessian, gradient)
    raise RuntimeError(f"no specialist within the ball of radius {radius}")


def certify(game: Game, theta: Floats, alpha: Floats, clip: Floats) -> tuple[float, float]:
    """An upper bound of P*, and how far below it P* may lie; see the module.

    Args:
        alpha: shape (k,).
        clip: u, shape (N,).

    Raises:
        ValueError: theta, alpha or u is not feasible.
    """
    norm = float(np.linalg.norm(theta))
    if norm > game.radius or alpha.min() < 0 or abs(alpha.sum() - 1) > 1e-14:
        raise ValueError("theta is not in the ball or alpha is not in the simplex")
    if clip.min() < 0 or clip.max() > 1:
        raise ValueError("a clip multiplier is not in [0, 1]")
    weight = (alpha / game.sizes)[game.task] * clip
    gradient = -game.features.T @ (weight * slope(game.features @ theta))
    lower = weight @ game.difference(theta) - np.linalg.norm(gradient) * (game.radius + norm)
    upper = game.excess(theta).max()
    return float(upper), float(upper - lower)


def solve(game: Game, smoothing: float = AdaptiveOptions().c) -> Saddle:
    """The minimax of the game, certified.

    Raises:
        RuntimeError: the gap is not below `GAP`, or smoothing by `smoothing` could move the solution.
        ValueError: the solution is not in the ball.
    """
    theta, alpha, clip = _interior_point(game)
    value, gap = certify(game, theta, alpha, clip)
    if not gap < GAP:
        raise RuntimeError(f"the minimax is certified to {gap:.1e} only")
    check_smoothing(alpha, smoothing)
    return Saddle(theta, alpha, value, gap)


def check_smoothing(alpha: Floats, smoothing: float) -> None:
    """Check that smoothing the weights by the constant c does not move the minimax with multipliers alpha.

    Raises:
        RuntimeError: it may move the minimax.
    """
    if alpha.min() < MARGIN * smoothing / len(alpha):
        raise RuntimeError(f"smoothing by {smoothing} is too close to moving the minimax: alpha* = {alpha}")


class _Program:
    """min t  subject to  h_z(theta) <= s_z,  0 <= s_z,  mean of s_z over task i <= t,  over x = (theta, s, t).

    The ball is left out: `certify` refuses a solution outside it. The multipliers of the last k rows are alpha,
    those of the first N are u_z alpha_i / n_i.
    """

    def __init__(self, game: Game) -> None:
        self.game, (self.pairs, self.d) = game, game.features.shape
        n, d, k = self.pairs, self.d, len(game.sizes)
        self.linear = np.zeros((2 * n + k, d + n + 1))
        self.linear[:n, d:-1] = self.linear[n : 2 * n, d:-1] = -np.eye(n)
        self.linear[2 * n + game.task, d + np.arange(n)] = 1 / game.sizes[game.task]
        self.linear[2 * n :, -1] = -1
        self.objective = np.zeros(d + n + 1)
        self.objective[-1] = 1

    def start(self) -> Floats:
        """A strictly feasible x."""
        slack = np.maximum(self.game.difference(np.zeros(self.d)), 0) + 1
        return np.concatenate([np.zeros(self.d), slack, [slack.max() + 1]])

    def constraints(self, x: Floats) -> Floats:
        """f(x), to be negative, shape (2N + k,)."""
        values = self.linear @ x
        values[: self.pairs] += self.game.difference(x[: self.d])
        return values

    def jacobian(self, x: Floats) -> Floats:
        rows, phi = self.linear.copy(), self.game.features
        rows[: self.pairs, : self.d] = -slope(phi @ x[: self.d])[:, None] * phi
        return rows

    def hessian(self, x: Floats, multipliers: Floats) -> Floats:
        """Of the Lagrangian in theta, shape (d, d)."""
        falls = slope(self.game.features @ x[: self.d])
        return (self.game.features.T * (multipliers[: self.pairs] * falls * (1 - falls))) @ self.game.features

    def residual(self, x: Floats, multipliers: Floats, barrier: float) -> float:
        """How far x and the multipliers are from the central path."""
        stationarity = self.objective + self.jacobian(x).T @ multipliers
        return float(np.linalg.norm(np.append(stationarity, multipliers * self.constraints(x) + barrier)))

    def direction(self, x: Floats, multipliers: Floats, barrier: float) -> tuple[Floats, Floats]:
        """Newton's step of x and of the multipliers towards the central path."""
        values, rows = self.constraints(x), self.jacobian(x)
        system = (rows.T * (multipliers / -values)) @ rows
        system[: self.d, : self.d] += self.hessian(x, multipliers)
        move = np.linalg.solve(system, -self.objective + rows.T @ (barrier / values))
        return move, (multipliers * (rows @ move) + barrier) / -values - multipliers


def _interior_point(game: Game, accuracy: float = 1e-12) -> tuple[Floats, Floats, Floats]:
    """Theta, alpha and u near the saddle point: Boyd and Vandenberghe's primal-dual method, section 11.7."""
    program = _Program(game)
    x = program.start()
    multipliers = -1 / program.constraints(x)
    for _ in range(200):
        duality = -float(program.constraints(x) @ multipliers)
        if duality < accuracy and program.residual(x, multipliers, 0) < accuracy:
            break
        barrier = duality / (10 * len(multipliers))
        move, change = program.direction(x, multipliers, barrier)
        falling = change < 0
        step = 0.99 * min(1.0, float(np.min(-multipliers[falling] / change[falling], initial=1.0)))
        before = program.residual(x, multipliers, barrier)
        while step > 1e-12:
            trial = x + step * move, multipliers + step * change
            feasible = program.constraints(trial[0]).max() < 0
            if feasible and program.residual(*trial, barrier) <= (1 - 0.01 * step) * before:
                break
            step /= 2
        x, multipliers = x + step * move, multipliers + step * change
    alpha = multipliers[2 * program.pairs :] / multipliers[2 * program.pairs :].sum()
    clip = multipliers[: program.pairs] * (game.sizes / alpha)[game.task]
    return x[: program.d], alpha, np.clip(clip, 0, 1)
