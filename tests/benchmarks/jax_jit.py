"""The same training in JAX: a step, with its gradients and Adam, as one function under jit.

Know before reading: JAX. The formulas are those of pytorch.py. Weights and moments are given away
at each step (`donate_argnums`), so that XLA can write over them. Compiling is not timed: it happens
in the first turn, which warms up.
"""

from __future__ import annotations

import time
from functools import partial

import jax
import numpy as np
from jax import numpy as jnp
from jax import random
from jax.nn import softmax, softplus
from jax.scipy.special import gammaln

from tests.benchmarks import work

jax.config.update("jax_platforms", "cuda" if work.ON_GPU else "cpu")
EPS = 1e-8
MOMENTUM = 0.01  # of the running statistics of batch norm


def linear(rng, n_in: int, n_out: int) -> dict:
    """Weight (n_in, n_out) and bias (n_out,) of a layer, uniform as in PyTorch."""
    bound = n_in**-0.5
    weight, bias = rng.uniform(-bound, bound, (n_in, n_out)), rng.uniform(-bound, bound, n_out)
    return {"weight": jnp.asarray(weight, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}


def norm(n: int) -> dict:
    """Scale and shift of a batch norm."""
    return {"scale": jnp.ones(n), "shift": jnp.zeros(n)}


def made(n_genes: int, zero_inflated: bool) -> tuple[dict, dict]:
    """Weights, and running statistics of both batch norms."""
    rng = np.random.default_rng(0)
    hidden, latent = work.N_HIDDEN, work.N_LATENT
    weights = {
        "encoder": linear(rng, n_genes, hidden),
        "encoder_norm": norm(hidden),
        "mean": linear(rng, hidden, latent),
        "log_var": linear(rng, hidden, latent),
        "decoder": linear(rng, latent, hidden),
        "decoder_norm": norm(hidden),
        "rho": linear(rng, hidden, n_genes),
        "log_theta": jnp.asarray(rng.standard_normal(n_genes), jnp.float32),
    }
    if zero_inflated:
        weights["zi"] = linear(rng, hidden, n_genes)
    running = {
        name: {"mean": jnp.zeros(hidden), "variance": jnp.ones(hidden)}
        for name in ("encoder_norm", "decoder_norm")
    }
    return weights, running


def apply(layer: dict, x):
    return x @ layer["weight"] + layer["bias"]


def batch_norm(layer: dict, running: dict, x) -> tuple:
    """(normalised x, new running statistics)."""
    mean, variance = jnp.mean(x, 0), jnp.var(x, 0)
    new = {
        "mean": (1 - MOMENTUM) * running["mean"] + MOMENTUM * mean,
        "variance": (1 - MOMENTUM) * running["variance"] + MOMENTUM * variance,
    }
    return layer["scale"] * (x - mean) / jnp.sqrt(variance + 1e-3) + layer["shift"], new


def loss_of(weights: dict, running: dict, x, key) -> tuple:
    """(-ELBO averaged over the minibatch, new running statistics)."""
    key_dropout, key_z = random.split(key)
    h, encoder = batch_norm(
        weights["encoder_norm"],
        running["encoder_norm"],
        apply(weights["encoder"], jnp.log1p(x)),
    )
    kept = random.bernoulli(key_dropout, 1 - work.DROPOUT, h.shape)
    h = jnp.maximum(h, 0.0) * kept / (1 - work.DROPOUT)
    mean = apply(weights["mean"], h)
    variance = jnp.exp(apply(weights["log_var"], h)) + 1e-4
    z = mean + jnp.sqrt(variance) * random.normal(key_z, mean.shape)
    h, decoder = batch_norm(
        weights["decoder_norm"], running["decoder_norm"], apply(weights["decoder"], z)
    )
    h = jnp.maximum(h, 0.0)
    mu = softmax(apply(weights["rho"], h), -1) * jnp.sum(x, 1, keepdims=True)
    theta = jnp.exp(weights["log_theta"])
    log_theta_mu = jnp.log(theta + mu + EPS)
    ways = gammaln(x + theta) - gammaln(theta) - gammaln(x + 1)
    at_zero = theta * (jnp.log(theta + EPS) - log_theta_mu)
    nonzero = at_zero + x * (jnp.log(mu + EPS) - log_theta_mu) + ways
    log_p = nonzero
    if "zi" in weights:
        pi = apply(weights["zi"], h)
        zero = softplus(at_zero - pi) - softplus(-pi)
        log_p = jnp.where(x < EPS, zero, nonzero - pi - softplus(-pi))
    kl = 0.5 * jnp.sum(variance + mean**2 - 1 - jnp.log(variance), 1)
    loss = jnp.mean(kl - jnp.sum(log_p, 1))
    return loss, {"encoder_norm": encoder, "decoder_norm": decoder}


@partial(jax.jit, donate_argnums=(0, 1, 2, 3))
def step(weights, running, m, v, t, x, key):
    """One step of Adam."""
    (loss, running), g = jax.value_and_grad(loss_of, has_aux=True)(weights, running, x, key)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
    rate = work.RATE * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-8), weights, m, v)
    return weights, running, m, v, loss


def job(name: str, n: int):
    """What `worker` calls again and again: trains for n epochs, returns seconds an epoch."""
    _, likelihood, data = name.split("-")
    x = work.counts(data).toarray()
    if work.ON_GPU:
        x = jnp.asarray(x)
    rng = np.random.default_rng(0)
    n_whole = len(x) // work.BATCH * work.BATCH  # another shape would be compiled for itself

    def run():
        weights, running = made(x.shape[1], likelihood == "zinb")
        m = jax.tree.map(jnp.zeros_like, weights)
        v = jax.tree.map(jnp.zeros_like, weights)
        key, t = random.key(0), 0
        started = time.perf_counter()
        for _ in range(n):
            order = rng.permutation(len(x))[:n_whole]
            for rows in order.reshape(-1, work.BATCH):
                t += 1
                weights, running, m, v, loss = step(
                    weights, running, m, v, float(t), x[rows], random.fold_in(key, t)
                )
                float(loss)
        return (time.perf_counter() - started) / n * len(x) / n_whole

    return run


def version() -> str:
    return f"JAX {jax.__version__}, jit"
